"""The build's CUDA modes, what it reports, and what a source distribution holds. Configures only; compiles nothing."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[1]
# As in CMakeLists.txt, which compiles the kernels once per instruction set.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx512cd"]
INSTRUCTION_SETS: dict[str, list[str]] = {"baseline": [], "avx2": AVX2, "avx512": AVX512}


def other_compilers() -> list[str]:
    """The oldest of each kind that is here, beside the one that built the extension."""
    found = []
    for pattern in ("clang++*", "g++-*", "aarch64-linux-gnu-g++*"):
        names = {p.name for folder in os.environ["PATH"].split(os.pathsep) for p in Path(folder).glob(pattern)}
        found += sorted(names, key=lambda name: int(name.rpartition("-")[2]) if name[-1].isdigit() else 99)[:1]
    return found


CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
NINJA = shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
needs_cmake = pytest.mark.skipif(CMAKE is None or NINJA is None, reason="no cmake or no ninja")


def configure(to: Path, mode: str, *, hide_nvcc: bool = False) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not (hide_nvcc and k in ("CUDACXX", "CUDA_PATH", "CUDA_HOME"))}
    if hide_nvcc:
        folders = [f for f in env["PATH"].split(os.pathsep) if not (Path(f) / "nvcc").exists()]
        env["PATH"] = os.pathsep.join(folders)
        if shutil.which("c++", path=env["PATH"]) is None:
            pytest.skip("the C++ compiler lies in the same folder as nvcc")
    command = [
        str(CMAKE), "-S", str(ROOT), "-B", str(to), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={NINJA}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DFASTGAN_CUDA={mode}", f"-DFASTGAN_OUTPUT_DIR={to}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env=env)


def summary(build: Path) -> str:
    return (build / "fastgan_build_summary.txt").read_text()


@needs_cmake
@pytest.mark.slow
def test_without_nvcc_auto_says_what_is_left_out_and_1_fails(tmp_path: Path) -> None:
    auto = configure(tmp_path, "auto", hide_nvcc=True)
    assert auto.returncode == 0, auto.stderr
    assert "CUDA left out (FASTGAN_CUDA=auto and no nvcc was found" in summary(tmp_path)
    assert "_cuda" not in (tmp_path / "build.ninja").read_text()
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    (bindings,) = [shlex.split(c["command"]) for c in commands if c["file"].endswith("csrc/bindings.cpp")]
    note = summary(tmp_path).split("CUDA ", 1)[1].strip()
    assert f'-DFASTGAN_BUILD_CUDA="{note}"' in bindings  # whole: what fastgan doctor says
    shutil.rmtree(tmp_path / "CMakeFiles")
    (tmp_path / "CMakeCache.txt").unlink()
    required = configure(tmp_path, "1", hide_nvcc=True)
    assert required.returncode != 0
    assert "FASTGAN_CUDA=1, but no CUDA compiler (nvcc) was found" in " ".join(required.stderr.split())


@needs_cmake
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_with_nvcc_the_cuda_part_is_built_for_three_architectures(tmp_path: Path) -> None:
    done = configure(tmp_path, "auto")
    assert done.returncode == 0, done.stderr
    assert "CUDA built with nvcc" in summary(tmp_path)
    assert "for sm 80, 90, 100" in summary(tmp_path)
    rules = (tmp_path / "build.ninja").read_text()
    for source in (ROOT / "csrc" / "cuda").glob("*.cu"):
        assert source.name in rules, f"{source.name} is not in CMakeLists.txt"
    assert "cudart_static" in rules
    for architecture in ("sm_80", "sm_90", "sm_100"):
        assert architecture in rules


@needs_cmake
@pytest.mark.slow
def test_cuda_off_and_unknown_modes(tmp_path: Path) -> None:
    off = configure(tmp_path, "0")
    assert off.returncode == 0, off.stderr
    assert "CUDA left out (FASTGAN_CUDA=0)" in summary(tmp_path)
    unknown = configure(tmp_path, "yes")
    assert unknown.returncode != 0
    assert 'FASTGAN_CUDA must be auto, 0 or 1, got "yes"' in " ".join(unknown.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("compiler", other_compilers())
def test_kernels_are_the_language_of_every_compiler_here(compiler: str) -> None:
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-fopenmp-simd", f"-I{ROOT / 'csrc'}"]
    names = ["baseline"] if compiler.startswith("aarch64") or platform.machine() not in ("x86_64", "AMD64") else None
    for isa in names or INSTRUCTION_SETS:
        for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
            defined = [f"-DFASTGAN_ISA={isa}", f"-DFASTGAN_ISA_{isa}", "-Wno-unknown-pragmas"]
            command = [compiler, *flags, *INSTRUCTION_SETS[isa], *defined, str(source)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert "warning:" not in done.stderr, done.stderr


def run_setup(tmp_path: Path, cmake: str, mode: str = "auto") -> subprocess.CompletedProcess[str]:
    """``setup.py build_ext`` with a stand-in for cmake."""
    tools = tmp_path / "tools"
    tools.mkdir()
    stand_in = tools / "cmake"
    stand_in.write_text(f"#!/bin/sh\n{cmake}\n")
    stand_in.chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "FASTGAN_CUDA": mode}
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-temp",
        str(tmp_path),
        "--build-lib",
        str(tmp_path),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


def test_setup_ends_with_the_summary(tmp_path: Path) -> None:
    line = "fastgan native build: CPU (baseline), OpenMP yes; CUDA left out (no nvcc)"
    done = run_setup(tmp_path, f'echo "{line}" > "{tmp_path}/fastgan_build_summary.txt"')
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith(line)


def test_setup_fails_when_cmake_does_or_the_mode_is_unknown(tmp_path: Path) -> None:
    failed = run_setup(tmp_path, "exit 3")
    assert failed.returncode != 0
    assert "building the native extension failed" in failed.stderr
    (tmp_path / "second").mkdir()
    unknown = run_setup(tmp_path / "second", "exit 0", mode="maybe")
    assert unknown.returncode != 0
    assert "FASTGAN_CUDA must be auto, 0 or 1, got 'maybe'" in unknown.stderr


@pytest.mark.slow
def test_source_distribution_holds_what_the_build_needs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("csrc", "fastgan", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    script = f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", script], cwd=tree, capture_output=True, text=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        held = {name.split("/", 1)[1] for name in files.getnames() if "/" in name}
    wanted = [p.relative_to(tree) for folder in ("csrc", "fastgan") for p in (tree / folder).rglob("*") if p.is_file()]
    missing = {path.as_posix() for path in wanted} - held
    assert not missing
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md", "constraints.txt"} <= held
    assert not [name for name in held if name.endswith((".so", ".o")) or name.startswith("tests/")]
