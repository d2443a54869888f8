"""Runs the compiled PTX of calls drawn at random, and compares with float64; prints those that go wrong.

``python -m tests.kernels.ptx_search [--arch 90] [--seconds 300] [--seed 0] [--only K]``: one JSON line for each call
that is wrong, which ``--only`` repeats, then how many calls there were. Half of the instance norm's calls take the
launch table's own setting, on a device of some size; the others any.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from typing import Any

import torch

from tests.kernels import ptx_device

SPATIAL: list[tuple[int, ...]] = [
    *[(1, 2), (2, 2), (3, 3), (7, 7), (8, 8), (9, 7), (17, 13), (32, 32), (33, 35), (48, 64), (65, 63), (127, 129)],
    *[(5,), (61,), (64,), (4096,), (20001,), (2, 3, 4), (4, 4, 4), (5, 6, 7), (9, 16, 16), (33, 31, 35)],
]
PLANES = [(1, 1), (1, 2), (2, 3), (1, 4), (3, 5), (2, 8), (1, 16), (2, 33), (5, 16), (1, 64), (7, 67), (40, 3)]
SIZES = [1, 2, 3, 127, 128, 129, 1000, 4095, 4096, 4097, 12288, 20011]
MOST = 200_000  # elements of a call
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def norm_call(draw: random.Random) -> dict[str, Any]:
    """Arguments of an Example, and how many multiprocessors the launch table sees."""
    shape = (0,)
    while not 0 < math.prod(shape) <= MOST:
        shape = (*draw.choice(PLANES), *draw.choice(SPATIAL))
    elements, setting = math.prod(shape[2:]), (0, 0, 0)
    if draw.random() < 0.5:
        splits = draw.choice([0, 0, 1, 2, 4, 16] if elements <= 4096 else [1, 2, 4, 16])
        width = min(1 << (elements - 1).bit_length(), draw.choice([16, 64, 256, 1024]) if splits else 4096)
        setting = (min(draw.choice([1, 2, 4, 8, 16, 32]), max(1, 4096 // width)), width, splits)
    return {
        "shape": shape, "setting": setting, "channels_last": draw.random() < 0.5, "dtype": draw.choice(DTYPES),
        "activation": draw.choice(["none", "relu", "leaky_relu"]), "affine": draw.random() < 0.7,
        "residual": draw.choice([None, "dense", "interior"]),
        "pad": min(draw.choice([0, 0, 1, 3]), min(shape[2:]) - 1), "multiprocessors": draw.choice([1, 2, 16, 132]),
    }  # fmt: skip


def check_norm(draw: random.Random, call: dict[str, Any]) -> None:
    from fastgan.kernels.triton import _launch
    from fastgan.kernels.triton.instance_norm import Setting, launch_table, launchers
    from tests.kernels import test_triton_instance_norm as norm

    arguments, chosen, tensor = dict(call), launch_table.setting, norm._tensor
    _launch._INTERPRETED_MULTIPROCESSORS = arguments.pop("multiprocessors")
    example = norm.Example(**arguments)

    def anywhere(*args: Any) -> torch.Tensor:
        norm.GUARD = 64 + draw.choice([0, 0, 0, 1, 2, 4, 8])
        return tensor(*args)

    launchers.plan_of.cache_clear()
    warps = draw.choice([1, 4, 8]) if math.prod(example.setting[:2]) <= 1024 else draw.choice([4, 8])
    try:
        norm._tensor = anywhere
        if example.setting[0]:
            launch_table.setting = lambda *_: Setting(*example.setting, warps)
        inputs = norm._inputs(example)
        norm._check(norm._all(norm.kernels, example, inputs), *norm._expected(example, inputs))
    finally:
        norm._tensor, launch_table.setting = tensor, chosen


def loss_call(draw: random.Random) -> dict[str, Any]:
    samples, size = draw.choice([1, 2, 3, 33, 64]), draw.choice(SIZES)
    shape = (min(samples, max(1, MOST // size)), size)
    layout = draw.choice(["contiguous", "sliced"])
    return {"loss": draw.choice(["l1", "interpolate", "penalty"]), "shape": shape, "layout": layout,
            "dtype": draw.choice(DTYPES), "pairs": draw.randint(1, 9)}  # fmt: skip


def check_loss(draw: random.Random, call: dict[str, Any]) -> None:
    from tests import losses

    shape, dtype, layout = call["shape"], call["dtype"], call["layout"]
    x, y = (losses.tensor(shape, dtype, layout, seed) for seed in (0, 1))
    if call["loss"] == "l1":
        sizes = [draw.choice(SIZES) for _ in range(call["pairs"])]
        pairs = [(losses.tensor((n,), dtype, seed=n), losses.tensor((n,), torch.float32, seed=n + 1)) for n in sizes]
        losses.check_l1("triton", [(a, b, draw.choice([1.0, 10.0, -0.5])) for a, b in pairs])
    elif call["loss"] == "interpolate":
        losses.check_interpolate("triton", x, y, losses.tensor(shape[:1], torch.float32, seed=2))
    else:
        losses.check_penalty("triton", x, draw.choice([0.0, 1.0, 12.0]), draw.random() < 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, choices=[80, 90, 100])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this call alone")
    args = parser.parse_args()
    ptx_device.install(args.arch)
    end, k, wrong = time.monotonic() + args.seconds, 0, 0
    while time.monotonic() < end:
        k += 1
        draw = random.Random(f"{args.seed} {k}")
        call, check = (loss_call(draw), check_loss) if draw.random() < 0.25 else (norm_call(draw), check_norm)
        if args.only in (None, k):
            torch.manual_seed(k)
            ptx_device.forget()
            try:
                check(draw, call)
            except Exception as error:
                wrong += 1
                told = f"{type(error).__name__}: {error}"
                print(json.dumps({"only": k, **call, "error": told[:400]}, default=str), flush=True)
        if args.only == k:
            break
    print(json.dumps({"arch": args.arch, "seed": args.seed, "calls": k, "wrong": wrong}))


if __name__ == "__main__":
    main()
