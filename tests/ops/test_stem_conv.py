import os
import subprocess
import sys

import pytest
import torch
from cases import STEM_CONV
from torch.nn import functional as F

from bitfast.errors import UsageError
from bitfast.numerics import assert_matches
from bitfast.ops import stem_conv, use_impl

IMPLS = {"native": [torch.float32], "reference": [torch.float32, torch.bfloat16, torch.float64]}

every_case = pytest.mark.parametrize("case", STEM_CONV, ids=lambda case: case.name)
every_impl = pytest.mark.parametrize("impl", IMPLS)
with_dtype = pytest.mark.parametrize(
    ("impl", "dtype"),
    [(impl, dtype) for impl, dtypes in IMPLS.items() for dtype in dtypes],
    ids=lambda value: str(value).removeprefix("torch."),
)


def named(name):
    return next(case for case in STEM_CONV if case.name == name)


@pytest.fixture
def forced(impl):
    with use_impl("stem_conv", impl), use_impl("stem_conv_backward", impl):
        yield


def gradients(y, t, leaves):
    grads = torch.autograd.grad(y, list(leaves.values()), t["dy"].to(y.dtype))
    return {"y": y.detach()} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}


def run(t):
    """y and the gradients of <y, dy>."""
    leaves = {name: t[name].detach().requires_grad_() for name in ("x", "kernel")}
    return gradients(stem_conv(**leaves), t, leaves)


def defined(t, dtype):
    """The same, by autograd through torch's own operators in `dtype`."""
    leaves = {name: t[name].detach().to(dtype).requires_grad_() for name in ("x", "kernel")}
    return gradients(F.conv2d(leaves["x"], leaves["kernel"], stride=2, padding=3), t, leaves)


def assert_defined(t, got, dtype=torch.float32):
    truth, baseline = defined(t, torch.float64), defined(t, dtype)
    for name, value in got.items():
        assert value.dtype == dtype
        assert_matches(value, truth[name], baseline[name], name=name)


def assert_equal(a, b):
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@every_case
@with_dtype
def test_matches_definition(case, impl, dtype, forced):
    # torch's own bf16 gradient of a kernel is not written where a tap sees nothing but padding
    if dtype == torch.bfloat16 and min(case.shape[2:]) < 4:
        case = case._replace(shape=(*case.shape[:2], 4, 5))
    t = case.inputs(dtype)
    got = run(t)
    assert_defined(t, got, dtype)
    with torch.no_grad():
        assert torch.equal(stem_conv(t["x"], t["kernel"]), got["y"])


@pytest.mark.parametrize("case", [case for case in STEM_CONV if case.shape[0]], ids=lambda case: case.name)
@every_impl
def test_results_are_channels_last(case, impl, forced):
    for name, value in run(case.inputs(torch.float32)).items():
        assert value.is_contiguous(memory_format=torch.channels_last), name


def test_values_of_one_tap():
    """A kernel with a single one shifts the image: every tap is where the definition says."""
    x = torch.randn(1, 2, 9, 11)
    for r, s, c in ((0, 0, 0), (3, 3, 1), (6, 6, 0), (2, 5, 1), (6, 0, 1)):
        kernel = torch.zeros(32, 2, 7, 7)
        kernel[7, c, r, s] = 1
        with use_impl("stem_conv", "native"):
            y = stem_conv(x, kernel)
        shifted = F.pad(x[:, c], (3, 3, 3, 3))[:, r : r + 9 : 2, s : s + 11 : 2]
        assert torch.equal(y[:, 7], shifted) and not y[:, :7].any() and not y[:, 8:].any()


@every_impl
@pytest.mark.parametrize("frozen", ["x", "kernel"])
def test_frozen_inputs_have_no_gradient_and_change_no_other(frozen, impl, forced):
    t = named("odd_size").inputs(torch.float32)
    want = run(t)
    leaves = {name: t[name].detach().requires_grad_(name != frozen) for name in ("x", "kernel")}
    stem_conv(**leaves).backward(t["dy"])
    for name, leaf in leaves.items():
        assert leaf.grad is None if name == frozen else torch.equal(leaf.grad, want[f"d{name}"]), name


def test_gradient_in_another_layout():
    t = named("odd_size").inputs(torch.float32)
    kernel = t["kernel"].requires_grad_()
    y = stem_conv(t["x"], kernel)
    ones = torch.ones_like(y)
    for dy, same in ((t["dy"], t["dy"].contiguous()), (ones, torch.ones(()).expand(y.shape))):
        want, got = (torch.autograd.grad(y, kernel, d, retain_graph=True)[0] for d in (dy, same))
        assert torch.equal(want, got)


def test_second_derivative_is_refused():
    x = torch.randn(1, 3, 6, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match="stem_conv has no second derivative"):
        torch.autograd.grad(stem_conv(x, torch.randn(32, 3, 7, 7)).sum(), x, create_graph=True)


def test_gradcheck():
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 2, 7, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stem_conv, (x, kernel))


