"""The Triton kernels: through the interpreter in the default lane, compiled and on the device in the lane `-m gpu`.

The interpreter cuts fp32 off to bf16 where a GPU rounds to the nearest: its baseline, alone, does so too.
"""

import pytest
import torch
from cases import GROUP_NORM, GroupNormCase
from test_group_norm import defined

from benchmarks.ops import group_norm_cuda
from bitfast.errors import UsageError
from bitfast.numerics import GN_EPS, assert_matches
from bitfast.ops import _dispatch, group_norm_act, use_impl
from bitfast.ops.group_norm import config, reference, triton_impl

DTYPES = [torch.float32, torch.bfloat16]
CHANNELS_LAST = torch.channels_last

# Those of the other layout are taken as channels_last, where that is another case.
CASES = list(
    {
        (case.shape, case.groups, case.act, case.residual, case.view): case._replace(layout="channels_last")
        for case in reversed(GROUP_NORM)
    }.values()
)
# Chunks of several tiles, waves of several samples and several waves, on a device of two multiprocessors; groups of
# more lanes than a tile has.
CHUNKED = [
    GroupNormCase("stem", (1, 64, 40, 40)),
    GroupNormCase("waves", (9, 64, 12, 14), residual=True),
    GroupNormCase("waves_x3", (5, 192, 17, 9), act="silu"),
    GroupNormCase("long_groups", (2, 2500, 3, 5), groups=1, residual=True),
    GroupNormCase("long_groups_one_pixel", (2, 4100, 1, 1), groups=2, act="none"),
    GroupNormCase("odd_groups", (2, 33, 13, 7), groups=11, residual=True),
    GroupNormCase("large_mean_residual", (1, 64, 30, 12), mean=1000.0, std=0.01, act="none", residual=True),
    GroupNormCase("nothing", (0, 64, 30, 30)),
]


def named(value):
    return getattr(value, "name", None) or str(value).removeprefix("torch.")


def every(cases):
    """Cases and dtypes; a large mean cannot be held in 16 bits."""
    pairs = [(case, dtype) for case in cases for dtype in DTYPES if not case.mean or dtype == torch.float32]
    pairs += [(case, torch.float16) for case in cases if case.name in {"x3_192", "one_pixel", "one_group", "waves_x3"}]
    return pytest.mark.parametrize(("case", "dtype"), pairs, ids=named)


def inputs(case, dtype, device):
    return {name: t if t is None else t.to(device) for name, t in case.inputs(dtype).items()}


def run(case, t):
    """Results and gradients of <y, dy> + <s, ds> by the operator."""
    leaves = {k: t[k].detach().requires_grad_() for k in ("x", "residual", "weight", "bias") if t[k] is not None}
    x, w, b = leaves["x"], leaves["weight"], leaves["bias"]
    out = group_norm_act(x, w, b, residual=leaves.get("residual"), groups=case.groups, act=case.act)
    out = out if case.residual else (out,)
    grads = torch.autograd.grad(out, list(leaves.values()), (t["dy"], t["ds"])[: len(out)])
    named = dict(zip("ys", out, strict=False)) | {f"d{k}": g for k, g in zip(leaves, grads, strict=True)}
    return {k: v.detach() for k, v in named.items()}


def run_way(way, case, t):
    """The same by the functions of one way."""
    forward, backward = (getattr(triton_impl, f"{name}_{way}") for name in ("forward", "backward"))
    x, w, b, r = t["x"], t["weight"], t["bias"], t["residual"]
    y, s, mean, rstd = forward(x, r, w, b, case.groups, GN_EPS, case.act)
    ds = t["ds"] if case.residual else None
    dx, dw, db = backward(t["dy"], ds, s, w, b, mean, rstd, case.groups, case.act)
    got = {"y": y, "dx": dx, "dweight": dw, "dbias": db}
    return got | ({"s": s, "dresidual": dx} if case.residual else {})


def check(case, t, dtype, got):
    cut_off = t["x"].device.type == "cpu" and dtype == torch.bfloat16
    check_exactly(case, t, dtype, got, defined_by_cutting_off(case, t) if cut_off else None)


