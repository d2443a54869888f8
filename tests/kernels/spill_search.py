"""Compiles calls of instance norm, drawn at random over all that its launch table tells apart; prints those that spill.

``python -m tests.kernels.spill_search [--arch 90] [--seconds 300]``: one JSON line for each kernel with
local-memory instructions, then how many kernels were compiled, for how many of the kinds of calls. A call found here
belongs into ``_EDGES`` of ``fastgan/kernels/triton/instance_norm/cases.py``, where the ahead-of-time report and its
test keep it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from itertools import product

import torch

from fastgan.kernels.triton import aot
from fastgan.kernels.triton import instance_norm as kernels
from fastgan.kernels.triton._launch import record
from fastgan.kernels.triton.instance_norm import launch_table

PLANES = [(1, 256), (1, 64), (16, 64), (64, 512), (1, 3), (16, 127), (4, 96)]
SIZES = [2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 33, 48, 62, 64, 65, 96, 127, 128, 129, 192, 256, 257, 384, 512]
SPATIAL: list[tuple[int, ...]] = [
    *((size, size) for size in SIZES),
    *[(3,), (61,), (1000,), (4096,), (100001,), (1 << 20,), (2, 3, 4), (4, 4, 4), (15, 17, 19), (16, 16, 16)],
    *[(33, 31, 35), (64, 64, 64), (9, 7), (43, 47), (64, 68), (192, 320), (4096, 2)],
]
Call = tuple[str, tuple[int, ...], torch.dtype, bool, str | None, int]


def calls() -> Iterator[Call]:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for planes, spatial, pad in product(PLANES, SPATIAL, (0, 1, 3)):
        if pad < min(spatial):
            for rest in product(launch_table.RESIDENT, dtypes, (False, True), (None, "dense", "interior")):
                operator, dtype, channels_last, residual = rest
                yield operator, (*planes, *spatial), dtype, channels_last, residual, pad


def kind(call: Call, multiprocessors: int) -> tuple[object, ...]:
    """What the launch table makes of a call, and what its kernel holds: calls alike in that compile much alike."""
    operator, shape, dtype, channels_last, residual, pad = call
    n, c, *spatial = shape
    elements = torch.Size(spatial).numel()
    facts = (n * c, c, elements, dtype.itemsize, channels_last, pad > 0, len(spatial) == 3, multiprocessors)
    chosen = launch_table.setting(operator, *facts, residual == "interior")
    odd = (c if channels_last else elements) % (16 // dtype.itemsize) > 0
    tile = (chosen.planes * chosen.elements, chosen.planes > 1, min(chosen.splits, 2), chosen.num_warps)
    return operator, dtype.itemsize, channels_last, residual, pad > 0, odd, tile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, choices=list(aot.ARCHITECTURES))
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="leave out the first kinds: those of an earlier search")
    args = parser.parse_args()
    draw, end, done = random.Random(args.seed), time.monotonic() + args.seconds, set()
    multiprocessors = aot.ARCHITECTURES[args.arch].multiprocessors
    kinds: dict[tuple[object, ...], list[Call]] = {}
    for call in calls():
        kinds.setdefault(kind(call, multiprocessors), []).append(call)
    order = list(kinds)
    draw.shuffle(order)
    order = order[args.skip :] + order[: args.skip]
    drawn = 0
    while time.monotonic() < end:
        call = draw.choice(kinds[order[drawn % len(order)]])
        drawn += 1
        run = kernels.example(*call, draw.choice(["none", "relu", "leaky_relu"]))
        with record(multiprocessors) as launches:
            run()
        for launch in launches:
            compiled = aot.compile_launch(launch, args.arch)
            if compiled.hash not in done:
                done.add(compiled.hash)
                used = aot.resources(compiled)
                if used["spills"] or used["stack"]:
                    line = {"call": call, "kernel": launch.kernel.__name__, "num_warps": launch.num_warps, **used}
                    print(json.dumps(line, default=str), flush=True)
    covered = f"{min(drawn, len(kinds))} of {len(kinds)}"
    print(json.dumps({"arch": args.arch, "calls": drawn, "kernels": len(done), "kinds of calls": covered}))


if __name__ == "__main__":
    main()
