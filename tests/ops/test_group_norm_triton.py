import pytest
import torch
from cases import GROUP_NORM

from bitfast.numerics import GN_EPS, assert_matches
from bitfast.ops import group_norm_act, use_impl
from bitfast.ops.group_norm import reference


@pytest.mark.parametrize("case", [c for c in GROUP_NORM if c.layout == "channels_last"], ids=lambda c: c.name)
def test_matches_definition(case):
    t = case.inputs(torch.float32)
    with use_impl("group_norm", "triton"):
        y = group_norm_act(t["x"], t["weight"], t["bias"], groups=case.groups, act=case.act)
    settings = case.groups, GN_EPS, case.act
    truth = reference.forward(t["x"].double(), None, t["weight"].double(), t["bias"].double(), *settings)[0]
    assert_matches(y, truth, reference.forward(t["x"], None, t["weight"], t["bias"], *settings)[0])