@pytest.mark.parametrize("name", ["odd_size", "contiguous", "40_outputs"])
@every_impl
def test_opcheck(name, impl, forced):
    t = named(name).inputs(torch.float32)
    leaves = [t[k].clone().requires_grad_() for k in ("x", "kernel")]
    torch.library.opcheck(torch.ops.bitfast.stem_conv, leaves)
    torch.library.opcheck(torch.ops.bitfast.stem_conv, (t["x"], t["kernel"]))
    for wanted in ([True, True], [False, True], [True, False]):
        torch.library.opcheck(torch.ops.bitfast.stem_conv_backward, (t["dy"], t["x"], t["kernel"], wanted))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_and_trains(dynamic):
    kernel = torch.randn(32, 3, 7, 7, requires_grad=True)

    def loss(x):
        return stem_conv(x * 2, kernel).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in ((12, 9), (31, 7)):
        x = torch.randn(2, 3, *size)
        (want,), (got,) = torch.autograd.grad(loss(x), kernel), torch.autograd.grad(compiled(x), kernel)
        assert torch.equal(got, want)
        with torch.no_grad():
            assert torch.equal(compiled(x), loss(x))


def by_threads(t, threads):
    """What native gives for the kernel with 1, 2, 3 and 7 threads and once more, the same each time."""
    results = []
    with use_impl("stem_conv", "native"), use_impl("stem_conv_backward", "native"):
        for count in (1, 2, 3, 7, 7):
            threads(count)
            kernel = t["kernel"].detach().requires_grad_()
            results.append(gradients(stem_conv(t["x"], kernel), t, {"kernel": kernel}))
    for other in results[1:]:
        assert_equal(results[0], other)
    return results[0]


@pytest.mark.parametrize("case", [case for case in STEM_CONV if case.outputs % 32 == 0], ids=lambda case: case.name)
def test_bit_equal_for_any_threads_and_again(case, threads):
    by_threads(case.inputs(torch.float32), threads)


def test_larger_images_are_split_between_threads(threads):
    t = named("width_1")._replace(shape=(3, 3, 150, 163)).inputs(torch.float32)
    assert_defined(t, by_threads(t, threads))


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets(isa):
    """The tests of this file again, where the kernels of another instruction set are chosen."""
    wanted = "matches_definition and native or larger or bit_equal or one_tap"
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", wanted]
    result = subprocess.run(command, env=os.environ | {"BITFAST_CPU_ISA": isa}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_what_native_cannot_take_runs_as_torch():
    t = named("width_0_5").inputs(torch.bfloat16)
    with use_impl("stem_conv", "reference"), use_impl("stem_conv_backward", "reference"):
        want = run(t)
    assert_equal(want, run(t))
    with use_impl("stem_conv", "native"), pytest.raises(UsageError, match="bfloat16"):
        run(t)


X, K = torch.zeros(2, 3, 8, 8), torch.zeros(32, 3, 7, 7)
BAD = {
    "not 4-D": (ValueError, r"\(2, 3, 8\)", (X[..., 0], K)),
    "no pixels": (ValueError, r"\(2, 3, 0, 8\)", (X[:, :, :0], K)),
    "no channels": (ValueError, r"\(2, 0, 8, 8\)", (X[:, :0], K)),
    "kernel of other channels": (ValueError, r"\(32, 2, 7, 7\).*x has 3 channels", (X, K[:, 1:])),
    "kernel of 5x5": (ValueError, r"\(32, 3, 5, 5\).*\(O, 3, 7, 7\)", (X, K[..., 1:6, 1:6])),
    "kernel 3-D": (ValueError, r"\(32, 3, 7\)", (X, K[..., 0])),
    "kernel without outputs": (ValueError, r"\(0, 3, 7, 7\)", (X, K[:0])),
    "dtype": (TypeError, "torch.int32", (X.int(), K.int())),
    "kernel dtype": (TypeError, "kernel is torch.float64.*float32", (X, K.double())),
    "kernel device": (ValueError, "kernel is on meta", (X, K.to("meta"))),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_what_it_saw(name):
    error, message, args = BAD[name]
    with pytest.raises(error, match=message):
        stem_conv(*args)


def last(*shape):
    return torch.zeros(shape).contiguous(memory_format=torch.channels_last)


BAD_NATIVE = {
    "image contiguous": ("channels_last", "stem_conv", (X, last(32, 3, 7, 7))),
    "image double": ("float32", "stem_conv", (last(2, 3, 8, 8).double(), last(32, 3, 7, 7))),
    "40 outputs": ("multiple of 32", "stem_conv", (last(2, 3, 8, 8), last(40, 3, 7, 7))),
    "kernel of 5x5": ("O, I, 7, 7", "stem_conv", (last(2, 3, 8, 8), last(32, 3, 5, 5))),
    "kernel of other channels": ("channels of x", "stem_conv", (last(2, 3, 8, 8), last(32, 4, 7, 7))),
    "kernel contiguous": ("channels_last", "stem_conv", (last(2, 3, 8, 8), K)),
    "dy of other size": ("dy must", "stem_weight_gradient", (last(2, 3, 8, 8), last(2, 32, 4, 5))),
    "dy of other batch": ("dy must", "stem_weight_gradient", (last(2, 3, 8, 8), last(1, 32, 4, 4))),
    "dy contiguous": ("dy must", "stem_weight_gradient", (last(2, 3, 8, 8), torch.zeros(2, 32, 4, 4))),
    "dy 3-D": ("multiple of 32", "stem_weight_gradient", (last(2, 3, 8, 8), torch.zeros(32, 4, 4))),
}


@pytest.mark.parametrize("name", BAD_NATIVE)
def test_native_refuses_what_would_leave_memory(name):
    message, op, args = BAD_NATIVE[name]
    stem_conv(X, K)
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.bitfast_native, op)(*args)
