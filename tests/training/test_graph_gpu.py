"""Recorded steps on a GPU: beside the same steps without a graph, without waiting for the device, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan import objectives
from fastgan.training import checkpoint, loop
from fastgan.training.cyclegan import CycleGan
from fastgan.training.gan import GanTask
from fastgan.training.graph import StepGraph
from fastgan.training.watch import Meter
from tests.training.test_cyclegan_step import Pairs, batches, tiny
from tests.training.test_gan_step import tiny as gan_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("full_precision")]


def assert_near(losses: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert list(losses) == list(expected)
    for name in losses:
        torch.testing.assert_close(losses[name].float(), expected[name].float(), rtol=tolerance, atol=tolerance / 10)


CYCLEGAN = {
    "plain": {"amp": "none"},
    "penalty, parts": {"amp": "none", "gan_mode": "wgangp", "accumulate": 2},
    "bf16, average": {"amp": "bf16", "ema": 0.9, "channels_last": "on"},
    "fp16, vanilla": {"amp": "fp16", "gan_mode": "vanilla"},
    "recompute, not fused": {"amp": "none", "recompute": True, "fused": False},
    "dropout": {"amp": "none", "no_dropout": False},
}


@pytest.mark.parametrize("case", CYCLEGAN)
def test_recorded_cyclegan_is_the_plain_one(case: str) -> None:
    """Sixteen steps, loss by loss; the pools' decisions and the learning rate reach the graph, a short batch passes."""
    settings = {"device": "cuda", "fused": True, "lr": 1e-4, **CYCLEGAN[case]}
    plain, graphed = (CycleGan(tiny(**settings, cuda_graph=switch), Pairs()) for switch in ("off", "on"))
    state = torch.cuda.get_rng_state()
    for k, (A, B) in enumerate(batches(16, size=32)):
        rows = 1 if k == 9 and settings.get("accumulate", 1) == 1 else 2
        A, B = (plain.precision.batch(x[:rows]) for x in (A, B))
        torch.cuda.set_rng_state(state)
        expected = plain.update(A, B, apart=k % 4 == 0)
        torch.cuda.set_rng_state(state)
        losses = graphed.update(A, B, apart=k % 4 == 0)
        state = torch.cuda.get_rng_state()
        assert_near(losses, expected, 2e-2 if settings["amp"] != "none" else 2e-3)
        if k == 11:
            for task in (plain, graphed):
                for optimizer in task.optimizers().values():
                    optimizer.param_groups[0]["lr"] = 1e-5
    assert graphed._graph is not None
    assert graphed._graph.recorded
    for name, pool in graphed.pools.items():
        for a, b in zip(pool.state_dict()["images"], plain.pools[name].state_dict()["images"], strict=True):
            torch.testing.assert_close(a.float(), b.float(), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_recorded_gans_are_the_plain_ones(name: str, data: str) -> None:
    """Twelve steps of every objective, loss by loss: z and the penalty's α are drawn anew at each replay, and alike."""
    images = {"data": data, "architecture": "sngan" if name == "sngan" else "dcgan"} if data == "digits" else {}
    settings = {"objective": name, "device": "cuda", "n_critic": 2, "boost": 3, "boost_first": 1, **images}
    plain, graphed = (GanTask(gan_tiny(**settings, cuda_graph=switch)) for switch in ("off", "on"))
    state = torch.cuda.get_rng_state()
    for _ in range(12):
        torch.cuda.set_rng_state(state)
        expected = plain.step()
        torch.cuda.set_rng_state(state)
        losses = graphed.step()
        state = torch.cuda.get_rng_state()
        assert_near(losses, expected, 1e-2)
    assert all(graph.recorded for graph in graphed._graphs.values())


@pytest.mark.parametrize("trainer", ["cyclegan", "gan"])
def test_a_recorded_step_does_not_wait_for_the_device(trainer: str) -> None:
    if trainer == "cyclegan":
        task: Any = CycleGan(tiny(fused=True, device="cuda", ema=0.9, cuda_graph="on", amp="bf16"), Pairs())
        (A, B), *_ = batches(1)
        A, B = task.precision.batch(A), task.precision.batch(B)

        def step() -> Any:
            return task.update(A, B, apart=False)
    else:
        task = GanTask(gan_tiny(device="cuda", data="digits", cuda_graph="on", ema=0.9, lr_decay="linear", steps=99))
        step = task.step
    meter = Meter()
    for k in range(5):
        meter.add(k, step())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for k in range(3):
            losses = step()
            meter.add(5 + k, losses)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("asks", [True, False])
def test_steps_recorded_twice_or_not_at_all_are_the_plain_ones(asks: bool) -> None:
    """They draw from the default generator and from their own. Those that ask for a value cannot be recorded."""

    def run(graphed: bool) -> list[Tensor]:
        torch.manual_seed(3)
        own = torch.Generator("cuda").manual_seed(4)
        net = torch.nn.Linear(3, 1, device="cuda")
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)

        def step(inputs: Any) -> dict[str, Tensor]:
            noise = torch.randn(4, 3, device="cuda", generator=own) + torch.nn.functional.dropout(inputs["x"])
            loss = net(noise).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return {"loss": loss.detach() * float(loss > 0) if asks else loss.detach()}

        graph = StepGraph(step, torch.device("cuda"), [optimizer], generators=[own], warmup=2, required=False)
        inputs, losses = {"x": torch.ones(4, 3, device="cuda")}, []
        stream = torch.cuda.current_stream()
        for k in range(12):
            losses.append((graph(inputs) if graphed else step(inputs))["loss"].cpu())
            assert torch.cuda.current_stream() == stream
            assert graph.recorded == (graphed and not asks and k % 6 > 1)
            if k == 5:
                graph.reset()
        return losses

    torch.testing.assert_close(run(True), run(False), rtol=1e-4, atol=1e-6)


