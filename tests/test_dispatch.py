"""Backends: what is asked for is what runs, and what cannot run says why."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fastgan
import fastgan.functional as F
from fastgan.functional import instance_norm
from fastgan.kernels import dispatch


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_selected", {})
    monkeypatch.setattr(dispatch, "_fallback_logged", set())


def test_use_backend_nests_and_restores() -> None:
    before = dispatch.requested_backend()
    with fastgan.use_backend("reference"):
        assert dispatch.requested_backend() == "reference"
        with fastgan.use_backend("auto"):
            assert dispatch.requested_backend() == "auto"
        assert dispatch.requested_backend() == "reference"
    with pytest.raises(RuntimeError, match="inside"), fastgan.use_backend("reference"):
        raise RuntimeError("inside")
    assert dispatch.requested_backend() == before


def test_use_backend_holds_for_one_thread() -> None:
    seen = []
    with fastgan.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(dispatch.requested_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_unknown_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, triton, native, reference, got 'cuda'"):
        fastgan.use_backend("cuda").__enter__()
    monkeypatch.setenv("FASTGAN_BACKEND", "fast")
    with pytest.raises(fastgan.BackendError, match=r"FASTGAN_BACKEND must be one of .*, got 'fast'"):
        F.instance_norm_act(torch.randn(1, 1, 2, 2))


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_BACKEND", "reference")
    assert dispatch.select("instance_norm_act", torch.randn(1, 1, 2, 2)) == "reference"
    with fastgan.use_backend("auto"):
        assert dispatch.requested_backend() == "auto"


def test_explicit_choice_that_cannot_serve_says_why(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_load", lambda backend, stem: "the moon is in the wrong phase")
    with (
        fastgan.use_backend("native"),
        pytest.raises(
            fastgan.BackendError,
            match="backend 'native' cannot serve instance_norm_act: the moon is in the wrong phase",
        ),
    ):
        F.instance_norm_act(torch.randn(1, 1, 2, 2))


def test_a_trace_records_the_reference(fresh: None) -> None:
    x = torch.randn(1, 1, 4, 4)
    kinds = {node.kind() for node in torch.jit.trace(F.instance_norm_act, x).graph.nodes()}
    assert all(kind.startswith(("aten::", "prim::")) for kind in kinds)
    with fastgan.use_backend("native"), pytest.raises(fastgan.BackendError, match=r"torch\.jit\.trace records"):
        torch.jit.trace(F.instance_norm_act, x)


def test_an_onnx_export_records_the_reference(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = fastgan.nn.InstanceNormAct2d(1), torch.randn(1, 1, 4, 4)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    # An export that fails leaves a hook for all modules behind, which torch.compile refuses (PyTorch 2.11).
    monkeypatch.setattr(torch.nn.modules.module, "_global_buffer_registration_hooks", OrderedDict())
    assert "fastgan" not in str(torch.export.export(model, (x,)).graph)
    with fastgan.use_backend("native"), pytest.raises(fastgan.BackendError, match=r"torch\.onnx\.export records"):
        torch.export.export(model, (x,))
    with fastgan.use_backend("native"):
        F.instance_norm_act(x)  # as a program of one's own calls it meanwhile


def test_a_symbolic_trace_records_one_call() -> None:
    class Loss(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return F.gradient_norm_penalty(F.instance_norm_act(a), target=2.0) + F.weighted_l1([(a, b, 3.0)])

    graph, a, b = torch.fx.symbolic_trace(Loss()), torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    called = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert {F.gradient_norm_penalty, F.instance_norm_act, F.weighted_l1} <= called
    assert torch.equal(graph(a, b), Loss()(a, b))


def test_auto_falls_back_and_says_why_once(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatch, "_load", lambda backend, stem: "the moon is in the wrong phase")
    x = torch.randn(2, 3, 4, 5)
    with caplog.at_level(logging.WARNING, logger="fastgan"), fastgan.use_backend("auto"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            y = F.instance_norm_act(x.to(dtype))
    assert y.dtype == torch.bfloat16
    assert [record.getMessage() for record in caplog.records] == [
        "instance_norm_act falls back to plain PyTorch on cpu (native: the moon is in the wrong phase)"
    ]


def test_missing_extension_is_a_reason_not_a_crash(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    dispatch._load.cache_clear()
    monkeypatch.setattr(dispatch.importlib, "import_module", fail)
    try:
        call = dispatch.Call("instance_norm_act", "cpu", torch.float32)
        assert "libgomp.so.1" in str(dispatch.why_not("native", call))
    finally:
        dispatch._load.cache_clear()


def test_a_machine_where_triton_launches_nothing_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    from fastgan.kernels.triton import _launch

    class WithoutCompiler:
        @property
        def active(self) -> None:
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton.runtime, "driver", WithoutCompiler())
    monkeypatch.setattr(_launch, "INTERPRETED", False)
    _launch._no_launcher.cache_clear()
    try:
        for operator in ("instance_norm_act", "weighted_l1", "interpolate", "gradient_norm_penalty"):
            reason = dispatch.why_not("triton", dispatch.Call(operator, "cuda", torch.float32))
            assert "Failed to find C compiler" in str(reason)
        monkeypatch.setattr(torch.version, "hip", "7.1")
        assert "ROCm" in str(dispatch.why_not("triton", dispatch.Call("weighted_l1", "cuda", torch.float32)))
    finally:
        _launch._no_launcher.cache_clear()


def test_backward_runs_on_the_forward_s_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd's threads do not see use_backend, so the choice must travel with the graph."""
    if dispatch.why_not("native", dispatch.Call("instance_norm_act", "cpu", torch.float32)):
        pytest.skip("the native extension is not built")
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    torch.autograd.grad(F.instance_norm_act(x).sum(), x, create_graph=True)  # raw operators keep the kernels they find
    used = []
    for operator in (instance_norm._forward, instance_norm._backward, instance_norm._double_backward):
        spy = lambda *args, kernel=operator.kernel: used.append(args[-1]) or kernel(*args)
        monkeypatch.setattr(operator, "kernel", spy)
    native = dispatch.kernels("native", "instance_norm")
    for kernel in (native.forward, native.backward):  # without the raw operator where nothing listens
        called = lambda *args, kernel=kernel, **kw: used.append("native") or kernel(*args, **kw)
        monkeypatch.setattr(native, kernel.__name__, called)
    with fastgan.use_backend("native"):
        y = F.instance_norm_act(x)
    with fastgan.use_backend("reference"):
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        torch.autograd.grad(g.square().sum(), x)
    assert set(used) == {"native"}
    assert len(used) == 4  # forward, backward, double backward, and the backward of y in the second derivative