def check_exactly(case, t, dtype, got, baseline=None):
    t = {name: v if v is None else v.cpu() for name, v in t.items()}
    truth = defined(case, t, torch.float64) | defined(case, t, torch.float64, grad=True)
    baseline = baseline or defined(case, t, dtype) | defined(case, t, dtype, grad=True)
    assert got.keys() == truth.keys() == baseline.keys()
    for name, value in got.items():
        assert_matches(value, truth[name], baseline[name], name=name)


def defined_by_cutting_off(case, t):
    """The definition in fp32, its images stored in bf16 by dropping the bits that bf16 does not have."""

    def cut_off(v):
        return (v.view(torch.int32) & ~0xFFFF).view(torch.float32)

    x, dy, ds = t["x"].float(), t["dy"].float(), t["ds"].float() if case.residual else None
    s = cut_off(x + t["residual"].float()) if case.residual else x
    y, _, mean, rstd = reference.forward(s, None, t["weight"], t["bias"], case.groups, GN_EPS, case.act)
    dx, dw, db = reference.backward(dy, ds, s, t["weight"], t["bias"], mean, rstd, case.groups, case.act)
    of = {"y": cut_off(y), "dx": cut_off(dx), "dweight": dw, "dbias": db}
    return of | ({"s": s, "dresidual": of["dx"]} if case.residual else {})


@pytest.fixture
def triton_impls():
    with use_impl("group_norm", "triton"), use_impl("group_norm_backward", "triton"):
        yield


@pytest.fixture
def two_multiprocessors(monkeypatch):
    monkeypatch.setattr(triton_impl, "multiprocessors", lambda device: 2)


@every(CASES)
def test_matches_definition(case, dtype, triton_device, triton_impls):
    t = inputs(case, dtype, triton_device)
    got = run(case, t)
    check(case, t, dtype, got)
    for name in {"y", "s", "dx", "dresidual"} & got.keys():
        assert got[name].is_contiguous(memory_format=CHANNELS_LAST), name


@every(CHUNKED)
@pytest.mark.parametrize("way", ["two_launches", "ticket"])
def test_large_images_match_definition(way, case, dtype, triton_device, two_multiprocessors):
    t = inputs(case, dtype, triton_device)
    check(case, t, dtype, run_way(way, case, t))


@pytest.mark.parametrize("case", [c for c in CASES if c.name in {"stage1_residual", "x3_192", "one_pixel"}], ids=named)
def test_ways_agree_and_are_bit_equal_again(case, triton_device, two_multiprocessors):
    t = inputs(case, torch.float32, triton_device)
    of = {}
    for way in ("one_pass", "two_launches", "ticket"):
        of[way], again = (run_way(way, case, t) for _ in range(2))
        assert all(torch.equal(of[way][name], again[name]) for name in again), way
    for name, value in of["ticket"].items():
        assert torch.equal(value, of["two_launches"][name]), name
        torch.testing.assert_close(value, of["one_pass"][name], msg=name)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in {"x3_192", "strided", "one_group"}], ids=named)
def test_opcheck(case, triton_device, triton_impls):
    t = inputs(case, torch.float32, triton_device)
    x, r = t["x"].clone().requires_grad_(), t["dy"].clone().requires_grad_()
    w, b = t["weight"].requires_grad_(), t["bias"].requires_grad_()
    settings = (case.groups, GN_EPS, case.act)
    torch.library.opcheck(torch.ops.bitfast.group_norm_act, (x, w, b, *settings))
    torch.library.opcheck(torch.ops.bitfast.add_group_norm_act, (x, r, w, b, *settings))
    with torch.no_grad():
        _, mean, rstd = torch.ops.bitfast.group_norm_act(x, w, b, *settings)
        dy, x, w, b = (v.detach() for v in (r, x, w, b))
        for ds in (None, r.detach()):
            arguments = (dy, ds, x, w, b, mean, rstd, case.groups, case.act)
            torch.library.opcheck(torch.ops.bitfast.group_norm_act_backward, arguments)