def test_runs_with_and_without_a_graph_continue_each_other(tmp_path: Path) -> None:
    settings = {"fused": True, "device": "cuda", "checkpoints_dir": tmp_path, "progress": False, "tensorboard": False}
    settings |= {"n_epochs": 4, "n_epochs_decay": 4, "amp": "none"}
    loop.fit(CycleGan(tiny(**settings, name="whole", cuda_graph="off"), Pairs()))
    loop.fit(CycleGan(tiny(**settings, name="parts", cuda_graph="on", max_steps=8), Pairs()))
    loop.fit(CycleGan(tiny(**settings, name="parts", cuda_graph="off", max_steps=16, continue_train=True), Pairs()))
    loop.fit(CycleGan(tiny(**settings, name="parts", cuda_graph="on", continue_train=True), Pairs()))
    whole, parts = (checkpoint.read(checkpoint.locate(tmp_path / name))["state"] for name in ("whole", "parts"))
    for name, value in whole["networks"]["G_A"].items():
        torch.testing.assert_close(parts["networks"]["G_A"][name], value, rtol=2e-2, atol=2e-3)
    assert whole["stateful"]["schedule_G"] == parts["stateful"]["schedule_G"]
    assert torch.equal(whole["stateful"]["pool_D_A"]["generator"], parts["stateful"]["pool_D_A"]["generator"])


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
def test_gans_are_trained_judged_and_continued(data: str, tmp_path: Path) -> None:
    settings = {"device": "cuda", "data": data, "checkpoints_dir": tmp_path, "ema": 0.9, "eval_freq": 4, "steps": 8}
    loop.fit(GanTask(gan_tiny(**settings, display_freq=4, max_steps=6)))
    assert loop.fit(GanTask(gan_tiny(**settings, display_freq=4, continue_train=True))).step == 8
    sheets = {path.stem for path in (tmp_path / "gan" / "sheets").iterdir()}
    assert sheets >= {"step-00000004", "step-00000008"}
    assert (tmp_path / "gan" / "stats.jsonl").read_text().count('"sliced_w2"') >= 2
