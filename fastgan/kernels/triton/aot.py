r"""Compiles every Triton kernel ahead of time, without a GPU, and reports what the compiler made of it.

``python -m fastgan.kernels.triton.aot [--json] [--arch 90] [--stem instance_norm] [--save FILE]`` prints, for each
setting that a launch table can choose, on each architecture: registers, shared memory, spills, the number of 128-bit
loads and stores, resident warps per multiprocessor, occupancy, waves of the grid, and the least time its bytes take. It
must run in a process without TRITON_INTERPRET, which would define the kernels as Python.

``--save`` writes the lines and Triton's version to a file. :func:`regressions` holds new lines against it.

**Registering kernels.** A module of :data:`STEMS` has a function ``aot_cases()`` that yields a :class:`Case` for each
setting of its launch table. A case runs the stem's launchers on meta tensors; each launch they make (through
:func:`fastgan.kernels.triton._launch.launch`) goes through Triton's own launch up to the driver, which compiles what it
would run, and is held against its :class:`Budget`. For example::

    def aot_cases() -> Iterator[Case]:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.empty(64, 4096, dtype=dtype, device="meta")
            moved = 2 * x.numel() * x.element_size()
            yield Case(f"copy {dtype}", lambda x=x: forward(x), (Budget(moved),))

``tests/kernels/test_triton_aot.py`` runs :func:`report` in one subprocess over all of them and fails on any line of
:attr:`Line.faults`, and on what is worse than in ``benchmarks/results/aot.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from fastgan.kernels.triton._launch import Launch, record

STEMS: tuple[str, ...] = ("gradient_penalty", "instance_norm", "interpolate", "l1")


@dataclass(frozen=True)
class Architecture:
    """What bounds occupancy and time there. Bandwidth in bytes per second: a datasheet's, except where measured."""

    name: str
    multiprocessors: int
    bandwidth: float
    shared: int  # bytes of shared memory per multiprocessor
    warps: int = 64
    registers: int = 65536


ARCHITECTURES = {
    80: Architecture("A100 80 GB", 108, 2.04e12, 164 * 1024),
    90: Architecture("H200 (4.3 TB/s: a measured copy)", 132, 4.3e12, 228 * 1024),
    100: Architecture("B200", 148, 8.0e12, 228 * 1024),
}


@dataclass(frozen=True)
class Budget:
    """What one launch may cost.

    bytes: the least it must move: every tensor element read and written once.
    wide_loads, wide_stores: whether its tensors are read and written 128 bits at a time.
    warps: the least number of warps resident on a multiprocessor: a bound on registers and shared memory.
    """

    bytes: int
    wide_loads: bool = True
    wide_stores: bool = True
    warps: int = 16


@dataclass(frozen=True)
class Case:
    """A call on meta tensors, the budget of each launch that it makes, in order, and for which architectures.

    resident_too: whether one launch, the last, may do for all, if the device has few enough multiprocessors.
    """

    name: str
    run: Callable[[], object]
    budgets: tuple[Budget, ...]
    archs: tuple[int, ...] = (80, 90, 100)
    resident_too: bool = False


@dataclass(frozen=True)
class Line:
    """What became of one launch on one architecture."""

    case: str
    kernel: str
    arch: int
    num_warps: int
    programs: int
    registers: int
    shared: int
    stack: int
    spills: int  # local-memory instructions, LDL and STL
    loads: int
    wide_loads: int
    stores: int
    wide_stores: int
    warps: int  # resident per multiprocessor
    occupancy: float  # of the warps that a multiprocessor can hold
    waves: float
    bytes: int
    floor_us: float
    faults: tuple[str, ...]


def report(archs: tuple[int, ...] = tuple(ARCHITECTURES), stems: tuple[str, ...] = STEMS) -> Iterator[Line]:
    """Compiles every registered case for each architecture; the same specialisation only once."""
    done: dict[str, dict[str, int]] = {}
    for arch in archs:
        for stem in stems:
            module = importlib.import_module(f"fastgan.kernels.triton.{stem}")
            for case in module.aot_cases():
                if arch not in case.archs:
                    continue
                with record(ARCHITECTURES[arch].multiprocessors) as launches:
                    case.run()
                budgets = case.budgets[-1:] if case.resident_too and len(launches) == 1 else case.budgets
                if len(launches) != len(budgets):
                    raise ValueError(f"{case.name}: {len(launches)} launches, {len(budgets)} budgets")
                for launch, budget in zip(launches, budgets, strict=True):
                    yield _line(case.name, launch, budget, arch, done)


