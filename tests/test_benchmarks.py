"""What the benchmarks rest on: passes, memory, counted calls and profiled parts are what they say. Nothing is timed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fastgan.functional as F
from benchmarks import conftest, harness, model_calls, profile_step, report, scaling, test_cyclegan_step
from fastgan.kernels import dispatch
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


class Samples:
    """As much of pytest-benchmark's statistics as the harness uses."""

    median = 1.0

    def __init__(self) -> None:
        self.data: list[float] = []


class Benchmark:
    """As much of pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.group, self.extra_info = "", {}
        self.stats = SimpleNamespace(stats=Samples(), iterations=1, update=self.update)

    def pedantic(self, function: Callable[[], Any], rounds: int) -> None:
        for _ in range(rounds):
            function()

    def update(self, seconds: float) -> None:
        self.stats.stats.data.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The harness's, which stands still unless a test moves it on. Four minutes are left."""
    clock = SimpleNamespace(now=1000.0)
    read = lambda: clock.now
    monkeypatch.setattr(harness, "time", SimpleNamespace(time=read, perf_counter=read))
    monkeypatch.setattr(conftest, "time", SimpleNamespace(time=read))
    monkeypatch.setattr(harness, "UNTIL", clock.now + 240)
    monkeypatch.setattr(harness, "to_come", 1)
    monkeypatch.setattr(harness, "BUDGET", 0.2)
    monkeypatch.setattr(harness, "_waiting", [])
    monkeypatch.setattr(harness, "LEFT_OUT", [])
    return clock


def test_contestants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples of all lie between one another's, however many each has."""
    calls: list[str] = []

    def contestant(name: str, loops: int, rounds: int) -> harness._Contestant:
        benchmark = Benchmark()
        benchmark.stats.update = lambda seconds: calls.append(f"{name} sampled")
        return harness._Contestant(benchmark, lambda: calls.append(name), 1e-3, loops, rounds, None)

    monkeypatch.setattr(harness, "_waiting", [contestant("a", 2, 2), contestant("b", 1, 3)])
    harness.take_turns()
    a, b = ["a", "a", "a", "a sampled"], ["b", "b", "b sampled"]  # the first call warms the caches
    assert calls == [*b, *a, *b, *a, *b]
    assert harness._waiting == []


def call_of(clock: SimpleNamespace, seconds: float) -> tuple[Callable[[Any], None], list[float]]:
    """A call that takes so long, and when each was made."""
    made: list[float] = []

    def run(_: Any) -> None:
        made.append(clock.now)
        clock.now += seconds

    return run, made


@pytest.mark.skipif(harness.DEVICE != "cpu", reason="of the CPU's way to measure")
@pytest.mark.parametrize(("seconds", "before", "samples"), [(3.0, 2, 3), (0.1, 5, 5), (0.01, 5, 20)])
def test_slow_calls_are_made_no_more_often_than_needed(
    clock: SimpleNamespace, seconds: float, before: int, samples: int
) -> None:
    """Checked, then warm and its memory watched, then timed: a training step takes seconds."""
    run, made = call_of(clock, seconds)
    benchmark, checked = Benchmark(), []
    harness.measure(
        benchmark, run, [None], operator="step", case="a", contestant="fastgan", check=lambda _: checked.append(1)
    )
    assert len(made) == before
    assert checked == [1]
    assert "peak_bytes" in benchmark.extra_info
    harness.take_turns()
    assert benchmark.stats.stats.data == pytest.approx([seconds] * samples)
    assert "late" not in benchmark.extra_info


def test_without_an_end_slow_calls_are_sampled_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "UNTIL", 1e9)
    assert harness.plan(3.0, harness.BUDGET) == (1, 3)
    monkeypatch.setattr(harness, "UNTIL", float("inf"))
    assert harness.plan(3.0, harness.BUDGET) == (1, 5)


@pytest.mark.skipif(harness.DEVICE != "cpu", reason="of the CPU's way to measure")
def test_a_late_session_takes_fewer_samples_and_says_so(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "to_come", 2000)  # half of 240 seconds, shared by as many
    run, _ = call_of(clock, 0.01)
    benchmark = Benchmark()
    harness.measure(benchmark, run, [None], operator="norm", case="a", contestant="numpy")
    harness.take_turns()
    assert len(benchmark.stats.stats.data) == 5
    assert benchmark.extra_info["late"] is True


