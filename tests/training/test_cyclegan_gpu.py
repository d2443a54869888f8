"""CycleGAN's step on a GPU: beside the plain CPU step, without waiting for the device, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan.training import checkpoint, loop
from fastgan.training.cyclegan import CycleGan
from tests.training.test_cyclegan_step import Pairs, batches, tiny

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("full_precision")]


@pytest.mark.parametrize("gan_mode", ["lsgan", "vanilla", "wgangp"])
@pytest.mark.parametrize("options", [{}, {"channels_last": "off"}, {"batched_calls": "off"}, {"fused": False}], ids=str)
def test_step_equals_the_plain_one_on_the_cpu(gan_mode: str, options: dict[str, Any]) -> None:
    plain = CycleGan(tiny(gan_mode=gan_mode, batch_size=4), Pairs())
    ours = CycleGan(
        tiny(**{"fused": True, "gan_mode": gan_mode, "batch_size": 4, "device": "cuda", "amp": "none", **options}),
        Pairs(),
    )
    for A, B in batches(2, rows=4, size=32):
        expected, losses = plain.update(A, B), ours.update(A.cuda(), B.cuda())
        assert expected.keys() == losses.keys()
        for name in expected:
            torch.testing.assert_close(losses[name].cpu(), expected[name], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_autocast_stays_near(amp: str) -> None:
    plain = CycleGan(tiny(), Pairs())
    low = CycleGan(tiny(amp=amp, fused=True, device="cuda"), Pairs())
    for A, B in batches(3):
        expected, losses = plain.update(A, B), low.update(A.cuda(), B.cuda())
        for name in expected:
            torch.testing.assert_close(losses[name].cpu().float(), expected[name], rtol=0.05, atol=0.05)


def test_a_step_does_not_wait_for_the_device() -> None:
    task = CycleGan(tiny(fused=True, device="cuda", pool_size=2, ema=0.9, cuda_graph="off"), Pairs())
    (A, B), *_ = batches(1)
    A, B = task.precision.batch(A), task.precision.batch(B)
    for _ in range(3):  # allocations and first calls may wait
        task.update(A, B)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        task.update(A, B)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_resume_continues(tmp_path: Path) -> None:
    settings = {"fused": True, "device": "cuda", "checkpoints_dir": tmp_path, "progress": False, "tensorboard": False}
    settings |= {"eval_freq": 2, "display_freq": 2}
    loop.fit(CycleGan(tiny(**settings, max_steps=2), Pairs(), Pairs()))
    task = CycleGan(tiny(**settings, continue_train=True), Pairs(), Pairs())
    assert loop.fit(task).step == task.total_steps
    saved = checkpoint.read(checkpoint.locate(tmp_path / "cyclegan"))["state"]
    for name, value in task.networks["G_A"].state_dict().items():
        assert torch.equal(saved["networks"]["G_A"][name], value.cpu())
    for parameter, state in task.optimizer_G.state.items():
        assert state["exp_avg"].stride() == parameter.stride()
    assert any((tmp_path / "cyclegan" / "sheets").iterdir())
    assert "swd_A" in (tmp_path / "cyclegan" / "stats.jsonl").read_text()