def test_a_tensor_that_has_left_its_transform_is_what_it_wraps() -> None:
    left: list[torch.Tensor] = []
    x, other = torch.randn(2, 3), torch.randn(2, 3)
    torch.func.grad(lambda t: left.append(t) or t.sum())(x)
    calls: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda t: F.instance_norm_act(t[None]), lambda t: F.weighted_l1([(t, other, 2.0)]),
        lambda t: F.interpolate(t, other, torch.ones(2)), F.gradient_norm_penalty,
        lambda t: F.wasserstein_1d(t, other),
    ]  # fmt: skip
    for recording in (False, True):
        with torch.set_grad_enabled(recording):
            for call in calls:
                assert torch.equal(call(left[0]), call(x))


def test_fake_tensors_pass_no_kernel() -> None:
    """What skips torch.library in eager mode must not skip it here: a fake tensor has no memory."""
    with FakeTensorMode():
        x, y = torch.empty(2, 3, requires_grad=True), torch.empty(2, 3)
        results = (
            F.instance_norm_act(x[None]), F.weighted_l1([(x, y, 1.0)]), F.interpolate(x, y),
            F.gradient_norm_penalty(x), F.wasserstein_1d(x, y, p=2), F.sliced_wasserstein(x, y, n_projections=4),
        )  # fmt: skip
        for result in results:
            (grad,) = torch.autograd.grad(result.sum(), x)
            assert isinstance(grad, FakeTensor)
            assert grad.shape == x.shape


def _operators_in_graph(function: Callable[..., torch.Tensor], *args: torch.Tensor) -> set[str]:
    """Our raw operators in the graph that inductor would get."""
    found: set[str] = set()

    def compiler(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        found.update(str(node.target) for node in graph.graph.nodes if str(node.target).startswith("fastgan"))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))(*args).sum().backward()
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CPU's choice")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.interpolate(x, x.cos()),
        lambda x: F.gradient_norm_penalty(x),
        lambda x: F.weighted_l1([(x, x.cos(), 2.0)]),
    ],
    ids=["interpolate", "gradient_norm_penalty", "weighted_l1"],
)
def test_small_operators_are_left_to_the_compiler(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    few, many = torch.randn(4, 5, requires_grad=True), torch.randn(2**19 // 8, 8, requires_grad=True)
    assert not _operators_in_graph(lambda x: function(x), few)
    assert _operators_in_graph(lambda x: function(x), many)
    with fastgan.use_backend("native"):
        assert _operators_in_graph(lambda x: function(x), few)
