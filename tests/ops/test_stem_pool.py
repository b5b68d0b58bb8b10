import os
import subprocess
import sys

import pytest
import torch
from cases import LAYOUTS, STEM_POOL
from torch.nn import functional as F

from bitfast.nn import Stem
from bitfast.numerics import assert_matches
from bitfast.ops import stem_pool, use_impl
from bitfast.ops.stem_pool import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
IMPLS = ["native", "reference"]

every_case = pytest.mark.parametrize("case", STEM_POOL, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_impl = pytest.mark.parametrize("impl", IMPLS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def forced(impl):
    with use_impl("stem_pool", impl), use_impl("stem_pool_backward", impl):
        yield


def run(t):
    """y and the gradient of <y, dy>."""
    leaf = t["x"].detach().requires_grad_()
    y = stem_pool(leaf)
    return {"y": y.detach(), "dx": torch.autograd.grad(y, leaf, t["dy"])[0]}


def defined(t, dtype):
    """The same, by autograd through torch's own operators in `dtype`."""
    leaf = t["x"].detach().to(dtype).requires_grad_()
    y = F.max_pool2d(F.pad(leaf, (1, 1, 1, 1)), 3, 2)
    return {"y": y.detach(), "dx": torch.autograd.grad(y, leaf, t["dy"].to(dtype))[0]}


@every_case
@every_dtype
@every_impl
def test_matches_definition(case, dtype, impl, forced):
    t = case.inputs(dtype)
    got, truth, baseline = run(t), defined(t, torch.float64), defined(t, dtype)
    for name, value in got.items():
        assert_matches(value, truth[name], baseline[name], name=name)
    assert torch.equal(got["y"].double(), truth["y"])
    with torch.no_grad():
        assert torch.equal(stem_pool(t["x"]), got["y"])


@every_case
@every_dtype
def test_native_and_reference_are_bit_equal_and_save_the_same(case, dtype):
    t = case.inputs(dtype)
    results = []
    for impl in IMPLS:
        with use_impl("stem_pool", impl):
            results.append(torch.ops.bitfast.stem_pool_with_index(t["x"]))
        with use_impl("stem_pool_backward", impl):
            index = results[0][1]
            dx = torch.ops.bitfast.stem_pool_backward(t["dy"], index, *case.shape[2:], case.layout == "channels_last")
            results[-1] += (dx,)
    for native, plain in zip(*results, strict=True):
        assert torch.equal(native, plain) and native.dtype == plain.dtype


@pytest.mark.parametrize("case", [c for c in STEM_POOL if c.shape[0]], ids=lambda case: case.name)
@every_impl
def test_layout_is_kept(case, impl, forced):
    for name, value in run(case.inputs(torch.float32)).items():
        assert value.is_contiguous(memory_format=LAYOUTS[case.layout]), name


@every_impl
def test_half_precision_runs_as_the_reference(impl):
    x = torch.randn(2, 8, 9, 9).half()
    with use_impl("stem_pool_backward", "reference"), use_impl("stem_pool", "reference"):
        t = {"x": x, "dy": torch.randn(2, 8, 5, 5).half()}
        expected = run(t)
    assert all(torch.equal(a, b) for a, b in zip(run(t).values(), expected.values(), strict=True))


@every_layout
@every_impl
def test_nan_and_infinity_as_in_torch(layout, impl, forced):
    x = torch.randn(2, 19, 11, 40)
    places = torch.randperm(x.numel())
    for i, value in enumerate((float("nan"), float("inf"), float("-inf"), -0.0)):
        x.flatten()[places[i * 800 : (i + 1) * 800]] = value
    x[0, 3] = float("-inf")
    t = {"x": x.contiguous(memory_format=LAYOUTS[layout]), "dy": torch.randn(2, 19, 6, 20)}
    got, expected = run(t), defined(t, torch.float32)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6, equal_nan=True)
    assert got["y"].isnan().any() and not got["dx"].isnan().any()


@every_layout
@every_impl
def test_zeros_of_the_frame_take_part(layout, impl, forced):
    t = {"x": -torch.ones(1, 20, 6, 6).contiguous(memory_format=LAYOUTS[layout]), "dy": torch.ones(1, 20, 3, 3)}
    got = run(t)
    assert (got["y"][:, :, 0] == 0).all() and (got["y"][:, :, :, 0] == 0).all()
    assert (got["y"][:, :, 1:, 1:] == -1).all()
    assert got["dx"].sum() == 20 * 4, "nothing learns where the frame wins"


@every_layout
@every_impl
def test_gradcheck(layout, impl, forced):
    for size in ((5, 6), (6, 7), (1, 2)):
        x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
        assert torch.autograd.gradcheck(stem_pool, x.requires_grad_())


def test_gradient_in_another_layout():
    x = torch.randn(2, 64, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    y, dy = stem_pool(x), torch.randn(2, 64, 3, 3)
    (plain,) = torch.autograd.grad(y, x, dy.contiguous(memory_format=torch.channels_last), retain_graph=True)
    (other,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    (expanded,) = torch.autograd.grad(y, x, torch.ones(1, 1, 1, 1).expand(2, 64, 3, 3), retain_graph=True)
    (ones,) = torch.autograd.grad(y, x, torch.ones(2, 64, 3, 3))
    assert torch.equal(plain, other) and torch.equal(expanded, ones)


def test_second_derivative_is_refused():
    x = torch.randn(1, 4, 6, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match="stem_pool has no second derivative"):
        torch.autograd.grad(stem_pool(x).sum(), x, create_graph=True)


def test_stem_keeps_one_byte_per_result_not_the_convolution():
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    stem, x = Stem(3, 64), torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = stem(x)
    sizes = [nbytes for nbytes, _ in kept.values()]
    assert max(sizes) == x.nbytes < 64 * 32 * 32 * 4, "the largest is the image, not the convolution's result"
    assert y.numel() in sizes


OPCHECK = [c for c in STEM_POOL if c.name in {"x3_192", "odd_everything_contiguous", "channel_slice", "two_by_two"}]


@pytest.mark.parametrize("case", OPCHECK, ids=lambda case: case.name)
@every_impl
def test_opcheck(case, impl, forced):
    t = case.inputs(torch.float32)
    torch.library.opcheck(torch.ops.bitfast.stem_pool, (t["x"].clone().requires_grad_(),))
    torch.library.opcheck(torch.ops.bitfast.stem_pool, (t["x"],))
    torch.library.opcheck(torch.ops.bitfast.stem_pool_with_index, (t["x"],))
    _, index = torch.ops.bitfast.stem_pool_with_index(t["x"])
    args = (t["dy"], index, *case.shape[2:], case.layout == "channels_last")
    torch.library.opcheck(torch.ops.bitfast.stem_pool_backward, args)


@every_layout
def test_compiles_whole_and_trains(layout):
    x = torch.randn(2, 16, 9, 8).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()

    def loss(x):
        return stem_pool(x * 2).square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    (want,) = torch.autograd.grad(loss(x), x)
    (got,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), loss(x))


def test_compiles_for_any_size():
    compiled = torch.compile(lambda x: stem_pool(x), fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((8, 8), (9, 12), (31, 7)):
        t = {"x": torch.randn(2, 4, *size), "dy": torch.randn(2, 4, (size[0] + 1) // 2, (size[1] + 1) // 2)}
        leaf = t["x"].requires_grad_()
        y = compiled(leaf)
        assert torch.equal(y, stem_pool(leaf))
        assert torch.equal(torch.autograd.grad(y, leaf, t["dy"])[0], run(t)["dx"])


@every_case
@every_dtype
def test_bit_equal_for_any_threads_and_again(case, dtype, threads):
    t = case.inputs(dtype)
    results = []
    for count in (1, 2, 3, 3):
        threads(count)
        results.append(run(t))
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


@every_layout
def test_large_results_are_shared_between_threads(layout, threads):
    x = torch.randn(2, 40, 90, 91).contiguous(memory_format=LAYOUTS[layout])
    t, results = {"x": x, "dy": torch.randn(2, 40, 45, 46)}, []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(run(t))
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())
    assert torch.equal(results[0]["dx"], defined(t, torch.float32)["dx"])


ISAS = {"DEFAULT": ["baseline"], "AVX2": ["baseline", "avx2"], "AVX512": ["baseline", "avx2", "avx512"]}
ALL_RESULTS = """
import sys
sys.path.insert(0, {tests!r})
import torch
from cases import STEM_POOL
from test_stem_pool import DTYPES, run
torch.save([run(case.inputs(dtype)) for case in STEM_POOL for dtype in DTYPES], {path!r})
"""


@pytest.mark.parametrize("isa", ISAS[torch.backends.cpu.get_cpu_capability()])
def test_bit_equal_for_any_instruction_set(isa, tmp_path):
    code = ALL_RESULTS.format(tests=os.path.dirname(__file__), path=str(tmp_path / "results.pt"))
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "BITFAST_CPU_ISA": isa}, check=True)
    results = iter(torch.load(tmp_path / "results.pt"))
    for case in STEM_POOL:
        for dtype in DTYPES:
            expected = run(case.inputs(dtype))
            assert all(torch.equal(value, expected[name]) for name, value in next(results).items()), case.name


def test_reference_is_differentiable():
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(reference.forward(x, True)[0].sum(), x)
    (h,) = torch.autograd.grad(stem_pool(x).sum(), x)
    assert torch.equal(g, h)


X = torch.zeros(2, 8, 4, 4)
BAD = {
    "not 4-D": (ValueError, r"\(2, 8, 4\)", X[..., 0]),
    "no pixels": (ValueError, r"\(2, 8, 0, 4\)", X[:, :, :0]),
    "no channels": (ValueError, r"\(2, 0, 4, 4\)", X[:, :0]),
    "dtype": (TypeError, "torch.int32", X.int()),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_what_it_saw(name):
    error, message, x = BAD[name]
    with pytest.raises(error, match=message):
        stem_pool(x)


DY, INDEX = torch.zeros(2, 8, 2, 2), torch.zeros(2, 8, 2, 2, dtype=torch.uint8)
BAD_NATIVE = {
    "shape of index": ("shape of dy", (DY, INDEX[:1], 4, 4, False)),
    "dtype of index": ("uint8", (DY, INDEX.int(), 4, 4, False)),
    "size": ("half", (DY, INDEX, 5, 4, False)),
    "layout": ("dense in the layout", (DY, INDEX, 4, 4, True)),
    "dtype of dy": ("bfloat16", (DY.half(), INDEX, 4, 4, False)),
}


@pytest.mark.parametrize("name", BAD_NATIVE)
def test_native_refuses_what_would_leave_memory(name):
    message, args = BAD_NATIVE[name]
    stem_pool(X)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bitfast_native.stem_pool_backward(*args)
