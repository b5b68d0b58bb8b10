"""The CUDA kernels of GroupNorm: on the host behind tests/simt, or with `-m gpu` on a GPU."""

import pytest
import torch
from cases import GROUP_NORM, GroupNormCase
from test_group_norm_triton import check_exactly, inputs, named, run

from bitfast.errors import UsageError
from bitfast.numerics import GN_EPS
from bitfast.ops import _dispatch, group_norm_act, use_impl
from bitfast.ops.group_norm.op import slab_objection

LOW = [torch.bfloat16, torch.float16]

# Those of whole vectors of channels; several images, groups and blocks of a slab, and the last of each not full.
OF_VECTORS = [case._replace(layout="channels_last") for case in GROUP_NORM if case.shape[1] % 8 == 0]
CASES = list({case[1:]: case for case in reversed(OF_VECTORS)}.values())
CASES += [
    GroupNormCase("images_of_a_slab", (11, 64, 3, 3), residual=True),
    GroupNormCase("groups_of_two_slabs", (3, 96, 5, 4), act="silu"),
    GroupNormCase("one_pixel_of_many", (40, 64, 1, 1), act="none"),
    GroupNormCase("long_groups", (2, 2048, 2, 3), groups=8, residual=True),
]
# Slabs of a cluster of 2 to 16 blocks where a block has 44 KB for two of its images.
LARGE = [
    GroupNormCase("cluster_of_2", (2, 64, 12, 11), residual=True),
    GroupNormCase("cluster_of_4", (1, 64, 16, 18), act="silu"),
    GroupNormCase("cluster_of_8", (1, 128, 23, 25)),
    GroupNormCase("cluster_of_16_x3", (1, 192, 31, 33), residual=True),
    GroupNormCase("cluster_large_mean", (1, 64, 16, 18), mean=1000.0, std=0.01, act="none"),
]


@pytest.fixture
def cuda():
    with use_impl("group_norm", "cuda"), use_impl("group_norm_backward", "cuda"):
        yield


def every(cases, low):
    """Cases in fp32, and those of `low` in 16 bits too."""
    pairs = [(case, torch.float32) for case in cases] + [(case, d) for case in low for d in LOW]
    return pytest.mark.parametrize(("case", "dtype"), pairs, ids=named)


@every(CASES, [c for c in CASES if c.name in {"x3_192", "one_pixel", "stage1_residual", "images_of_a_slab"}])
def test_matches_definition(case, dtype, cuda_device, cuda):
    t = inputs(case, dtype, cuda_device)
    got = run(case, t)
    check_exactly(case, t, dtype, got)
    for name in {"y", "s", "dx", "dresidual"} & got.keys():
        assert got[name].is_contiguous(memory_format=torch.channels_last), name


@every(LARGE, LARGE[:1])
def test_slabs_of_several_blocks(case, dtype, settings, cuda):
    settings(shared_per_block=90 << 10)
    t = inputs(case, dtype, "cpu")
    check_exactly(case, t, dtype, run(case, t))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [28, 56])
def test_slabs_of_several_blocks_on_a_gpu(size, on_gpu, cuda):
    case = GroupNormCase("cluster", (3, 256, size, size), residual=True)
    t = inputs(case, torch.bfloat16, "cuda")
    check_exactly(case, t, torch.bfloat16, run(case, t))


@pytest.mark.parametrize("case", [CASES[-4], LARGE[0]], ids=named)
def test_any_order_of_threads_and_blocks_gives_the_same_bits(case, settings, cuda):
    t = inputs(case, torch.float32, "cpu")
    results = []
    for schedule in range(4):
        settings(schedule, shared_per_block=90 << 10)
        results.append(run(case, t))
    for got in results[1:]:
        assert all(torch.equal(got[name], value) for name, value in results[0].items())


def test_bit_equal_again(cuda_device, cuda):
    t = inputs(CASES[-4], torch.bfloat16, cuda_device)
    first, again = run(CASES[-4], t), run(CASES[-4], t)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_not_finite_stays_in_its_group(cuda_device, cuda):
    x = torch.randn(2, 64, 4, 4, device=cuda_device).contiguous(memory_format=torch.channels_last)
    x[1, 6, 2, 2] = float("nan")
    y = group_norm_act(x, torch.ones(64, device=cuda_device), torch.zeros(64, device=cuda_device))
    wrong = ~y.isfinite()
    assert wrong[1, 6:8].all() and wrong.sum() == 32


@pytest.mark.parametrize("case", [c for c in CASES if c.name in {"x3_192", "strided"}], ids=named)
def test_opcheck(case, cuda_device, cuda):
    t = inputs(case, torch.float32, cuda_device)
    x, r = t["x"].clone().requires_grad_(), t["dy"].clone().requires_grad_()
    w, b = t["weight"].requires_grad_(), t["bias"].requires_grad_()
    rule = (case.groups, GN_EPS, case.act)
    torch.library.opcheck(torch.ops.bitfast.group_norm_act, (x, w, b, *rule))
    torch.library.opcheck(torch.ops.bitfast.add_group_norm_act, (x, r, w, b, *rule))


def refused(shape, dtype=torch.float32, groups=32, layout=torch.channels_last):
    x = torch.empty(shape, dtype=dtype).contiguous(memory_format=layout)
    parameters = torch.ones(shape[1], dtype=torch.promote_types(dtype, torch.float32))
    with pytest.raises(UsageError) as error:
        group_norm_act(x, parameters, parameters, groups=groups)
    return str(error.value)


def test_what_the_kernels_cannot_take_is_said(settings, cuda):
    assert "it has no torch.float64" in refused((1, 64, 2, 2), torch.float64)
    assert "not channels_last" in refused((1, 64, 2, 2), layout=torch.contiguous_format)
    assert "its channels are not a multiple of 4" in refused((1, 33, 2, 2), groups=11)
    assert "its groups are of 4096 channels" in refused((1, 4096, 2, 2), groups=1)
    settings(shared_per_block=99 << 10, capability=8)
    assert "takes 196 KB of shared memory, more than 1 of this GPU's blocks have" in refused((1, 64, 28, 28))


def test_slabs_of_bit_networks_fit_an_h200(settings):
    """All at 224 px; at 480 px those of the first stage, of 1800 KB, are left to Triton in the backward."""
    bf16, cpu = torch.bfloat16, torch.device("cpu")
    for size in (7, 14, 28, 56):
        for backward in (False, True):
            assert not slab_objection(
                torch.Size((256, 256, size, size)), torch.bfloat16, torch.device("cpu"), 32, backward
            )
    large = torch.Size((32, 256, 120, 120)), bf16, cpu, 32
    assert "takes 3600 KB" in slab_objection(*large, True)


def test_where_a_slab_does_not_fit_the_next_implementation_runs_and_it_is_said(settings, monkeypatch, capsys):
    """As on a GPU of compute capability 8, were the kernels the first choice there."""
    settings(shared_per_block=99 << 10, capability=8)
    table = [
        impl._replace(devices=("cpu",) if impl.name == "cuda" else impl.devices)
        for impl in _dispatch._table["group_norm"]
    ]
    monkeypatch.setitem(_dispatch._table, "group_norm", sorted(table, key=lambda impl: impl.name != "cuda"))
    monkeypatch.setattr(_dispatch, "_said", set())
    x = torch.randn(1, 64, 28, 28).contiguous(memory_format=torch.channels_last)
    group_norm_act(x, torch.ones(64), torch.zeros(64))
    assert "group_norm runs as native, not cuda: a slab of its images takes 196 KB" in capsys.readouterr().err
