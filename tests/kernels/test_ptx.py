"""The PTX of the Triton kernels, run without a GPU; and the interpreter that runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.kernels import ptx

ROOT = Path(__file__).parents[2]
# Every regime, layout, dtype and operator once or more; what takes longest is left to tests.kernels.ptx_search.
SLOWEST = "1x3x2x3x4 or 1x3x2x3x5 or 1x1x3x5x7 or 11x13-looped or 5x9x8-last-looped"
NORM = f"matches and not ({SLOWEST})"
LOSSES = "one_side or draws or tiny or zero_and_nan or (test_interpolate and not dtype1) or (penalty and 12 and dtype2)"


def test_compiled_kernels_give_what_the_formulas_say() -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
    environment |= {"FASTGAN_PTX": "90", "CUDA_VISIBLE_DEVICES": ""}
    folder = "tests/kernels/"
    words = [f"{folder}{name}.py" for name in ("ptx_checks", "test_triton_instance_norm", "test_triton_losses")]
    words += ["-k", f"ptx_checks or ({NORM}) or (test_triton_losses and ({LOSSES}))", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 35
    assert "skipped" not in done.stdout


def run(code: str, *arrays: np.ndarray, threads: int = 64, programs: int = 1, shared: int = 0, fresh: int = 0) -> None:
    """The last `fresh` arrays are unwritten. %a0, %a1, ... are the arrays' addresses, %tid the thread's number."""
    names = ", ".join(f".param .u64 k_{k}" for k in range(len(arrays)))
    loads = " ".join(f"ld.param.u64 %a{k}, [k_{k}];" for k in range(len(arrays)))
    registers = ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b32 %tid; .reg .b64 %a<9>; .reg .b64 %d<9>;"
    text = (
        f".visible .entry k({names})\n.reqntid {threads}\n{{\n{registers} {loads} mov.u32 %tid, %tid.x; {code} ret;\n}}"
    )
    host = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays]
    unwritten = [(a.ctypes.data, np.ones(a.nbytes, bool)) for a in arrays[len(arrays) - fresh :]]
    memory = ptx.Memory(host, unwritten)
    ptx.launch(text, [memory.address(begin) for begin, _ in host], memory, (programs, 1, 1), shared)


OWN = "mul.wide.u32 %d0, %tid, 4; add.s64 %d1, %a0, %d0; "  # %d1: where the thread's word of the first array is


def test_threads_that_part_ways_meet_again() -> None:
    """Collatz's sequence: each thread loops as often as it must."""
    out = np.zeros(64, np.uint32)
    code = f"""{OWN} add.s32 %r0, %tid, 1; mov.b32 %r1, 0;
    $again: setp.eq.b32 %p0, %r0, 1; @%p0 bra $done;
    and.b32 %r2, %r0, 1; setp.eq.b32 %p1, %r2, 0; @%p1 bra $even;
    mad.lo.s32 %r0, %r0, 3, 1; bra.uni $next;
    $even: shr.u32 %r0, %r0, 1;
    $next: add.s32 %r1, %r1, 1; bra.uni $again;
    $done: st.global.b32 [%d1], {{ %r1 }};"""
    run(code, out, fresh=1)

    def steps(n: int) -> int:
        return 0 if n == 1 else 1 + steps(n // 2 if n % 2 == 0 else 3 * n + 1)

    assert out.tolist() == [steps(n) for n in range(1, 65)]


WORDS = [0, 1, 2, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF9, 0xFFFFFFFF, 0x3F800000, 0x7F800000, 0xFF800000, 0x7FC00000]


def signed(a: int) -> int:
    return a - 2**32 * (a >> 31)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("mul.hi.u32 {}, {}, {};", lambda a, b: a * b >> 32),
        (
            "mov.b64 %d4, {{{1}, {2}}}; mul.hi.u64 %d5, %d4, %d4; cvt.u32.u64 {0}, %d5;",
            lambda a, b: (a | b << 32) ** 2 >> 64,
        ),
        (
            "mov.b64 %d4, {{{1}, {2}}}; not.b64 %d5, %d4; mul.hi.s64 %d5, %d4, %d5; cvt.u32.u64 {0}, %d5;",
            lambda a, b: (a | signed(b) << 32) * ~(a | signed(b) << 32) >> 64,
        ),
        ("mul.lo.s32 {}, {}, {};", lambda a, b: a * b),
        ("div.s32 {}, {}, {};", lambda a, b: int(np.fix(signed(a) / signed(b))) if b else None),
        ("rem.s32 {}, {}, {};", lambda a, b: int(np.fmod(signed(a), signed(b))) if b else None),
        ("shr.s32 {}, {}, {};", lambda a, b: signed(a) >> min(b, 31)),
        ("shl.b32 {}, {}, {};", lambda a, b: a << b if b < 32 else 0),
        ("shf.l.wrap.b32 {}, {}, {}, 4;", lambda a, b: (b << 4) | (a >> 28)),
        (
            "prmt.b32 {}, {}, {}, 0x9074;",
            lambda a, b: 0xFF * (a >> 15 & 1) << 24 | (a & 255) << 16 | (b >> 24) << 8 | b & 255,
        ),
        ("bfe.s32 {}, {}, 4, 3; xor.b32 %r3, {}, 0;", lambda a, b: (a >> 4 & 7) - 8 * (a >> 6 & 1)),
        ("min.s32 {}, {}, {};", lambda a, b: min(signed(a), signed(b))),
        ("cvt.rn.bf16x2.f32 {}, {}, {};", None),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_arithmetic(code: str, expected: Callable[[int, int], int | None] | None) -> None:
    a, b = (np.array(side, np.uint32) for side in zip(*[(a, b) for a in WORDS for b in WORDS], strict=True))
    a, b, out = (np.resize(side, 192) for side in (a, b, np.zeros(1, np.uint32)))
    other = OWN.replace("%a0", "%a1").replace("%d1", "%d2") + OWN.replace("%a0", "%a2").replace("%d1", "%d3")
    move = "ld.global.b32 {{ %r0 }}, [%d1]; ld.global.b32 {{ %r1 }}, [%d2]; {} st.global.b32 [%d3], {{ %r2 }};"
    run(OWN + other + move.format(code.format("%r2", "%r0", "%r1")), a, b, out, threads=192, fresh=1)
    if expected is None:
        torch = pytest.importorskip("torch")
        halves = torch.from_numpy(np.stack([b, a], 1).view(np.float32)).bfloat16()
        found = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16).reshape(-1, 2)
        assert torch.equal(halves.nan_to_num(), found.nan_to_num())
        assert torch.equal(halves.isnan(), found.isnan())
        return
    for x, y, got in zip(a.tolist(), b.tolist(), out.tolist(), strict=True):
        right = expected(x, y)
        assert right is None or got == right % 2**32, (hex(x), hex(y))


