"""The sampler is a pure function of (seed, step), visits every image once per epoch and draws what it promises."""

import subprocess
import sys

import numpy as np
import pytest

from bitfast.data import streams
from bitfast.data.sampler import Batch, Sampler
from bitfast.data.transform import Transform
from bitfast.errors import UsageError

TRAIN = Transform.train(40, 32)
ARRAYS = ("indices", "crop_y", "crop_x", "flip", "attempts", "partner")


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS) and (a.step, a.lam) == (
        b.step,
        b.lam,
    )


DIGEST = """
import hashlib
from bitfast.data.sampler import Sampler
from bitfast.data.transform import Transform

def digest(batch):
    arrays = (batch.indices, batch.crop_y, batch.crop_x, batch.flip, batch.attempts, batch.partner)
    arrays = [array for array in arrays if array is not None]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays) + str(batch.lam).encode()).hexdigest()

sampler = Sampler(1000, 48, Transform.train(40, 32), 0.1, seed=7)
"""


def test_a_fresh_process_starting_at_step_37_draws_the_same():
    code = DIGEST + "import sys, bitfast.data.check, bitfast.data.dataset\n"
    code += "print(digest(sampler.batch(37)), 'torch' in sys.modules)"
    env = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    here = {}
    exec(DIGEST, here)
    sampler = here["sampler"]
    before = [sampler.batch(step) for step in range(37)]
    assert out.split() == [here["digest"](sampler.batch(37)), "False"]
    assert all(same(before[step], sampler.batch(step)) for step in reversed(range(37)))


def test_streams_can_be_entered_anywhere():
    whole = streams.words(5, streams.AUGMENT, 100, index=3)
    assert np.array_equal(whole[41:60], streams.words(5, streams.AUGMENT, 19, index=3, position=41))
    others = [(6, streams.AUGMENT, 3), (5, streams.MIXUP, 3), (5, streams.AUGMENT, 4)]
    assert all((whole != streams.words(seed, stream, 100, index=index)).all() for seed, stream, index in others)


def test_the_generator_is_philox_and_stays_so():
    """The first vector is the published one of Random123 (counter 0, key 0); the second pins our use of it."""
    published = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert np.random.Philox(key=0, counter=2**256 - 1).random_raw(4).tolist() == published
    pinned = Sampler(1000, 4, TRAIN, 0.1, seed=2).batch(9)
    assert pinned.indices.tolist() == [351, 596, 598, 563]
    assert pinned.crop_y.tolist() == [8, 0, 6, 3] and pinned.crop_x.tolist() == [0, 3, 7, 1]
    assert pinned.flip.tolist() == [False, True, False, False]