class _Driver:
    """In a GPU driver's place: Triton's own launch specialises and compiles a kernel for it, and runs nothing.

    Its devices are numbered by their compute capability.
    """

    def __init__(self) -> None:
        self.arch = 0
        self.utils = self

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": ARCHITECTURES[device].shared - 1024}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[object, ...]:
        return binary, name, 0, 0, 1024  # module, function, registers, spills, most threads

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return self._launch

    def _launch(self, *arguments: object) -> None:
        grid = arguments[:3]
        if any(not isinstance(n, int) or not 0 < n <= most for n, most in zip(grid, _LARGEST_GRID, strict=True)):
            raise ValueError(f"a grid of {grid} programs cannot be launched")


_LARGEST_GRID = (2**31 - 1, 65535, 65535)
_driver = _Driver()


def compile_launch(launch: Launch, arch: int) -> Any:
    """The compiled kernel of a launch, for compute capability ``arch`` / 10, by the launch itself.

    From then on no kernel of this process runs: see :class:`_Driver`.
    """
    if not hasattr(launch.kernel, "params"):
        raise RuntimeError("kernels cannot be compiled ahead of time in a process with TRITON_INTERPRET=1")
    _driver.arch = arch
    triton.runtime.driver.set_active(_driver)
    return launch.kernel[launch.grid](*launch.args, num_warps=launch.num_warps, **launch.constexprs)