FIRST = "setp.lt.u32 %p0, %tid, 16; "


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("ld.global.b32 { %r0 }, [%d1 + 4];", "outside of every tensor by 2 threads, 256 bytes from"),
        ("ld.global.b32 { %r0 }, [%a0 + 2];", "not aligned to its 4 bytes"),
        ("ld.global.v2.b32 { %r0, %r1 }, [%a0 + 4];", "not aligned to its 8"),
        ("ld.global.b32 { %r0 }, [%a1];", "nothing has written"),
        ("st.global.b32 [%a0], { %tid };", "two values written to one place"),
        ("mov.u32 %r0, %ctaid.x; st.global.b32 [%a0], { %r0 };", "two values written to one place"),
        ("st.global.b32 [%d1], { %tid }; ld.global.b32 { %r0 }, [%d1];", "this launch has written"),
        (FIRST + "@%p0 shfl.sync.bfly.b32 %r0, %tid, 1, 31, -1;", "a part of a warp"),
        (FIRST + "@%p0 bra $over; bar.sync 0; $over: ", "a part of a program"),
        ("ld.shared.b32 %r0, [16];", "outside of 16 bytes"),
        ("shl.b32 %r0, %tid, 2; and.b32 %r0, %r0, 12; ld.shared.b32 %r1, [%r0];", "shared memory that nothing"),
        ("shr.u32 %r0, %tid, 5; st.shared.b32 [0], %r0;", "two values written to one place of shared"),
        ("st.shared.b32 [0], 7; bar.sync 0; ld.shared.b32 %r1, [0]; st.shared.b32 [0], 8;", "has read since the last"),
        ("@%p0 add.s32 %r0, %r1, 1; mov.b32 %r1, 0; setp.eq.b32 %p0, %r1, 0;", "before it is set"),
        ("add.sat.s32 %r0, %tid, 1;", r"unknown instruction add\.sat\.s32"),
        ("vote.sync.all.pred %p0, %p0, -1;", r"unknown instruction vote\.sync"),
    ],
    ids=lambda value: value[:40],
)
def test_faults(code: str, found: str) -> None:
    arrays = np.zeros(64, np.uint32), np.zeros(1, np.uint32)
    with pytest.raises(ptx.PtxError, match=found):
        run(OWN + code, *arrays, programs=2, shared=16, fresh=1)