def test_trains_under_compile(triton_device, triton_impls):
    x = torch.randn(2, 64, 6, 6, device=triton_device).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    r, w, b = torch.randn_like(x).requires_grad_(), torch.randn(64, device=triton_device, requires_grad=True), None
    b = torch.randn(64, device=triton_device)

    def loss(x, r, w, b):
        y, s = group_norm_act(x, w, b, residual=r)
        assert y.is_contiguous(memory_format=CHANNELS_LAST)
        return (y * y + s).sum()

    want = torch.autograd.grad(loss(x, r, w, b), (x, r, w))
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x, r, w, b), (x, r, w))
    for g, h in zip(got, want, strict=True):
        torch.testing.assert_close(g, h)


def test_gradient_in_another_layout_is_copied_and_that_said_once(triton_device, triton_impls, capsys, monkeypatch):
    monkeypatch.setattr(_dispatch, "_said", set())
    x = torch.randn(2, 64, 5, 5, device=triton_device).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    w, b, dy = (torch.randn(shape, device=triton_device) for shape in (64, 64, (2, 64, 5, 5)))
    y = group_norm_act(x, w, b)
    (plain,) = torch.autograd.grad(y, x, dy.contiguous(memory_format=CHANNELS_LAST), retain_graph=True)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        (other,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        assert torch.equal(plain, other)
    (line,) = capsys.readouterr().err.splitlines()
    assert "group_norm_backward" in line and "channels_last" in line and "copied" in line


def test_not_finite_in_not_finite_out(triton_device, two_multiprocessors):
    x = torch.randn(2, 32, 8, 8, device=triton_device).contiguous(memory_format=CHANNELS_LAST)
    x[0, 3, 2, 2] = float("nan")
    x[1, 4, 0, 0] = float("inf")
    w, b = torch.ones(32, device=triton_device), torch.zeros(32, device=triton_device)
    for way in ("one_pass", "two_launches", "ticket"):
        y = getattr(triton_impl, f"forward_{way}")(x, None, w, b, 32, GN_EPS, "relu")[0]
        assert y[0, 3].isnan().all() and y[1, 4].isnan().all(), way
        assert y[0, :3].isfinite().all() and y[1, 5:].isfinite().all(), way


def test_outlier_in_the_first_pixel(triton_device, two_multiprocessors):
    x = torch.randn(1, 32, 15, 15, dtype=torch.float64)
    x[:, :, 0, 0] = 1e4
    w, b = torch.ones(32), torch.zeros(32)
    truth = reference.forward(x.float().double(), None, w.double(), b.double(), 32, GN_EPS, "none")[0]
    baseline = reference.forward(x.float(), None, w, b, 32, GN_EPS, "none")[0]
    x, w, b = (t.to(triton_device, torch.float32) for t in (x, w, b))
    x = x.contiguous(memory_format=CHANNELS_LAST)
    for way in ("one_pass", "two_launches", "ticket"):
        y = getattr(triton_impl, f"forward_{way}")(x, None, w, b, 32, GN_EPS, "none")[0]
        assert_matches(y, truth, baseline, name=way)


def test_what_it_cannot_take_is_named(triton_device, triton_impls):
    w, b = (torch.ones(64, device=triton_device) for _ in range(2))
    x = torch.zeros(1, 64, 4, 4, device=triton_device)
    with pytest.raises(UsageError, match="group_norm=triton.*not channels_last"):
        group_norm_act(x, w, b)
    with pytest.raises(UsageError, match="group_norm=triton.*no torch.float64"):
        group_norm_act(x.double().contiguous(memory_format=CHANNELS_LAST), w.double(), b.double())


def test_a_cuda_tensor_gets_the_kernels():
    for name in ("group_norm", "group_norm_backward"):
        impls = [impl for impl in _dispatch._table[name] if "cuda" in impl.devices]
        assert [impl.name for impl in impls] == ["triton", "reference"]
        assert impls[0].supports(torch.zeros(1, 64, 4, 4).contiguous(memory_format=CHANNELS_LAST)) == ""


@pytest.mark.parametrize("width", [0.5, 1, 2, 3, 4])
def test_tiles_of_every_network(width):
    """Whole lines of a cache, no more elements than fit; every pixel in one chunk, results of all chunks in `parts`."""
    for channels in {int(64 * width * 2**i) for i in range(6)}:
        per_group = channels // 32
        for size in (1, 2, 3, 4, 7, 8, 14, 15, 28, 30, 56, 60, 112, 120, 240):
            for samples in (1, 8, 256):
                for way in ("forward", "backward"):
                    tile = config.one_pass(way, samples, size * size, channels, 32)
                    assert tile or size > 8
                    assert not tile or size < 56
                    if tile:
                        elements = tile.samples * tile.pixels * tile.groups * tile.lanes
                        assert elements <= config.ONE_PASS_ELEMENTS and tile.pixels >= size * size
                        assert tile.groups * per_group >= min(channels, config.LINE) and tile.lanes >= per_group
                cut = config.chunks(samples, size * size, channels, 32, 132)
                assert (cut.chunks - 1) * cut.chunk_pixels < size * size <= cut.chunks * cut.chunk_pixels
                assert cut.chunk_pixels % cut.pixels == 0 and cut.chunks <= cut.parts <= config.MOST_PARTS
                assert cut.groups * per_group >= min(channels, config.LINE) and cut.lanes >= per_group


@pytest.mark.parametrize("name", ["x3_192", "stage1_residual"])
def test_ways_that_the_benchmark_times(name, triton_device, two_multiprocessors):
    case = next(case for case in CASES if case.name == name)
    t = inputs(case, torch.float32, triton_device)
    found = group_norm_cuda.ways(*(t[k] for k in ("x", "residual", "weight", "bias", "dy", "ds")))
    found.pop("ours cuda", None)  # where the CUDA kernels run on the host, for other tests
    assert list(found) == ["ours one_pass", "ours two_launches", "ours ticket"]
    want = run_way("one_pass", case, t)
    for forward, backward in found.values():
        torch.testing.assert_close(forward(), want["y"])
        torch.testing.assert_close(backward(), want["dx"])


@pytest.mark.gpu
@pytest.mark.parametrize("residual", [False, True])
def test_more_than_two_to_the_31_elements(residual):
    shape = (180, 1024, 112, 112)  # 2.3e9
    x = torch.randn(shape[1:], device="cuda", dtype=torch.bfloat16)[None].expand(shape)
    x = x.contiguous(memory_format=CHANNELS_LAST)
    w, b = torch.rand(1024, device="cuda") + 0.5, torch.randn(1024, device="cuda")
    y, s, mean, rstd = triton_impl.forward(x, x if residual else None, w, b, 32, GN_EPS, "relu")
    for way in (y, s, mean, rstd):
        assert torch.equal(way[-1], way[0]) and torch.equal(way[100], way[0])
    case = GroupNormCase("last", (1, *shape[1:]), residual=residual)
    t = {"x": x[-1:], "residual": x[-1:] if residual else None, "weight": w, "bias": b, "dy": x[-1:], "ds": x[-1:]}
    dx, dw, db = triton_impl.backward(x, x if residual else None, s, w, b, mean, rstd, 32, "relu")
    assert torch.equal(dx[-1], dx[0])
    got = {"y": y[-1:], "dx": dx[-1:], "dweight": dw / shape[0], "dbias": db / shape[0]}
    check(case, t, torch.bfloat16, got | ({"s": s[-1:], "dresidual": dx[-1:]} if residual else {}))


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["one_pass", "two_launches", "ticket"])
def test_captured_in_a_graph(way):
    case = GroupNormCase("captured", (16, 256, 14, 14), residual=True)
    t = inputs(case, torch.bfloat16, "cuda")
    run_way(way, case, t)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_way(way, case, t)
    t["x"].neg_()
    graph.replay()
    for name, value in run_way(way, case, t).items():
        assert torch.equal(captured[name], value), name


@pytest.mark.gpu
def test_mixed_devices_are_refused():
    x, w = torch.zeros(1, 64, 4, 4, device="cuda"), torch.zeros(64, device="cuda")
    for arguments, residual, name in (((x, w.cpu(), w), None, "weight"), ((x, w, w), x.cpu(), "residual")):
        with pytest.raises(ValueError, match=f"{name} is on cpu; it must be on cuda:0, where x is"):
            group_norm_act(*arguments, residual=residual)