def resources(compiled: Any) -> dict[str, int]:
    """What a compiled kernel takes, from the tools that Triton carries."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(cubin))
        sass = _tool("nvdisasm", "-c", "-ndf", str(cubin))
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE)
    wide = re.compile(r"\.(128|256)\b")
    loads = [op for op in opcodes if op.startswith("LDG.")]
    stores = [op for op in opcodes if op.startswith("STG.")]
    return {
        "registers": int(found["REG"]),
        "stack": int(found["STACK"]) + int(found["LOCAL"]),
        "shared": int(compiled.metadata.shared),
        "spills": sum(op.startswith(("LDL", "STL")) for op in opcodes),
        "loads": len(loads),
        "wide_loads": sum(bool(wide.search(op)) for op in loads),
        "stores": len(stores),
        "wide_stores": sum(bool(wide.search(op)) for op in stores),
    }


def resident_warps(arch: Architecture, registers: int, shared: int, num_warps: int) -> int:
    """How many warps of such a kernel fit on a multiprocessor.

    Registers are given to a warp in units of 256, from one of four files; shared memory with 1 KiB more per program.
    """
    by_registers = 4 * (arch.registers // 4 // (-(-registers * 32 // 256) * 256)) // num_warps
    by_shared = arch.shared // (shared + 1024)
    return min(by_registers, by_shared, arch.warps // num_warps, 32) * num_warps


def _line(case: str, launch: Launch, budget: Budget, arch: int, done: dict[str, dict[str, int]]) -> Line:
    compiled = compile_launch(launch, arch)
    if compiled.hash not in done:
        done[compiled.hash] = resources(compiled)
    used, device = done[compiled.hash], ARCHITECTURES[arch]
    warps = resident_warps(device, used["registers"], used["shared"], launch.num_warps)
    programs = 1
    for size in launch.grid:
        programs *= size
    faults = []
    if used["spills"] or used["stack"]:
        faults.append(f"spills: {used['spills']} local-memory instructions, {used['stack']} bytes of stack")
    if budget.wide_loads and not used["wide_loads"]:
        faults.append(f"none of {used['loads']} loads is 128 bits wide")
    if budget.wide_stores and not used["wide_stores"]:
        faults.append(f"none of {used['stores']} stores is 128 bits wide")
    if warps < budget.warps:
        faults.append(f"{warps} resident warps, expected at least {budget.warps} ({used['registers']} registers)")
    return Line(
        case=case,
        kernel=launch.kernel.__name__,
        arch=arch,
        num_warps=launch.num_warps,
        programs=programs,
        warps=warps,
        occupancy=round(warps / device.warps, 2),
        waves=round(programs * launch.num_warps / (warps * device.multiprocessors), 2) if warps else 0.0,
        bytes=budget.bytes,
        floor_us=round(budget.bytes / device.bandwidth * 1e6, 2),
        faults=tuple(faults),
        **used,
    )


def _tool(name: str, *args: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(tool), *args], check=True, capture_output=True, text=True).stdout


def save(lines: list[Line], path: Path) -> None:
    """Writes lines and the version of Triton that made them, one line of JSON for each."""
    rows = ",\n".join(json.dumps(dataclasses.asdict(line)) for line in lines)
    path.write_text(f'{{"triton": "{triton.__version__}", "lines": [\n{rows}\n]}}\n')


def regressions(lines: list[dict[str, Any]], saved: list[dict[str, Any]]) -> list[str]:
    """What is worse in ``lines`` than in ``saved``, both as JSON, by the same version of Triton.

    Fewer resident warps (more registers or shared memory, beyond a step that matters), more spills, a smaller share
    of wide loads or stores, more bytes to move; launches that only one of the two has.
    """
    new, old = _by_launch(lines), _by_launch(saved)
    found = [f"{key}: not among the saved" for key in new.keys() - old.keys()]
    found += [f"{key}: saved, but no longer there" for key in old.keys() - new.keys()]
    for key in sorted(new.keys() & old.keys()):
        now, then = new[key], old[key]
        more = (name for name in ("spills", "stack", "bytes") if now[name] > then[name])
        found += [f"{key}: {name} {then[name]} -> {now[name]}" for name in more]
        if now["warps"] < then["warps"]:
            causes = ", ".join(f"{name} {then[name]} -> {now[name]}" for name in ("registers", "shared"))
            found.append(f"{key}: resident warps {then['warps']} -> {now['warps']} ({causes})")
        for kind in ("loads", "stores"):
            wide = f"wide_{kind}"
            if now[wide] * then[kind] < then[wide] * now[kind]:
                found.append(f"{key}: {then[wide]} of {then[kind]} {kind} were wide, now {now[wide]} of {now[kind]}")
    return found


def _by_launch(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By architecture, case and kernel, and the how-manieth of those."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        name = f"sm_{line['arch']} {line['case']} {line['kernel']}"
        count = sum(key.startswith(f"{name} #") for key in found)
        found[f"{name} #{count + 1}"] = line
    return found


_COLUMNS = {
    "case": "case", "kernel": "kernel", "arch": "sm", "num_warps": "warps/program", "registers": "registers",
    "shared": "shared B", "spills": "spills", "wide_loads": "128-bit loads", "loads": "loads",
    "wide_stores": "128-bit stores", "stores": "stores", "warps": "resident warps", "occupancy": "occupancy",
    "waves": "waves", "bytes": "least bytes", "floor_us": "their µs",
}  # fmt: skip


def table(lines: list[dict[str, Any]]) -> str:
    """The report as a Markdown table, from lines as JSON."""
    rows = [[str(line[name]) for name in _COLUMNS] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(_COLUMNS.values()), ["---"] * len(_COLUMNS), *rows])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fastgan.kernels.triton.aot", description=report.__doc__)
    parser.add_argument("--arch", type=int, action="append", choices=list(ARCHITECTURES), help="default: all")
    parser.add_argument("--stem", action="append", choices=list(STEMS), help="default: all")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--save", type=Path, help="also write the lines and Triton's version to this file")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        parser.error("TRITON_INTERPRET=1 defines kernels as Python: unset it")
    lines = []
    for line in report(tuple(args.arch or ARCHITECTURES), tuple(args.stem or STEMS)):
        lines.append(line)
        if args.json:
            print(json.dumps(dataclasses.asdict(line)), flush=True)
    if not args.json:
        print(table([dataclasses.asdict(line) for line in lines]))
    if args.save:
        save(lines, args.save)
    faulty = [line for line in lines if line.faults]
    for line in faulty:
        print(f"sm_{line.arch} {line.case} {line.kernel}: {'; '.join(line.faults)}", file=sys.stderr)
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
