"""What the benchmarks rest on: passes, memory, counted calls and profiled parts are what they say. Nothing is timed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fastgan.functional as F
from benchmarks import harness, model_calls, profile_step
from fastgan.models import build_discriminator, build_generator


def test_passes_are_the_derivatives() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    cube = lambda x: (x**3).sum(1)
    (y,) = harness.passes(cube, [x], "forward")()
    torch.testing.assert_close(y, (x**3).sum(1))
    torch.manual_seed(1)
    seed = torch.randn(3).to(x)
    (first,) = harness.passes(cube, [x], "forward + backward")()
    torch.testing.assert_close(first, 3 * x**2 * seed[:, None])
    torch.manual_seed(1)
    seed, cotangent = torch.randn(3).to(x), torch.randn(3, 5).to(x)
    of_seed, of_x = harness.passes(cube, [x], "double backward")()
    torch.testing.assert_close(of_seed, (3 * x**2 * cotangent).sum(1))
    torch.testing.assert_close(of_x, 6 * x * seed[:, None] * cotangent)


def test_wrong_results_are_refused() -> None:
    right = torch.ones(100)
    harness.close((right + 1e-6,), (right,), 1e-4)
    for wrong in (right + 1e-2, right * float("nan")):
        with pytest.raises(AssertionError, match="wrong by"):
            harness.close((wrong,), (right,), 1e-4)


def test_peak_memory_is_that_of_results_and_temporaries() -> None:
    x = torch.randn(1 << 18)
    assert harness.peak_bytes(lambda: x.relu()) == x.nbytes
    assert harness.peak_bytes(lambda: x.exp().sin().cos()) == 2 * x.nbytes  # each frees the one before the last


def test_contestants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples of all lie between one another's, however many each has."""
    calls: list[str] = []

    class Samples:
        median = 1.0

    def contestant(name: str, loops: int, rounds: int) -> harness._Contestant:
        stats = SimpleNamespace(stats=Samples(), update=lambda seconds: calls.append(f"{name} sampled"))
        benchmark = SimpleNamespace(stats=stats, extra_info={})
        return harness._Contestant(benchmark, lambda: calls.append(name), 1e-3, loops, rounds, None)

    monkeypatch.setattr(harness, "_waiting", [contestant("a", 2, 2), contestant("b", 1, 3)])
    harness.take_turns()
    a, b = ["a", "a", "a", "a sampled"], ["b", "b", "b sampled"]  # the first call warms the caches
    assert calls == [*b, *a, *b, *a, *b]
    assert harness._waiting == []


def test_quantiles() -> None:
    assert harness.quantiles([5.0, 1.0, 3.0, 2.0, 4.0, 0.0]) == {"p20": 1.0, "p50": 2.0, "p80": 4.0}


def test_an_unsupported_contestant_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "UNSUPPORTED", [])
    words = {"operator": "norm", "case": "a", "contestant": "compile", "reason": "cannot"}
    with pytest.raises(pytest.skip.Exception, match="cannot"):
        harness.unsupported(**words)
    assert [words] == harness.UNSUPPORTED


def test_the_counted_calls_are_those_of_the_networks() -> None:
    """Two joined passes and two of one image through either kind of network's norms; every pair; one penalty each."""
    found = model_calls.collect()
    cyclegan, critics, *gans = found.values()
    norms = {call: count for call, count in cyclegan.items() if call.operator == "instance_norm_act"}
    generator, discriminator = build_generator("resnet_9blocks"), build_discriminator("basic")
    count = lambda network: sum(isinstance(m, nn.InstanceNorm2d) for m in network.modules())
    assert sum(norms.values()) == 4 * count(generator) + 4 * count(discriminator)
    assert sum(norms.values()) == 2 * sum(count for call, count in norms.items() if call.tensors[0].sizes[0] == 2)
    assert not any(call.twice for call in norms)
    # Nine blocks: each ends in a residual, all but the last pad for the next one.
    residual = [count for call, count in norms.items() if call.tensors[3] is not None]
    assert sorted(residual) == [2, 2, 2 * 8, 2 * 8]
    (pairs,) = (call for call in cyclegan if call.operator == "weighted_l1")
    assert len(pairs.tensors) == 8
    assert dict(pairs.settings)["weights"] == (10.0, 10.0, 5.0, 5.0)
    twice = sum(count for call, count in critics.items() if call.twice)
    assert twice == 2 * count(discriminator)
    for calls in (critics, *gans):
        times = 2 if calls is critics else 1
        operators = [call.operator for call in calls]
        for name in ("interpolate", "gradient_norm_penalty"):
            assert operators.count(name) == 1
            assert next(n for call, n in calls.items() if call.operator == name) == times


def test_a_shape_makes_the_tensor_it_was_taken_from() -> None:
    padded = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    interior = padded[..., 1:-1, 1:-1]
    shape = model_calls.Shape.of(interior)
    made = shape.tensor()
    assert made.shape == interior.shape
    assert made.stride() == interior.stride()
    assert shape.nbytes == interior.numel() * 4
    assert str(shape) == "2x8x4x4 channels_last"


def event(name: str, parent: Any = None) -> Any:
    return SimpleNamespace(name=name, cpu_parent=parent)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("aten::convolution_backward", "convolution backward"),
        ("aten::mkldnn_convolution", "convolution forward"),
        ("aten::addmm", "matrix product"),
        ("fastgan::instance_norm_act_backward", "norm"),
        ("aten::native_batch_norm_backward", "norm"),
        ("fastgan::gradient_norm_penalty_forward", "penalty"),
        ("aten::linalg_vector_norm", "penalty"),
        ("fastgan::weighted_l1_forward", "losses"),
        ("aten::reflection_pad2d_backward", "padding"),
        ("aten::threshold_backward", "activation"),
        ("aten::copy_", "copies"),
        ("aten::add_", "additions"),
        ("aten::addmm_", "matrix product"),
        ("autograd::engine::evaluate_function: ReluBackward0", None),
    ],
)
def test_parts_of_a_step(name: str, part: str | None) -> None:
    assert profile_step.part_of(event(name)) == part
    optimizer = event("Optimizer.step#Adam.step")
    assert profile_step.part_of(event(name, event("aten::_fused_adam_", optimizer))) == "optimizer"


def test_our_operators_are_seen_by_the_profiler() -> None:
    conv = nn.Conv2d(3, 4, 3)
    adam = torch.optim.Adam(conv.parameters())

    def step() -> None:
        F.instance_norm_act(conv(torch.randn(2, 3, 8, 8)), reflect_pad=1).square().mean().backward()
        adam.step()

    step()
    parts, whole = profile_step.breakdown(step)
    assert sum(parts.values()) < whole
    assert {"convolution forward", "convolution backward", "norm", "optimizer", "losses"} <= parts.keys()
    assert "padding" not in parts
    assert all(seconds > 0 for seconds in parts.values())


def test_parts_and_the_rest_are_the_whole_step() -> None:
    x = torch.randn(64, 64)
    (found,) = profile_step.compare({"one": lambda: x @ x}).values()
    assert found["parts"].keys() == {"matrix product", profile_step.REST}
    assert sum(found["parts"].values()) == pytest.approx(found["step"])