def test_what_was_measured_is_kept_at_once(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And a report can be made of it, if the session is killed amid a line."""
    rows = tmp_path / "bench.rows.jsonl"
    monkeypatch.setattr(harness, "ROWS", str(rows))
    facts = {"device": "a device", "instructions": "AVX2", "versions": {"torch": "2.13"}, "threads": 2}
    monkeypatch.setattr(harness, "environment", lambda: facts)
    for name, seconds in (("fastgan", 1.0), ("eager", 3.0)):
        run, _ = call_of(clock, seconds)
        each = harness._Contestant(Benchmark(), lambda run=run: run(None), seconds, 1, 3, None)
        each.benchmark.extra_info.update(operator="norm", case="a", contestant=name)
        harness._waiting.append(each)
    harness.take_turns()
    rows.write_text(rows.read_text() + '{"extra_info": {"operator"')
    (tmp_path / "bench.json").write_text('{"scaling": {}}')
    results = json.loads(report.merge([rows]).read_text())
    assert [(row["contestant"], row["p50"], row["samples"]) for row in results["rows"]] == [
        ("fastgan", 1.0, 3), ("eager", 3.0, 3),
    ]  # fmt: skip
    assert results["device"] == "a device"
    assert results["scaling"] == {}
    assert results["left_out"] == [harness.ENDED]
    conftest.pytest_keyboard_interrupt()
    assert harness.LEFT_OUT == [harness.ENDED]


def test_a_compiled_contestant_is_compiled_whatever_came_before() -> None:
    import torch._dynamo.testing

    # As monkeypatch does it, nobody could read the setting afterwards.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False):
        conftest.pytest_sessionstart()
        function = lambda x: x.sin() * 2
        for n in range(2, 2 + torch._dynamo.config.recompile_limit + 2):
            counter = torch._dynamo.testing.CompileCounter()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
                run = harness.compiled(function)
            run(torch.randn(n))
            assert counter.frame_count == 1
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            [run(torch.randn(200 + n)) for n in range(100)]


def test_scaling_measures_the_device_while_the_host_runs_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that are launched slower than they run, on a device that waits as long as it was told to."""
    launch, runs = {"fastgan": 2e-4, "eager": 3e-4}, {"fastgan": 4e-6, "eager": 8e-6}
    called: list[str] = []

    def contestant(name: str) -> scaling.Run:
        return lambda: called.append(name) or (torch.ones(1),)

    def launched(call: Any) -> float:
        called.clear()
        call()
        return sum(launch[name] for name in called)

    def device(call: Any, launching: float = 0.0) -> float:
        host = launched(call)
        waits = 1e-4 + 1.5 * min(launching, 0.013)
        return max(sum(runs[name] for name in called), host - waits)

    monkeypatch.setattr(harness, "DEVICE", "cuda")
    monkeypatch.setattr(harness, "wall_seconds", launched)
    monkeypatch.setattr(harness, "device_seconds", device)
    found = scaling.compare({name: contestant(name) for name in runs})
    assert {name: taken["p50"] for name, taken in found.items()} == pytest.approx(runs)


def test_an_operator_that_plain_pytorch_serves_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a figure of PyTorch's under our name."""
    monkeypatch.setattr(harness.FALLBACKS, "messages", [])
    monkeypatch.setattr(dispatch, "_fallback_logged", set())
    monkeypatch.setattr(dispatch, "_selected", {})
    x = torch.randn(2, 3, device="meta")
    F.gradient_norm_penalty(x)
    (message,) = harness.FALLBACKS.messages
    assert message.startswith("gradient_norm_penalty falls back to plain PyTorch on meta")
    for name in ("copy_bandwidth", "peak_arithmetic"):
        monkeypatch.setattr(harness, name, lambda: 1.0)
    assert harness.environment()["fallbacks"] == [message]
    monkeypatch.setattr(harness, "LEFT_OUT", [])
    lines: list[str] = []
    conftest.pytest_terminal_summary(SimpleNamespace(section=lines.append, write_line=lines.append))
    assert lines[:2] == ["not measured on kernels of fastgan's", message]


def test_what_failed_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever phase: the samples are taken when the last contestant is torn down."""
    monkeypatch.setattr(harness, "FAILED", [])
    for name, failed in (("test_a[x]", True), ("test_a[x]", True), ("test_b", False), ("test_c", True)):
        conftest.pytest_runtest_logreport(SimpleNamespace(nodeid=f"benchmarks/test_l1.py::{name}", failed=failed))
    written: dict[str, Any] = {}
    monkeypatch.setattr(harness, "environment", dict)
    conftest.pytest_benchmark_update_json(None, [], written)
    assert written["failed"] == ["test_l1.py::test_a[x]", "test_l1.py::test_c"]


def test_a_step_is_profiled_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(backend: str, stem: str) -> Any:
        raise dispatch.BackendError("not built")

    monkeypatch.setattr(dispatch, "kernels", none)
    with profile_step.named_kernels():
        pass


def test_when_time_is_up_one_sample_each_is_enough(clock: SimpleNamespace) -> None:
    contestants = []
    for seconds, rounds in ((200.0, 3), (0.001, 3), (200.0, 3)):
        run, _ = call_of(clock, seconds)
        contestants.append(harness._Contestant(Benchmark(), lambda run=run: run(None), seconds, 1, rounds, None))
    harness._waiting[:] = contestants
    harness.take_turns()
    assert [len(each.benchmark.stats.stats.data) for each in contestants] == [1, 1, 1]
    assert all(each.benchmark.extra_info["late"] for each in contestants)


def test_what_compiles_whole_networks_comes_at_the_very_end() -> None:
    cases = [case for case, _ in test_cyclegan_step.CONTESTANTS]
    assert cases == sorted(cases, key=cases.index)
    assert [contestant for _, contestant in test_cyclegan_step.CONTESTANTS[-2:]] == [*test_cyclegan_step.COMPILED]


def test_no_epoch_of_cyclegan_ends_while_its_steps_are_measured() -> None:
    """At its end the learning rate falls, after a mean that waits for the device."""
    largest = max(case.get("batch_size", 1) for case in test_cyclegan_step.CASES.values())
    assert len(test_cyclegan_step.Images(4)) > 10_000 * largest


def item(name: str, file: str = "test_l1.py", contestant: str = "fastgan", **parameters: Any) -> Any:
    callspec = SimpleNamespace(params={"contestant": contestant, **parameters})
    return SimpleNamespace(
        name=f"{name}[{contestant}]", path=Path(file), callspec=callspec, nodeid=f"benchmarks/{file}::{name}"
    )


def test_contestants_are_neighbours_and_whole_steps_come_last() -> None:
    steps = [item("test_step", "test_cyclegan_step.py", name) for name in ("fastgan", "eager", "compile")]
    loss = [item("test_loss", contestant=name, shape=shape) for name in ("fastgan", "eager") for shape in (1, 2)]
    items = [*steps, *loss]
    conftest.pytest_collection_modifyitems(items)
    order = [loss[0], loss[2], loss[1], loss[3]]
    assert items == ([*order, *steps] if harness.DEVICE == "cpu" else [*steps[:2], *order, steps[2]])


def test_what_time_is_left_for_begins_and_the_rest_is_named(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case that has begun has some time to end; it would be worth nothing without its last contestants."""
    items = [item("test_a", contestant="fastgan"), item("test_a", contestant="eager"), item("test_b")]
    items += [item("test_step", "test_cyclegan_step.py", contestant) for contestant in ("eager", "compile")]
    for each in items:
        each.session = SimpleNamespace(items=items)
    clock.now = harness.UNTIL - 1
    conftest.pytest_runtest_setup(items[0])
    assert harness.to_come == 5
    for step, kept_back in ((items[3], harness.STEP), (items[4], harness.COMPILED_STEP)):
        clock.now = harness.UNTIL - kept_back - 1
        conftest.pytest_runtest_setup(step)
        conftest.pytest_runtest_setup(items[0])
        clock.now = harness.UNTIL - kept_back + 1
        with pytest.raises(pytest.skip.Exception, match="no time left"):
            conftest.pytest_runtest_setup(step)
    assert harness.COMPILED_STEP > harness.STEP
    conftest.pytest_runtest_setup(items[0])
    clock.now = harness.UNTIL + 1
    conftest.pytest_runtest_setup(items[1])
    with pytest.raises(pytest.skip.Exception, match="no time left"):
        conftest.pytest_runtest_setup(items[2])
    assert harness.LEFT_OUT[:2] == ["test_cyclegan_step.py::test_step"] * 2
    assert harness.LEFT_OUT[2:] == ["test_l1.py::test_b"]
    monkeypatch.setattr(harness.FALLBACKS, "messages", [])
    lines: list[str] = []
    conftest.pytest_terminal_summary(SimpleNamespace(section=lines.append, write_line=lines.append))
    assert lines[-1].splitlines() == harness.LEFT_OUT
    clock.now = harness.UNTIL + harness.GRACE + 1
    with pytest.raises(pytest.skip.Exception, match="no time left"):
        conftest.pytest_runtest_setup(items[1])


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


def test_our_operators_are_profiled_as_operators() -> None:
    """Not as a user's notes, to which the profiler charges no time of a GPU."""
    x = torch.randn(2, 3, 8, 8)
    with profile_step.named_kernels(), torch.profiler.profile() as profiled:
        F.instance_norm_act(x)
    events = profiled.events()
    scopes = [{e.scope for e in events if e.name.startswith(owner)} for owner in ("fastgan::", "aten::")]
    assert scopes[0] == scopes[1] != set()


def test_parts_and_the_rest_are_the_whole_step() -> None:
    x = torch.randn(64, 64)
    (found,) = profile_step.compare({"one": lambda: x @ x}).values()
    assert found["parts"].keys() == {"matrix product", profile_step.REST}
    assert sum(found["parts"].values()) == pytest.approx(found["step"])
