import subprocess
import sys

import pytest
import torch

from bitfast.errors import UsageError
from bitfast.ops import _dispatch, group_norm_act, report, use_impl
from bitfast.ops._dispatch import Impl


@pytest.fixture
def toy(monkeypatch):
    """An operator "toy": fast takes only fp32, other_device is not for CPU tensors, plain takes anything."""
    monkeypatch.setattr(_dispatch, "_table", dict(_dispatch._table))
    monkeypatch.setattr(_dispatch, "_said", set())
    _dispatch.register(
        "toy",
        Impl("other_device", lambda: "other_device", lambda x: "", devices=("cuda",)),
        Impl("fast", lambda: "fast", lambda x: "" if x.dtype == torch.float32 else f"no {x.dtype}", devices=("cpu",)),
        PLAIN,
    )
    yield
    _dispatch._forced_by_environment.cache_clear()


PLAIN = Impl("plain", lambda: "plain", _dispatch.anything)
SINGLE, HALF = torch.zeros(1), torch.zeros(1, dtype=torch.float16)


def test_first_that_fits_runs_and_the_refusal_is_said_once(toy, capsys):
    assert _dispatch.select("toy", SINGLE)() == "fast"
    assert capsys.readouterr().err == ""
    assert [_dispatch.select("toy", HALF)() for _ in range(3)] == ["plain"] * 3
    assert capsys.readouterr().err == "bitfast: toy runs as plain, not fast: no torch.float16\n"


def test_forced_runs_or_raises(toy):
    with use_impl("toy", "plain"):
        assert _dispatch.select("toy", SINGLE)() == "plain"
        with use_impl("toy", "fast"):
            assert _dispatch.select("toy", SINGLE)() == "fast"
            with pytest.raises(UsageError, match="toy=fast.*no torch.float16"):
                _dispatch.select("toy", HALF)
        assert _dispatch.select("toy", SINGLE)() == "plain"
    with use_impl("toy", "other_device"), pytest.raises(UsageError, match="made for cuda"):
        _dispatch.select("toy", SINGLE)
    assert _dispatch.select("toy", SINGLE)() == "fast"


def test_forced_by_environment(toy, monkeypatch):
    monkeypatch.setenv("BITFAST_IMPL", "toy=plain, group_norm=reference")
    _dispatch._forced_by_environment.cache_clear()
    assert _dispatch.select("toy", SINGLE)() == "plain"
    with use_impl("toy", "fast"):
        assert _dispatch.select("toy", SINGLE)() == "fast"


@pytest.mark.parametrize(
    ("value", "message"),
    [("toy", "op=implementation"), ("toy=quick", "other_device, fast, plain"), ("tyo=fast", "no operator 'tyo'")],
)
def test_bad_environment_raises(toy, monkeypatch, value, message):
    monkeypatch.setenv("BITFAST_IMPL", value)
    _dispatch._forced_by_environment.cache_clear()
    with pytest.raises(UsageError, match=message):
        _dispatch.select("toy", SINGLE)


def test_unknown_names_raise():
    with pytest.raises(UsageError, match="no operator 'norm'"), use_impl("norm", "reference"):
        pass
    with pytest.raises(UsageError, match="native, cuda, triton, reference"), use_impl("group_norm", "cudnn"):
        pass


def test_report_says_why(toy):
    rows = {row.op: row for row in report("cpu", torch.float16)}
    assert rows["toy"].impl == "plain" and "not fast: no torch.float16" in rows["toy"].why
    assert rows["group_norm"].impl == "reference" and "float16" in rows["group_norm"].why
    with use_impl("group_norm", "reference"):
        assert {row.op: row.why for row in report()}["group_norm"] == "forced"


def test_choice_is_made_at_run_time_under_compile():
    x, w, b = torch.randn(1, 32, 4, 4), torch.ones(32), torch.zeros(32)
    compiled = torch.compile(lambda: group_norm_act(x, w, b), fullgraph=True, backend="aot_eager")
    compiled()
    with use_impl("group_norm", "native"), pytest.raises(UsageError, match="float16"):
        group_norm_act(x.half(), w, b)
    with use_impl("group_norm", "reference"):
        expected = group_norm_act(x, w, b)
        assert torch.equal(compiled(), expected)


def test_without_triton():
    """Importing and running on the CPU needs no triton, and its implementations say that it is not there."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from bitfast.ops import _dispatch, group_norm_act\n"
        "x = torch.ones(1, 32, 2, 2); group_norm_act(x, torch.ones(32), torch.ones(32))\n"
        "print(_dispatch.implementation('group_norm', 'triton').supports(x))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "triton is not installed (pip install triton)\n"


def test_the_cpu_loads_no_kernels_of_triton():
    code = (
        "import sys, torch; from bitfast.ops import group_norm_act\n"
        "group_norm_act(torch.ones(1, 32, 2, 2), torch.ones(32), torch.ones(32))\n"
        "assert not [name for name in sys.modules if name.startswith('bitfast') and '.triton_' in name]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_on_request(toy):
    _dispatch.register("toy", Impl("asked", lambda: "asked", lambda x: "", ("cuda",), on_request=("cpu",)), PLAIN)
    assert _dispatch.select("toy", SINGLE)() == "plain"
    with use_impl("toy", "asked"):
        assert _dispatch.select("toy", SINGLE)() == "asked"
        assert {row.op: row.why for row in report()}["toy"] == "forced"
