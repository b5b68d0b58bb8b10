"""norm_convs, Stem and one_pixel: an operator in place of modules, unless something would be passed over."""

import pytest
import torch

from bitfast.nn import GroupNormAct, StdConv2d, Stem, norm_convs, one_pixel


def modules():
    return GroupNormAct(64), [StdConv2d(64, 64, 3, padding=1), StdConv2d(64, 32, 1, 2)]


@pytest.mark.parametrize("which", ["norm", "conv"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_fire(which, kind):
    norm, convs = modules()
    x, fired = torch.randn(2, 64, 6, 6, requires_grad=True), []
    want, _ = norm_convs(norm, convs, x)
    module = norm if which == "norm" else convs[1]
    getattr(module, f"register_{kind}_hook")(lambda *args: fired.append(args[0]) or None)
    got, s = norm_convs(norm, convs, x)
    sum(y.sum() for y in got).backward()
    assert fired == [module] and s is x
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_residual_and_a_hook():
    norm, convs = modules()
    x, residual = torch.randn(2, 2, 64, 6, 6)
    want, sums = norm_convs(norm, convs, x, residual)
    convs[0].register_forward_hook(lambda module, args, y: y * 2)
    got, s = norm_convs(norm, convs, x, residual)
    torch.testing.assert_close(got, [want[0] * 2, want[1]], rtol=1e-3, atol=1e-3)
    assert torch.equal(s, sums)


def test_parametrization_runs():
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return weight * 2

    norm, convs = modules()
    x = torch.randn(2, 64, 6, 6)
    plain = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False)
    (want,), _ = norm_convs(norm, [plain], x)
    torch.nn.utils.parametrize.register_parametrization(plain, "weight", Doubled())
    (got,), _ = norm_convs(norm, [plain], x)
    torch.testing.assert_close(got, want * 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"bias": True}, {"padding": 0}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"stride": (1, 2)}],
    ids=str,
)
def test_other_convolutions_are_run_as_they_are(options):
    norm, _ = modules()
    x = torch.randn(2, 64, 6, 6)
    conv = torch.nn.Conv2d(64, 64, 3, **{"bias": False, "padding": 1, **options})
    (got,), _ = norm_convs(norm, [conv], x)
    assert torch.equal(got, conv(norm(x)))


def test_replaced_forward_runs():
    norm, convs = modules()
    convs[0].forward = lambda y: y + 1
    x = torch.randn(2, 64, 6, 6)
    got, _ = norm_convs(norm, convs, x)
    assert torch.equal(got[0], norm(x) + 1)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
@pytest.mark.parametrize("folded", [False, True])
def test_hooks_of_the_stem_fire(kind, folded):
    stem, x, fired = Stem(3, 32), torch.randn(2, 3, 14, 12, requires_grad=True), []
    if folded:
        stem.conv = torch.nn.Conv2d(3, 32, 7, 2, 3, bias=False)
    want = stem(x)
    getattr(stem.conv, f"register_{kind}_hook")(lambda *args: fired.append(args[0]) or None)
    got = stem(x)
    got.sum().backward()
    assert fired == [stem.conv]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"bias": True}, {"kernel_size": 5, "padding": 2}, {"stride": 1}, {"padding": 2}], ids=str
)
def test_other_stems_are_run_as_they_are(options):
    stem, x = Stem(3, 32), torch.randn(2, 3, 14, 12)
    stem.conv = torch.nn.Conv2d(3, 32, **{"kernel_size": 7, "stride": 2, "padding": 3, "bias": False, **options})
    want = torch.nn.functional.pad(stem.conv(x), (1, 1, 1, 1))
    assert torch.equal(stem(x), torch.nn.functional.max_pool2d(want, 3, 2))


def test_stem_under_autocast_is_cast():
    stem, x = Stem(3, 32), torch.randn(2, 3, 14, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert stem(x).dtype == torch.bfloat16
    assert stem(x).dtype == torch.float32


def test_one_pixel_is_the_convolution():
    x = torch.randn(5, 64, 1, 1)
    for conv in (
        torch.nn.Conv2d(64, 10, 1),
        torch.nn.Conv2d(64, 10, 1, groups=2),
        torch.nn.Conv2d(64, 10, 3, padding=1),
    ):
        torch.testing.assert_close(one_pixel(conv, x), conv(x).flatten(1))
    assert torch.equal(one_pixel(torch.nn.Identity(), x), x.flatten(1))
    fired, conv = [], torch.nn.Conv2d(64, 10, 1)
    conv.register_forward_hook(lambda *args: fired.append(args[0]))
    one_pixel(conv, x)
    assert fired == [conv]


def test_stem_has_a_shape_on_the_meta_device():
    with torch.device("meta"):
        assert Stem(3, 8)(torch.empty(2, 3, 32, 48)).shape == (2, 8, 8, 12)
