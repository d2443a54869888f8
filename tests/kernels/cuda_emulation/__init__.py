"""Builds fastgan._cuda for the CPU: the real kernels and bindings, on emulation.h in place of CUDA and CUB."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).parents[3]
HEADERS = (
    "cuda_runtime_api.h",
    "cuda_fp16.h",
    "cuda_bf16.h",
    "cub/block/block_exchange.cuh",
    "cub/block/block_radix_sort.cuh",
    "cub/block/block_scan.cuh",
    "cub/device/device_radix_sort.cuh",
    "cub/warp/warp_merge_sort.cuh",
)


def build(to: Path) -> ModuleType:
    """Translates csrc, compiles it with the C++ compiler and loads the module."""
    for header in HEADERS:
        path = to / "include" / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('#include "emulation.h"\n')
    sources = []
    for folder in ("common", "cuda"):
        for source in (ROOT / "csrc" / folder).iterdir():
            path = to / "src" / folder / source.name.replace(".cu", ".cpp" if source.suffix == ".cu" else ".cu")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(translate(source.read_text()))
            if source.suffix == ".cu":
                sources.append(path)
    sources.append(ROOT / "csrc" / "bindings_cuda.cpp")
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", "-Werror"]
    includes = [
        to / "src",
        to / "include",
        Path(__file__).parent,
        pybind11.get_include(),
        sysconfig.get_path("include"),
    ]
    module = to / "_cuda.so"
    compiles = []
    for source in sources:
        target = to / f"{source.stem}.o"
        command = ["c++", *flags, *(f"-I{path}" for path in includes), "-c", str(source), "-o", str(target)]
        compiles.append((target, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
    for _, process in compiles:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
    subprocess.run(["c++", "-shared", *(str(target) for target, _ in compiles), "-o", str(module)], check=True)
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(module))
    spec = importlib.util.spec_from_file_location("_cuda", module, loader=loader)
    assert spec is not None
    loaded = importlib.util.module_from_spec(spec)
    loader.exec_module(loaded)
    return loaded


def translate(source: str) -> str:
    """CUDA's own syntax, the launch and the dynamic shared array, in C++."""
    source = re.sub(
        r"extern __shared__ [^;]*\bshared\[\];", "unsigned char* shared = emulation::dynamic_shared();", source
    )
    while launch := re.search(r"(\w+(?:<[\w, ]+>)?)\s*<<<(.*?)>>>\(", source, flags=re.DOTALL):
        size = ", ".join(_split(launch[2])[:3])  # grid, block, bytes of shared memory; the last is the stream
        end = _closing(source, launch.end())
        call = f"emulation::launch({size}, [&] {{ {launch[1]}({source[launch.end() : end]}); }})"
        source = source[: launch.start()] + call + source[end + 1 :]
    return source


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that is open at ``start`` closes."""
    depth = 1
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise AssertionError("unbalanced parentheses")


def _split(arguments: str) -> list[str]:
    """Splits at the commas outside parentheses."""
    parts, depth = [""], 0
    for c in arguments:
        depth += {"(": 1, ")": -1}.get(c, 0)
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts
