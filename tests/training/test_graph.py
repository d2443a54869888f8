"""Steps over static memory. What a CUDA graph requires of a step is tested here without one: it reads and writes the
same storages each time, asks for no value, and computes what the plain step computes. The recording itself is in
tests/training/test_graph_gpu.py."""

from __future__ import annotations

import contextlib
import importlib
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastgan import objectives, use_backend
from fastgan.training import cyclegan, distributed, gan
from fastgan.training.cyclegan import CycleGan
from fastgan.training.gan import GanTask
from fastgan.training.graph import StepGraph, wants_graph
from fastgan.training.pool import ImagePool, StaticPool
from fastgan.training.task import RunConfig
from fastgan.training.watch import Meter
from tests.training.test_cyclegan_step import Pairs, tiny
from tests.training.test_gan_step import tiny as gan_tiny

CPU = torch.device("cpu")
SYNCS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "item", "masked_select", "unique_consecutive")


class Recorder(TorchDispatchMode):
    """What a recording would hold: the storages from outside that operations touch, and any that ask for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[str] = []
        self.outside: set[int] = set()
        self._made: dict[int, Any] = {}  # kept alive, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in SYNCS:
            self.syncs.append(str(func))
        for tensor in tree_leaves((args, kwargs or {})):
            if isinstance(tensor, Tensor) and tensor.numel():
                pointer = tensor.untyped_storage().data_ptr()
                if pointer not in self._made:
                    self.outside.add(pointer)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.outside:
                self._made[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return result


@contextlib.contextmanager
def recorded(graph: StepGraph) -> Iterator[list[Recorder]]:
    """Watches the calls of ``graph``'s step: not the copies of inputs into its buffers."""
    watched: list[Recorder] = []
    step = graph._step

    def watch(inputs: Any) -> Any:
        with Recorder() as recorder:
            losses = step(inputs)
        watched.append(recorder)
        return losses

    graph._step = watch
    try:
        yield watched
    finally:
        graph._step = step


# --- the class ----------------------------------------------------------------------------------------------------


class Line:
    """A least-squares fit: a step in the way a graph needs it."""

    def __init__(self, fused: bool = True) -> None:
        torch.manual_seed(1)
        self.net = nn.Linear(3, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1, fused=fused)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.3)
        self.seen: list[dict[str, int]] = []

    def step(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen.append({name: value.data_ptr() for name, value in inputs.items()})
        loss = (self.net(inputs["x"]) - inputs["y"]).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


@pytest.mark.parametrize("fused", [True, False])
def test_calls_use_one_set_of_buffers_and_follow_the_learning_rate(fused: bool) -> None:
    plain, static = Line(fused), Line(fused)
    graph = StepGraph(static.step, CPU, [static.optimizer])
    for rows in (4, 4, 4, 3, 4, 4):  # one batch is short
        inputs = {"x": torch.randn(rows, 3), "y": torch.randn(rows, 1)}
        expected = plain.step(inputs)
        assert torch.equal(graph(inputs)["loss"], expected["loss"])
        for line in (plain, static):
            line.schedule.step()
        assert static.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"]
        assert isinstance(static.optimizer.param_groups[0]["lr"], float)
    assert static.seen[0] == static.seen[1] == static.seen[2] == static.seen[4] == static.seen[5] != static.seen[3]
    assert static.optimizer.state_dict()["param_groups"] == plain.optimizer.state_dict()["param_groups"]
    for a, b in zip(static.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(a, b)
    graph.reset()
    for rows in (2, 2, 5, 5, 2, 5):  # continued just before a short batch: the larger ones are the rule
        graph({"x": torch.randn(rows, 3), "y": torch.randn(rows, 1)})
    first, second, *seen = static.seen[6:]
    assert first == second
    assert seen[0] == seen[1] == seen[3] != seen[2]


def test_what_a_graph_cannot_hold_is_noticed() -> None:
    """The tests below can fail: each way of breaking a recording is seen."""
    line = Line()
    graph, kept = StepGraph(line.step, CPU, [line.optimizer]), []
    inputs = {"x": torch.randn(4, 3), "y": torch.randn(4, 1)}
    with recorded(graph) as steps:
        for _ in range(3):
            graph(inputs)
        assert steps[1].outside == steps[2].outside
        assert not any(step.syncs for step in steps)

    def asks(given: Any) -> dict[str, Tensor]:
        return {"loss": line.step(given)["loss"] * float(given["x"].sum())}

    def moves(given: Any) -> dict[str, Tensor]:
        kept.append(torch.ones(4, 3) if not kept else kept[-1] + 1)
        return line.step({**given, "x": given["x"] + kept[-1]})

    for bad in (asks, moves):
        graph = StepGraph(bad, CPU, [line.optimizer])
        with recorded(graph) as steps:
            for _ in range(3):
                graph(inputs)
        assert steps[2].syncs or steps[1].outside != steps[2].outside


def test_a_failed_recording_may_be_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = {"x": torch.randn(4, 3), "y": torch.randn(4, 1)}
    line, plain = Line(), Line()
    graph = StepGraph(line.step, CPU, [line.optimizer], warmup=1, required=False)
    monkeypatch.setattr(graph, "_cuda", True)
    monkeypatch.setattr(graph, "_record", lambda: torch.empty(-1))
    for _ in range(4):
        assert graph(inputs) == plain.step(inputs)
    assert caplog.text.count("going on without a CUDA graph") == 1


def test_a_failed_recording_says_how_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    graph = StepGraph(line.step, CPU, [line.optimizer], warmup=0)
    monkeypatch.setattr(graph, "_cuda", True)
    monkeypatch.setattr(graph, "_record", lambda: torch.empty(-1))
    with pytest.raises(RuntimeError, match=r"cannot be recorded \(--cuda_graph off does without\): .*-1"):
        graph({"x": torch.randn(4, 3), "y": torch.randn(4, 1)})


def test_a_failed_recording_tells_the_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end raises another, because of it."""
    line = Line()
    graph = StepGraph(line.step, CPU, [line.optimizer], warmup=0)

    def record() -> None:
        try:
            torch.empty(-1)
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(graph, "_cuda", True)
    monkeypatch.setattr(graph, "_record", record)
    with pytest.raises(RuntimeError, match=r"cannot be recorded \(--cuda_graph off does without\): .*-1"):
        graph({"x": torch.randn(4, 3), "y": torch.randn(4, 1)})


def test_graphs_that_share_memory_are_recorded_when_all_have_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that runs as usual beside a recorded one takes a step's memory again."""
    first = StepGraph(lambda inputs: {}, CPU, [], warmup=2)
    second = StepGraph(lambda inputs: {}, CPU, [], warmup=1, share=first)
    for graph in (first, second):
        monkeypatch.setattr(graph, "_cuda", True)
    monkeypatch.setattr(StepGraph, "_record", lambda graph: vars(graph).update(_graph=Replays()))
    for _ in range(2):
        seen = []
        for graph in (first, first, first, first, second, first, second):
            graph({})
            seen.append((first.recorded, second.recorded))
        assert seen == [(False, False)] * 5 + [(True, False), (True, True)]
        second.reset()
    assert not first.recorded  # what one must forget, all do


@pytest.mark.parametrize("ends", ["no", "told", "yes"])
def test_a_failed_recording_keeps_no_memory(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator is told that it ended, and that its pool is used no more, where the graph did not come to that."""
    told: list[str] = []
    kept: list[Any] = []

    class Graph:
        def pool(self) -> tuple[int, int]:
            if ends != "yes":
                raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
            return 0, 1

    def end(device: int, pool: Any) -> None:
        told.append(f"end {device} {pool}")
        if ends == "told":
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    def release(device: int, pool: Any) -> None:
        told.append(f"release {device} {pool}")

    def step(inputs: Any) -> dict[str, Tensor]:
        made = torch.zeros(1)
        if not kept:
            kept.append(weakref.ref(made))
            torch.empty(-1)
        assert kept[0]() is None, "a tensor of the recording is there when the step is taken without"
        return {"loss": made}

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    for name in ("graph", "device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)
    graph = StepGraph(step, torch.device("cpu:0"), [], warmup=0, required=False)
    monkeypatch.setattr(graph, "_cuda", True)
    monkeypatch.setattr(graph, "_pool", (0, 1))
    assert graph({"x": torch.zeros(1)})["loss"] == 0
    assert told == ([] if ends == "yes" else ["end 0 (0, 1)", "release 0 (0, 1)"])


def test_a_failed_recording_ends_those_that_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random generators' states, which a graph has registered, are others from then on."""

    def record(graph: StepGraph) -> None:
        if graph is second:
            raise RuntimeError("no")
        vars(graph).update(_graph=Replays())

    calls: list[str] = []
    first = StepGraph(lambda inputs: calls.append("first") or {}, CPU, [], warmup=1, required=False)
    second = StepGraph(lambda inputs: calls.append("second") or {}, CPU, [], warmup=1, required=False, share=first)
    for graph in (first, second):
        monkeypatch.setattr(graph, "_cuda", True)
    monkeypatch.setattr(StepGraph, "_record", record)
    for graph in (first, second, first):
        graph({})
    assert first.recorded
    calls.clear()
    for graph in (second, first, second, first, first):
        graph({})
        assert not first.recorded
    assert calls == ["second", "first", "second", "first", "first"]


class Replays:
    def replay(self) -> None:
        pass


def test_memory_short_beside_a_graph_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As at an epoch's last batch, which no graph fits."""

    def short(inputs: Any) -> dict[str, Tensor]:
        if len(inputs["x"]) < 4:
            raise torch.OutOfMemoryError("no")
        return {}

    graph = StepGraph(short, CPU, [], warmup=0)
    monkeypatch.setattr(graph, "_cuda", True)
    monkeypatch.setattr(StepGraph, "_record", lambda graph: vars(graph).update(_graph=Replays()))
    graph({"x": torch.zeros(4)})
    with pytest.raises(torch.OutOfMemoryError):
        graph({"x": torch.zeros(3)})
    assert "--cuda_graph off" in caplog.text


@pytest.mark.parametrize(
    ("settings", "device", "obstacles", "message"),
    [
        ({}, "cpu", {}, "no CUDA graph on device cpu"),
        ({"amp": "fp16", "fused": False}, "cuda", {}, "fp16 without fused"),
        ({}, "cuda", {"the sky falls": True, "it does not": False}, "cannot be on: the sky falls$"),
    ],
)
def test_impossible_graphs_are_refused(settings: Any, device: str, obstacles: Any, message: str) -> None:
    where = torch.device(device)
    with pytest.raises(ValueError, match=message):
        wants_graph(RunConfig(cuda_graph="on", **settings), where, obstacles)
    assert not wants_graph(RunConfig(**settings), where, obstacles)
    assert not wants_graph(RunConfig(cuda_graph="off"), torch.device("cuda"), {})
    assert wants_graph(RunConfig(), torch.device("cuda"), {})


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (3, 4), (5, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_static_pool_is_the_pool(size: int, batch: int, layout: torch.memory_format) -> None:
    """Images, layouts and states, also over a save; with slots drawn twice in a batch."""
    plain, static = ImagePool(size, seed=3), StaticPool(size, seed=3)
    for k in range(24):
        images = torch.randn(batch, 2, 3, 5).to(memory_format=layout)
        expected, made = plain.query(images), static.query(images)
        assert torch.equal(made, expected)
        assert made.stride() == expected.stride()
        theirs, ours = plain.state_dict(), static.state_dict()
        assert len(theirs["images"]) == len(ours["images"]) == min(size, (k + 1) * batch, len(ours["images"]))
        assert all(torch.equal(a, b) for a, b in zip(theirs["images"], ours["images"], strict=True))
        assert torch.equal(theirs["generator"], ours["generator"])
        if k in (1, 11):
            copies = {**ours, "images": [image.clone() for image in ours["images"]]}
            static = StaticPool(size, seed=99)
            static.load_state_dict(copies)


# --- the trainers -------------------------------------------------------------------------------------------------


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets trainers take the static step on the CPU."""
    monkeypatch.setattr(cyclegan.trainer, "graphs", lambda config, device: config.cuda_graph == "on")
    monkeypatch.setattr(gan.trainer, "graphs", lambda config, settings, device, dropout: config.cuda_graph == "on")


CYCLEGAN = {
    "everything": {"ema": 0.9, "no_dropout": False, "norm": "batch", "batch_size": 2},
    "penalty in parts": {"gan_mode": "wgangp", "accumulate": 2, "batched_calls": "on"},
    "recompute, bf16": {"recompute": True, "amp": "bf16"},
    "fp16": {"amp": "fp16", "gan_mode": "vanilla", "pool_size": 1},
    "no pool": {"pool_size": 0, "lambda_identity": 0.0, "channels_last": "off"},
}


def static_state(task: CycleGan) -> dict[str, int]:
    """Where everything that a step changes is."""
    found = {f"{n}.{k}": v for n, net in task.networks.items() for k, v in net.state_dict(keep_vars=True).items()}
    found |= {f"ema.{n}.{k}": v for n, ema in task.ema.items() for k, v in ema.state_dict().items()}
    for name, optimizer in task.optimizers().items():
        for i, values in enumerate(optimizer.state.values()):
            found |= {f"{name}.{i}.{k}": v for k, v in values.items()}
    found |= {name: pool._block for name, pool in task.pools.items() if pool.size}
    found |= {k: v for k, v in vars(task.precision.scaler).items() if isinstance(v, Tensor)}
    return {name: value.data_ptr() for name, value in found.items()}


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("case", CYCLEGAN)
def test_static_step_of_cyclegan_is_the_plain_one_and_can_be_recorded(case: str) -> None:
    """Bit for bit; and it asks for no value, and touches the same storages each time."""
    settings = {"fused": True, "lr": 1e-3, **CYCLEGAN[case]}
    plain, static = (CycleGan(tiny(**settings, cuda_graph=switch), Pairs()) for switch in ("off", "on"))
    generator, state = torch.Generator().manual_seed(4), torch.get_rng_state()
    places: list[dict[str, int]] = []
    watching = contextlib.ExitStack()
    steps: list[Recorder] = []
    for k, rows in enumerate([2, 2, 2, 2, 2, 1] if settings.get("accumulate", 1) == 1 else [2] * 5):
        A, B = (torch.rand(rows, 3, 16, 16, generator=generator) * 2 - 1 for _ in "AB")
        A, B = static.precision.batch(A), static.precision.batch(B)
        torch.set_rng_state(state)
        expected = plain.update(A, B, apart=k == 3)
        torch.set_rng_state(state)
        losses = static.update(A, B, apart=k == 3)
        state = torch.get_rng_state()
        assert losses.keys() == expected.keys()
        for name in losses:
            assert torch.equal(losses[name], expected[name]), (k, name)
        if k == 0:  # what a first call allocates is there
            assert static._graph is not None
            steps = watching.enter_context(recorded(static._graph))
        else:
            places.append(static_state(static))
        if k == 2:
            for task in (plain, static):
                for group in (g for optimizer in task.optimizers().values() for g in optimizer.param_groups):
                    group["lr"] *= 0.5
    watching.close()
    assert all(place == places[0] for place in places)
    assert not any(step.syncs for step in steps)
    assert all(step.outside == steps[0].outside for step in steps[:4])  # k = 1 to 4, of which one logs all losses
    assert all(p.grad is None for net in static.networks.values() for p in net.parameters())
    for name in plain.networks:
        for (key, a), b in zip(
            plain.networks[name].state_dict().items(), static.networks[name].state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), (name, key)


GAN: dict[str, dict[str, Any]] = {
    **{name: {"objective": name} for name in objectives.OBJECTIVES},
    "wgan-gp, bf16, average, decay": {"amp": "bf16", "ema": 0.9, "lr_decay": "linear", "data": "digits"},
    "wgan-gp, fp16, conv": {"amp": "fp16", "data": "digits", "architecture": "wgan-gp"},
    "hinge, sngan": {"objective": "hinge", "data": "digits", "architecture": "sngan"},
    "feature matching, batch norm": {
        "objective": "lsgan", "hyper": ("feature_matching=true",), "data": "digits", "architecture": "dcgan",
    },
}  # fmt: skip


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("case", GAN)
def test_static_steps_of_gans_are_the_plain_ones_and_can_be_recorded(case: str) -> None:
    """Critic steps and generator steps of every objective: bit for bit, no value asked for, the same storages."""
    settings = {"n_critic": 2, "boost": 3, "boost_first": 1, "boost_every": 0, "steps": 8, **GAN[case]}
    plain, static = (GanTask(gan_tiny(**settings, cuda_graph=switch)) for switch in ("off", "on"))
    state = torch.get_rng_state()
    watching = contextlib.ExitStack()
    steps: dict[str, list[Recorder]] = {}
    for k in range(4):
        torch.set_rng_state(state)
        # An operator may go another way under a mode, and round otherwise: both steps are watched.
        with Recorder() if k > 0 else contextlib.nullcontext():
            expected = plain.step()
        torch.set_rng_state(state)
        losses = static.step()
        state = torch.get_rng_state()
        assert list(losses) == list(expected)
        for name in losses:
            assert torch.equal(losses[name], expected[name]), (k, name)
        if k == 0:
            assert set(static._graphs) == ({"critic", "generator"} if static.critic is not None else {"generator"})
            steps = {side: watching.enter_context(recorded(graph)) for side, graph in static._graphs.items()}
    watching.close()
    assert [len(steps[side]) for side in sorted(steps)] == [6, 3][2 - len(steps) :]
    for taken in steps.values():
        # An optimizer that is not fused reads its learning rate and step count on the host, on the CPU.
        assert not any(step.syncs for step in taken) or static.settings.optimizer == "rmsprop"
        assert all(step.outside == taken[0].outside for step in taken)
    for name, network in plain.networks.items():
        for (key, a), b in zip(network.state_dict().items(), static.networks[name].state_dict().values(), strict=True):
            assert torch.equal(a, b), (name, key)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("alone", [True, False])
def test_a_critic_is_recorded_once_its_generator_has_warmed_up(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic's steps that are taken alone do not wait for a generator's."""
    monkeypatch.setattr(StepGraph, "_record", lambda graph: vars(graph).update(_graph=Replays()))
    task = GanTask(gan_tiny(objective="wgan-gp", n_critic=2, boost_first=0, cuda_graph="on"))
    recorded = []
    for _ in range(4):
        task.critic_step(next(task.batches)) if alone else task.step()
        for graph in task._graphs.values():
            graph._cuda = True
        recorded.append({side for side, graph in task._graphs.items() if graph.recorded})
    # After three steps of both: the critic took more, and waited.
    assert recorded == [set(), set(), set(), {"critic"} if alone else {"critic", "generator"}]


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("trainer", ["cyclegan", "gan"])
def test_a_recording_that_failed_between_step_and_update_of_the_scale_is_forgotten(
    trainer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a recording leaves behind is the scaler's note, on the host, that its optimizers have stepped."""

    def make(switch: str) -> CycleGan | GanTask:
        if trainer == "gan":
            return GanTask(gan_tiny(objective="hinge", amp="fp16", cuda_graph=switch))
        return CycleGan(tiny(fused=True, amp="fp16", cuda_graph=switch), Pairs())

    def fail(graph: StepGraph) -> None:
        for optimizer in graph._optimizers:
            static.precision.scaler._per_optimizer_states[id(optimizer)]["stage"] = OptState.STEPPED
        raise RuntimeError("the device has had enough")

    plain, static = make("off"), make("on")
    graphs = [static._graph] if isinstance(static, CycleGan) else list(static._graphs.values())
    for k in range(4):
        if k == 2:  # every graph's next call is to record
            for graph in graphs:
                graph._warmup, graph._required, graph._cuda = 0, False, True
                graph._generators = ()  # those of the host are no part of a recording
            monkeypatch.setattr(StepGraph, "_record", fail)
        expected, losses = plain.step(), static.step()
        assert all(torch.equal(losses[name], expected[name]) for name in expected)
    assert all(graph._failed for graph in graphs)
    assert static.precision.scaler.state_dict() == plain.precision.scaler.state_dict()


# --- another device than the host's -------------------------------------------------------------------------------


class HostTensors(TorchDispatchMode):
    """Operations with a tensor of the host: a recording would copy it, or keep its value for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) and t.device.type == "cpu" for t in tree_leaves((args, kwargs or {}, result))):
            self.found.append(str(func))
        return result


class HostGenerator:
    _real = torch.Generator

    def __new__(cls, device: str = "cpu") -> torch.Generator:  # type: ignore[misc]
        return cls._real()


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The device "meta" in a GPU's place, with its kernels, whose launches are only noted. It has no random generators,
    no autocast and no fused optimizers."""
    pytest.importorskip("triton")
    from fastgan.kernels.triton import _launch, aot

    adam = torch.optim.Adam.__init__
    for stem in aot.STEMS:
        kernels = importlib.import_module(f"fastgan.kernels.triton.{stem}")
        monkeypatch.setattr(kernels, "unsupported_device", lambda call: None)
    monkeypatch.setattr(distributed, "resolve_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(torch, "Generator", HostGenerator)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(torch.optim.Adam, "__init__", lambda self, *args, fused, **kw: adam(self, *args, **kw))
    for optimizer in (torch.optim.Adam, torch.optim.RMSprop):
        monkeypatch.setattr(optimizer, "step", lambda self: None)
    with _launch.record(132), use_backend("triton"):
        yield


@pytest.mark.usefixtures("anywhere", "on_meta")
@pytest.mark.parametrize("case", ["everything", "penalty in parts"])
def test_cyclegan_s_step_stays_on_its_device(case: str) -> None:
    task = CycleGan(tiny(**{"fused": True, **CYCLEGAN[case]}, cuda_graph="on"), Pairs())
    inputs = {name: torch.empty(2, 3, 16, 16, device="meta") for name in "AB"}
    for name, pool in task.pools.items():
        inputs |= {f"pool_{name}": pool.decide(2).to("meta"), f"alpha_{name}": torch.empty(2, device="meta")}
    task._update(inputs, True)
    with HostTensors() as host:
        task._update(inputs, True)
    assert not host.found


@pytest.mark.usefixtures("anywhere", "on_meta")
@pytest.mark.parametrize("case", ["wgan", "ct-gan", "dragan", "ebgan", "fgan-kl", "feature matching, batch norm"])
def test_steps_of_gans_stay_on_their_device(case: str) -> None:
    task = GanTask(gan_tiny(**GAN[case], cuda_graph="on"))
    inputs = {"real": torch.empty(16, *task.data.shape, device="meta")}
    task._update_critic(inputs)
    with HostTensors() as host:
        task._update_critic(inputs)
        task._update_generator(inputs)
    assert not host.found


@pytest.mark.usefixtures("anywhere", "on_meta")
@pytest.mark.parametrize("graph", ["on", "off"])
@pytest.mark.parametrize(
    "case", [*(name for name in CYCLEGAN if name != "fp16"), "hinge", "wgan-gp", "ct-gan", "hinge, sngan"]
)
def test_neither_steps_nor_their_log_wait_for_the_device(case: str, graph: str) -> None:
    """Tensors of "meta" have no values, and who asks for one gets an error: whole steps, averages, means of losses.

    Not fp16: of optimizers that are not fused, the scaler asks whether to step."""
    settings = {"batch_size": 2, "cuda_graph": graph}
    task: CycleGan | GanTask
    if case in CYCLEGAN:
        task = CycleGan(tiny(**{**settings, "fused": True, **CYCLEGAN[case]}), Pairs())
    else:
        task = GanTask(gan_tiny(**{**settings, "ema": 0.9, "lr_decay": "linear", **GAN[case]}))
    meter = Meter()
    for k in range(2):
        losses = task.step()
        meter.add(k, losses)
    assert all(loss.is_meta for loss in losses.values())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        meter.flush()
