"""Builds the native extension: setuptools -> CMake -> Ninja. No torch is needed to build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt and puts the extension modules beside the Python package."""

    def run(self) -> None:
        mode = os.environ.get("FASTGAN_CUDA", "auto").lower()
        if mode not in ("auto", "0", "1"):
            raise SystemExit(f"FASTGAN_CUDA must be auto, 0 or 1, got {mode!r}")
        first = self.extensions[0]
        destination = Path(self.get_ext_fullpath(first.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={_pybind11_dir()}",
            f"-DFASTGAN_CUDA={mode}",
            f"-DFASTGAN_OUTPUT_DIR={destination}",
        ]  # fmt: skip
        if architectures := os.environ.get("FASTGAN_CUDA_ARCHITECTURES"):
            configure.append(f"-DFASTGAN_CUDA_ARCHITECTURES={architectures}")
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build)], check=True)
        except FileNotFoundError as error:
            raise SystemExit(f"fastgan: {error.filename} was not found; it is a build requirement") from error
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"fastgan: building the native extension failed: {error}") from error
        summary = build / "fastgan_build_summary.txt"
        print(summary.read_text().strip(), file=sys.stderr)


def _pybind11_dir() -> str:
    import pybind11

    return str(pybind11.get_cmake_dir())


setup(
    ext_modules=[Extension("fastgan._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