@pytest.mark.parametrize("n", [1, 2, 7, 64, 65, 100])
@pytest.mark.parametrize("size", [1, 3, 64, 130])
def test_every_epoch_shows_every_image_once(n, size):
    sampler = Sampler(n, size, TRAIN)
    epochs = 4
    shown = np.concatenate([sampler.batch(step).indices for step in range(-(-epochs * n // size))])[: epochs * n]
    orders = shown.reshape(epochs, n)
    assert (np.sort(orders, axis=1) == np.arange(n)).all()
    assert n < 7 or len({tuple(order) for order in orders}) == epochs


def test_crops_and_flips_belong_to_the_position_not_to_the_batch_size():
    large, small = Sampler(100, 48, TRAIN, seed=1).batch(2), Sampler(100, 12, TRAIN, seed=1)
    pieces = [small.batch(step) for step in range(8, 12)]
    for name in ("indices", "crop_y", "crop_x", "flip"):
        assert np.array_equal(getattr(large, name), np.concatenate([getattr(piece, name) for piece in pieces]))
    vetoed = Sampler(100, 48, Transform.train(40, 32, no_flip=True), seed=1).batch(2)
    assert not vetoed.flip.any() and np.array_equal(vetoed.crop_x, large.crop_x)


@pytest.mark.parametrize("size", [16, 17, 50])
def test_micro_batches_are_the_batch(size):
    batch = Sampler(100, size, TRAIN, 0.2).batch(3)
    values = batch.indices * 10
    mixed = batch.lam * values + (1 - batch.lam) * values[batch.partner]
    for micro in (2, 4, 16, size):
        parts = list(batch.micro(micro))
        assert all(len(part) == micro for part in parts[:-1])
        for name in ("indices", "crop_y", "crop_x", "flip"):
            assert np.array_equal(getattr(batch, name), np.concatenate([getattr(part, name) for part in parts]))
        again = [p.lam * (p.indices * 10) + (1 - p.lam) * (p.indices * 10)[p.partner] for p in parts]
        assert np.array_equal(np.concatenate(again), mixed)
    assert same(next(batch.micro(size)), batch)


def test_micro_refuses_to_part_a_pair():
    mixed, plain = Sampler(10, 8, TRAIN, 0.2).batch(0), Sampler(10, 8, TRAIN).batch(0)
    for batch, size in ((mixed, 3), (mixed, 0), (plain, 0), (plain, -1)):
        with pytest.raises(UsageError, match=f"micro-batch {size} cannot split a batch of 8"):
            list(batch.micro(size))
    assert [len(part) for part in plain.micro(3)] == [3, 3, 2]
    assert [len(part) for part in mixed.micro(9)] == [8]


@pytest.mark.parametrize("size", [1, 2, 9])
def test_partner_is_an_involution_of_neighbours(size):
    partner = Sampler(10, size, TRAIN, 0.1).batch(0).partner
    assert np.array_equal(partner[partner], np.arange(size))
    assert np.array_equal(np.flatnonzero(partner == np.arange(size)), [size - 1] if size % 2 else [])
    assert np.array_equal(Sampler(10, size, TRAIN).batch(0).partner, np.arange(size))


def test_offsets_are_uniform_to_both_borders_and_half_are_flipped():
    batch = Sampler(1000, 90_000, TRAIN, seed=11).batch(0)
    assert isinstance(batch, Batch) and batch.crop_x.dtype == batch.indices.dtype == np.int64
    for offsets in (batch.crop_y, batch.crop_x):
        counts = np.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert ((counts - 10_000) ** 2 / 10_000).sum() < 26.1  # chi-square, 8 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(batch.crop_y, batch.crop_x)[0, 1]) < 0.011
    assert abs(batch.flip.mean() - 0.5) < 0.0055
    centred = Sampler(10, 100, Transform.test(32)).batch(0)
    assert not (centred.crop_y.any() or centred.crop_x.any() or centred.flip.any())


def test_lambda_is_beta_distributed_and_one_without_mixup():
    sampler = Sampler(10, 2, TRAIN, 0.1)
    lam = np.array([sampler.batch(step).lam for step in range(4000)])
    assert abs(lam.mean() - 0.5) < 0.03 and abs(lam.var() - 1 / (4 * 1.2)) < 0.01  # var = 1 / (4 (2 alpha + 1))
    assert Sampler(10, 2, TRAIN).batch(0).lam == 1.0


@pytest.mark.parametrize("transform", [TRAIN, Transform.pretrain(32)], ids=lambda t: t.geometry)
@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro", [4, 16])
def test_ranks_and_micro_batches_see_the_global_batch(transform, alpha, ranks, micro):
    whole = Sampler(1000, 48, transform, alpha, seed=7).batch(37)
    parts = []
    for rank in range(ranks):
        fresh = Sampler(1000, 48, transform, alpha, seed=7).batch(37, rank, ranks)
        parts += list(fresh.micro(micro))
    assert sum(map(len, parts)) == 48 and {part.lam for part in parts} == {whole.lam}
    for name in ("indices", "crop_y", "crop_x", "flip", "attempts"):
        if getattr(whole, name) is not None:
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)), name
    partners = np.concatenate([part.indices[part.partner] for part in parts])
    assert np.array_equal(partners, whole.indices[whole.partner])


@pytest.mark.parametrize("size, ranks", [(7, 2), (9, 4), (10, 3), (8, 4)])
def test_shards_of_any_size_keep_pairs(size, ranks):
    for alpha in (0.0, 0.5):
        sampler = Sampler(50, size, TRAIN, alpha)
        shards = [sampler.batch(5, rank, ranks) for rank in range(ranks)]
        assert np.array_equal(np.concatenate([shard.indices for shard in shards]), sampler.batch(5).indices)
        sizes = [len(shard) for shard in shards]
        assert max(sizes) - min(sizes) <= (2 if alpha else 1)
        for shard in shards:
            assert np.array_equal(shard.partner[shard.partner], np.arange(len(shard)))


def test_impossible_shards_are_refused():
    with pytest.raises(UsageError, match="rank 2 of 2 processes does not exist"):
        Sampler(9, 4, TRAIN).batch(0, 2, 2)
    with pytest.raises(UsageError, match="rank 1 of 1"):
        Sampler(9, 4, TRAIN).batch(0, 1, 1)
    with pytest.raises(UsageError, match="2 mixup pairs is too small for 3 processes"):
        Sampler(9, 4, TRAIN, 0.1).batch(0, 0, 3)


def test_inception_boxes_have_the_distribution_of_the_published_algorithm():
    """Area and aspect of 4096 boxes against the algorithm drawn with numpy's own generator."""
    spec = Transform.pretrain(32)
    attempts = Sampler(4096, 4096, spec, seed=3).batch(0).attempts
    boxes = np.array([spec.window(400, 500, attempts=draws)[:4] for draws in attempts])
    rng = np.random.default_rng(8)
    expected = []
    for _ in range(4096):
        for _ in range(10):
            area, ratio = 200_000 * rng.uniform(0.08, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if width <= 500 and height <= 400:
                expected.append((height, width))
                break
        else:
            expected.append((400, 500))
    expected = np.array(expected)
    for got, wanted in (
        (boxes[:, 2] * boxes[:, 3] / 200_000, expected.prod(1) / 200_000),
        (boxes[:, 3] / boxes[:, 2], expected[:, 1] / expected[:, 0]),
    ):
        assert abs(got.mean() - wanted.mean()) < 0.015 and abs(got.std() - wanted.std()) < 0.015
        assert np.abs(np.quantile(got, [0.1, 0.5, 0.9]) - np.quantile(wanted, [0.1, 0.5, 0.9])).max() < 0.03
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= (400, 500)).all()


def test_refuses():
    for options in ({"n": 0}, {"batch_size": 0}, {"mixup_alpha": -1}):
        with pytest.raises(UsageError):
            Sampler(**{"n": 4, "batch_size": 2, "transform": TRAIN} | options)
