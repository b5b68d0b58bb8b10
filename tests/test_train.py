"""The trainer when memory runs out: a smaller micro-batch, at the same step, with the same result."""

import numpy as np
import pytest
import torch

import bitfast
from bitfast.data.dataset import open_dataset
from bitfast.data.sampler import Sampler
from bitfast.data.transform import Transform
from bitfast.errors import OutOfMemory
from bitfast.hyperrule import Plan
from bitfast.train import Trainer

PLAN = Plan(4, 0, (), 8, 0.01, 0.0, 36, 32)


def trainer(largest=None, micro_batch=8, mixup=0.0):
    """A Trainer on random pixels whose network has memory for `largest` images, from the third step on."""
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 36, 36, 3), dtype=np.uint8)
    split = open_dataset((pixels, [i % 3 for i in range(12)]), val_split=0).train
    optimizer = bitfast.StandardizedSGD(bitfast.resnet26x0_5(num_classes=3), lr=0.01)
    transform = Transform.train(36, 32)
    made = Trainer(
        optimizer, PLAN, Sampler(12, 8, transform, mixup), split, transform, micro_batch, torch.device("cpu")
    )
    seen = []

    def out_of_memory(module, inputs):
        seen.append(len(inputs[0]))
        if largest and len(seen) > 2 and len(inputs[0]) > largest:
            raise torch.OutOfMemoryError("out of memory")

    optimizer.network.register_forward_pre_hook(out_of_memory)
    return made, seen


def test_out_of_memory_halves_the_micro_batch_at_the_same_step(capsys):
    whole, _ = trainer()
    expected = list(whole.steps(0))
    halved, seen = trainer(largest=2)
    results = list(halved.steps(0))
    assert [result.step for result in results] == [0, 1, 2, 3] and halved.micro_batch == 2
    assert seen == [8, 8, 8, 4, *[2] * 8]
    said = capsys.readouterr().err
    assert "8 -> 4, results unchanged" in said and "4 -> 2, results unchanged" in said
    got, wanted = (torch.tensor([result.loss for result in each]) for each in (results, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("mixup", "smallest"), [(0.0, 1), (0.5, 2)])
def test_not_even_the_smallest_fits(mixup, smallest):
    starved, seen = trainer(largest=0.5, mixup=mixup)
    with pytest.raises(OutOfMemory, match=f"micro-batch of {smallest} at 32 px"):
        list(starved.steps(0))
    assert seen[-1] == smallest
