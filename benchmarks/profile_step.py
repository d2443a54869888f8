"""``python -m benchmarks.profile_step --out FILE``: where the time of a training step goes, ours beside eager.

Both contestants take turns, each with a step without torch.profiler, whose median is the step's time, and then one
under it: every operator's self time belongs to a part by the name of the operator, or to the optimizer if that called
it. A part's share is its seconds under the profiler over those of the whole step before it without: what the profiler
itself takes between operators, more for a step with Functions in Python or with our names for kernels, is charged to
nobody. In a step of half a second and more that is nothing, but a shared machine's speed changes from step to step, so
that shares are of the profiled step itself. On a GPU self times are those of the kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import pkgutil
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import fastgan.functional
from benchmarks import harness
from fastgan.kernels import dispatch
from fastgan.kernels.library import RawOperator
from fastgan.models import build_generator
from fastgan.nn import use_cpu_convolutions

# The first pattern found in an operator's name says which part of the step it is.
PARTS = {
    "convolution backward": r"aten::\w*conv\w*backward\w*",
    "convolution forward": r"aten::\w*conv",
    "convolution by fastgan": r"fastgan::(winograd|convolution)",
    "matrix product": r"aten::(addmm_?|mm|bmm|baddbmm_?|linear|matmul|addmv|mv)$|mkldnn_linear",
    "norm": r"fastgan::instance_norm|aten::\w*(batch|layer|group|instance)_norm",
    "penalty": r"fastgan::(interpolate|gradient_norm)|aten::(linalg_vector_)?norm$",
    "losses": r"fastgan::weighted_l1|aten::(\w*mse_loss|\w*l1_loss|binary_cross|mean|abs|sgn|sign)",
    "padding": r"aten::\w*pad",
    "activation": r"aten::(relu|leaky_relu|threshold|tanh|sigmoid)",
    "copies": r"aten::(copy|clone|contiguous|cat|repeat|fill|zero|_to_copy|pow)",
    "additions": r"aten::(add|sub|mul|sum|div|neg)",
}
# Kernels that may be called without their raw operator.
_DIRECT = (
    "forward", "backward", "over_samples", "forward_with_gradient", "forward_with_gradients", "input_gradient",
    "weight_gradient",
)  # fmt: skip
OPTIMIZER, REST = "optimizer", "Python, autograd, the rest"
GENERATOR = "CycleGAN generator, 256 px, resnet_9blocks, batch 1, forward + backward: fuse()"
OWN_CONVOLUTIONS = f"{GENERATOR}, use_cpu_convolutions()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    found = {}
    for name, contestants in steps().items():
        found[name] = compare(contestants)
        print(name)
        for contestant, result in found[name].items():
            print(f"  {contestant}: {1e3 * result['step']:.1f} ms")
            for part, seconds in sorted(result["parts"].items(), key=lambda item: -item[1]):
                print(f"    {part:28s} {1e3 * seconds:9.2f} ms  {100 * seconds / result['step']:5.1f} %")
        out.write_text(json.dumps({"threads": torch.get_num_threads(), "steps": found}))  # it may be interrupted


def steps() -> dict[str, dict[str, Callable[[], Any]]]:
    """What is profiled: CycleGAN's generator alone at 256 px, and the steps of CycleGAN, on the largest of the
    benchmarks' own cases, and of the WGAN-GP critics."""
    from benchmarks import test_cyclegan_step, test_gan_step

    cyclegan = list(test_cyclegan_step.CASES)[-1]
    # The profiler does not see the operators that a CUDA graph replays.
    tasks = {name: test_cyclegan_step.trainer(cyclegan, name, cuda_graph="off") for name in ("eager", "fastgan")}
    found: dict[str, dict[str, Callable[[], Any]]] = {}
    found[GENERATOR] = {"eager": generator(), "fastgan": generator(fastgan.fuse)}
    if harness.DEVICE == "cpu":
        found[OWN_CONVOLUTIONS] = {"eager": generator(), "fastgan": generator(fastgan.fuse, use_cpu_convolutions)}
    found[f"CycleGAN, {cyclegan}"] = {name: task.step for name, task in tasks.items()}
    with test_gan_step.pictures() as noise:
        for case in test_gan_step.CASES:
            task = test_gan_step.task_of(case, noise, cuda_graph="off")
            real = next(task.batches).to(harness.DEVICE)
            plain = test_gan_step.Plain(test_gan_step.task_of(case, noise, fused=False))
            found[f"WGAN-GP critic, {case}"] = {
                "eager": lambda plain=plain, real=real: plain.step(real),
                "fastgan": lambda task=task, real=real: task.critic_step(real),
            }
    return found


