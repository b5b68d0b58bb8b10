"""The Triton kernels of the stem's pool: through the interpreter, or with `-m gpu` on a GPU."""

import pytest
import torch
from cases import LAYOUTS, STEM_POOL, StemPoolCase
from test_stem_pool import defined, run
from triton_lane import on, stored

from bitfast.errors import UsageError
from bitfast.numerics import assert_matches
from bitfast.ops import stem_pool, use_impl
from bitfast.ops._triton import recorded
from bitfast.ops.stem_pool import reference, triton_impl

LOW = [torch.bfloat16, torch.float16]
FEW = {"stem_32px", "equal_inputs", "equal_inputs_contiguous", "x3_192", "one_row", "empty_batch"}
# More channels than a block, and a part of one; windows of one program in two images.
CASES = [*STEM_POOL, StemPoolCase("x4_256", (1, 256, 7, 8), levels=2), StemPoolCase("channels_100", (3, 100, 5, 3))]

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def named(value):
    return getattr(value, "name", None) or str(value).removeprefix("torch.")


@pytest.fixture(autouse=True)
def triton():
    with use_impl("stem_pool", "triton"), use_impl("stem_pool_backward", "triton"):
        yield


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in CASES] + [(case, dtype) for case in CASES if case.name in FEW for dtype in LOW],
    ids=named,
)
def test_matches_definition_and_saves_what_the_reference_does(case, dtype, triton_device):
    t = case.inputs(dtype)
    got, truth, baseline = run(on(triton_device, t)), defined(t, torch.float64), defined(t, dtype)
    for name, value in got.items():
        assert_matches(value, truth[name], baseline[name], name=name)
        assert case.shape[0] == 0 or value.is_contiguous(memory_format=LAYOUTS[case.layout]), name
    assert torch.equal(got["y"].double().cpu(), truth["y"])
    y, index = torch.ops.bitfast.stem_pool_with_index(on(triton_device, t["x"]))
    _, expected = reference.forward(t["x"], True)
    assert torch.equal(index.cpu(), expected) and torch.equal(y, got["y"])
    exact = reference.backward(t["dy"].float(), expected, *case.shape[2:], case.layout == "channels_last")
    assert torch.equal(got["dx"].cpu(), stored(exact, dtype)), "sums are taken in the same order"


@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=named)
def test_nan_and_infinity_as_in_torch(layout, dtype, triton_device):
    x = torch.randn(1, 16, 9, 40)
    places = torch.randperm(x.numel())
    for i, value in enumerate((float("nan"), float("inf"), float("-inf"), -0.0)):
        x.flatten()[places[i * 300 : (i + 1) * 300]] = value
    x[0, 3] = float("-inf")
    x = x.to(dtype).contiguous(memory_format=LAYOUTS[layout])
    y, index = torch.ops.bitfast.stem_pool_with_index(on(triton_device, x))
    expected, expected_index = reference.forward(x, True)
    torch.testing.assert_close(y.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index.cpu(), expected_index) and y.isnan().any()


@every_layout
def test_zeros_of_the_frame_take_part(layout, triton_device):
    t = {"x": -torch.ones(1, 20, 6, 6).contiguous(memory_format=LAYOUTS[layout]), "dy": torch.ones(1, 20, 3, 3)}
    got = run(on(triton_device, t))
    assert (got["y"][:, :, 0] == 0).all() and (got["y"][:, :, 1:, 1:] == -1).all()
    assert got["dx"].sum() == 20 * 4, "nothing learns where the frame wins"


def test_bit_equal_again(triton_device):
    t = on(triton_device, next(c for c in CASES if c.name == "x3_192").inputs(torch.float32))
    first, second = run(t), run(t)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_in_another_layout(layout, triton_device):
    t = on(triton_device, next(c for c in CASES if c.name == "x3_192").inputs(torch.float32))
    want = run(t)["dx"]
    for dy in (t["dy"].contiguous(memory_format=LAYOUTS[layout]), t["dy"].transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(run(t | {"dy": dy})["dx"], want)


@pytest.mark.parametrize("name", ["one_column_contiguous", "channel_slice"])
def test_opcheck(name, triton_device):
    case = next(c for c in CASES if c.name == name)
    t = on(triton_device, case.inputs(torch.float32))
    torch.library.opcheck(torch.ops.bitfast.stem_pool, (t["x"].clone().requires_grad_(),))
    _, index = torch.ops.bitfast.stem_pool_with_index(t["x"])
    arguments = (t["dy"], index, *case.shape[2:], case.layout == "channels_last")
    torch.library.opcheck(torch.ops.bitfast.stem_pool_backward, arguments)


def test_one_launch_each_way_and_no_index_without_a_gradient():
    x = torch.empty(2, 64, 9, 9, device="meta").contiguous(memory_format=torch.channels_last)
    with recorded() as launches:
        y, index = triton_impl.forward(x, False)
        assert index is None and y.is_contiguous(memory_format=torch.channels_last)
        triton_impl.backward(y, torch.empty_like(y, dtype=torch.uint8), 9, 9, True)
    assert [launch.kernel for launch in launches] == [triton_impl.forward_kernel, triton_impl.backward_kernel]


def test_what_triton_cannot_take_is_said():
    with pytest.raises(UsageError, match="no torch.float64"):
        stem_pool(torch.randn(1, 4, 6, 6, dtype=torch.float64))


@pytest.mark.gpu
@every_layout
def test_more_than_2_31_elements(layout):
    """The last image of a batch that needs 64-bit offsets is as it is alone."""
    one = torch.randn(1, 64, 112, 112).half().contiguous(memory_format=LAYOUTS[layout])
    images = 2**31 // one.numel() + 2
    x = torch.zeros(images, 64, 112, 112, dtype=torch.half, device="cuda")
    x = x.contiguous(memory_format=LAYOUTS[layout])
    x[-1:] = one.cuda()
    want, (y, index) = reference.forward(one, True), torch.ops.bitfast.stem_pool_with_index(x)
    assert torch.equal(y[-1:].cpu(), want[0]) and torch.equal(index[-1:].cpu(), want[1])
    channels_last = layout == "channels_last"
    dx = torch.ops.bitfast.stem_pool_backward(y, index, 112, 112, channels_last)
    assert torch.equal(dx[-1:].cpu(), reference.backward(*want, 112, 112, channels_last))