def generator(*changes: Callable[[nn.Module], object]) -> Callable[[], Any]:
    """A forward and backward pass of CycleGAN's generator: as it is in NCHW, changed in channels_last."""
    torch.manual_seed(0)
    network = build_generator("resnet_9blocks").to(harness.DEVICE)
    image = torch.rand(1, 3, 256, 256, device=harness.DEVICE) * 2 - 1
    for change in changes:
        change(network)
    if changes:
        network, image = (a.to(memory_format=torch.channels_last) for a in (network, image))
    return lambda: network(image).square().mean().backward()


def compare(contestants: dict[str, Callable[[], Any]]) -> dict[str, dict[str, Any]]:
    """contestant -> "step": its median in seconds, and "parts": the seconds of each part of it."""
    for step in contestants.values():
        step()
    single = max(_seconds(step) for step in contestants.values())
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    profiles: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    long = single >= 0.5
    for _ in range(max(3, min(30, int(4 / single)))):
        for name, step in contestants.items():
            if not long:
                step()  # what the profiler left in the caches is not a training step's
            samples[name].append(_seconds(step))
            parts, profiled = breakdown(step)
            whole = profiled if long else samples[name][-1]
            profiles[name].append({part: own / whole for part, own in parts.items()})
    found = {}
    for name in contestants:
        seconds = harness.quantiles(samples[name])["p50"]
        names = sorted({part for shares in profiles[name] for part in shares})
        shares = {part: statistics.median(each.get(part, 0.0) for each in profiles[name]) for part in names}
        parts = {part: share * seconds for part, share in shares.items()}
        found[name] = {"step": seconds, "parts": {**parts, REST: seconds - sum(parts.values())}}
    return found


def breakdown(step: Callable[[], Any]) -> tuple[dict[str, float], float]:
    """The seconds of each part of a step, and of the whole, under the profiler."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if harness.DEVICE == "cuda" else [])
    with named_kernels(), profile(activities=activities) as profiled:
        whole = _seconds(step)
    parts: dict[str, float] = {}
    for event in profiled.events():
        part = part_of(event)
        # A kernel's time on a GPU is its operator's.
        if part is not None and event.device_type == torch.autograd.DeviceType.CPU:
            own = event.self_device_time_total if harness.DEVICE == "cuda" else event.self_cpu_time_total
            parts[part] = parts.get(part, 0.0) + own * 1e-6
    return parts, whole


def part_of(event: Any) -> str | None:
    """The part of a step that a profiled operator belongs to; None for the rest."""
    above = event
    while above is not None:
        if above.name.startswith("Optimizer."):
            return OPTIMIZER
        above = above.cpu_parent
    return next((part for part, pattern in PARTS.items() if re.match(pattern, event.name)), None)


@contextlib.contextmanager
def named_kernels() -> Iterator[None]:
    """Lets the profiler see our operators, which eager tensors reach without PyTorch's dispatcher."""
    with contextlib.ExitStack() as stack:
        patch = lambda owner, name, label: stack.enter_context(
            mock.patch.object(owner, name, _named(f"fastgan::{label}", getattr(owner, name)))
        )
        for module in pkgutil.iter_modules(fastgan.functional.__path__, "fastgan.functional."):
            for operator in vars(importlib.import_module(module.name)).values():
                if isinstance(operator, RawOperator):
                    patch(operator, "kernel", operator.name)
        stems = {**dispatch.OPERATORS, "winograd": "winograd", "convolution": "convolution"}
        for operator, stem in stems.items():
            for backend in dispatch.order(harness.DEVICE)[:-1]:
                with contextlib.suppress(dispatch.BackendError):  # not there, or not built
                    kernels = dispatch.kernels(backend, stem)
                    for name in _DIRECT:
                        if hasattr(kernels, name):
                            patch(kernels, name, operator)
        yield


def _named(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        # As an operator: a GPU kernel's time goes to the operator around it, past what record_function names.
        with torch._C._profiler._RecordFunctionFast(name):
            return kernel(*args, **options)

    return run


def _seconds(step: Callable[[], Any]) -> float:
    def whole() -> None:
        step()
        if harness.DEVICE == "cuda":
            torch.cuda.synchronize()

    return harness.wall_seconds(whole)


if __name__ == "__main__":
    main()
