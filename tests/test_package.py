"""The package as a whole: a light import, layers that import one way, the public contract, a torch-free csrc."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastgan
import fastgan.functional as F

ROOT = Path(__file__).parent.parent
# What `import fastgan` must not bring along: each costs start-up time, starts a compiler or is optional.
HEAVY = ["torch._dynamo", "torch._inductor", "triton", "tyro", "rich", "PIL", "sklearn", "tensorboard", "matplotlib"]
LAYERS = ["cli", "training", "data models objectives metrics nn doctor", "functional numpy", "kernels reference", "_C"]


def test_import_is_light() -> None:
    code = (
        "import torch, sys; before = set(sys.modules); import fastgan, fastgan.functional; "
        "print(sorted(set(sys.modules) - before))"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    new = ast.literal_eval(printed)
    assert not set(HEAVY) & set(new)
    assert sum(not name.startswith("fastgan") for name in new) < 40


def test_imports_run_one_way() -> None:
    level = {name: i for i, names in enumerate(LAYERS) for name in names.split()}
    wrong = []
    for path in (ROOT / "fastgan").rglob("*.py"):
        parts = path.relative_to(ROOT / "fastgan").with_suffix("").parts
        if parts[0] in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                names = module.split(".")
                if names[0] != "fastgan" or len(names) < 2 or parts[0] not in level:
                    continue
                if level.get(names[1], len(LAYERS)) < level[parts[0]]:
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


CONTRACT = {
    "instance_norm_act": "(x, weight=None, bias=None, *, residual=None, activation='relu', negative_slope=0.2, "
    "reflect_pad=0, eps=1e-05)",
    "weighted_l1": "(pairs)",
    "cycle_loss": "(rec_a, real_a, rec_b, real_b, *, weight_a=10.0, weight_b=10.0)",
    "interpolate": "(real, fake, alpha=None, *, generator=None)",
    "gradient_norm_penalty": "(grads, *, target=1.0, one_sided=False)",
    "gradient_penalty": "(critic, real, fake, *, weight=10.0, target=1.0, one_sided=False, alpha=None, generator=None)",
    "wasserstein_1d": "(x, y, x_weights=None, y_weights=None, *, p=1.0, root=True)",
    "wasserstein_1d_plan": "(x, y, x_weights=None, y_weights=None)",
    "sliced_wasserstein": "(x, y, *, n_projections=128, p=2.0, projections=None, generator=None)",
}


@pytest.mark.parametrize("name", CONTRACT)
def test_public_contract(name: str) -> None:
    expected = re.findall(r"(\w+)(?:=([^,)]+))?[,)]", CONTRACT[name].replace("(", "", 1))
    parameters = inspect.signature(getattr(F, name)).parameters
    for position, (parameter, default) in enumerate(expected):
        assert parameter in parameters
        if default:
            assert repr(parameters[parameter].default) == default
        if parameters[parameter].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            assert list(parameters)[position] == parameter
    extra = [p for n, p in parameters.items() if n not in dict(expected)]
    assert all(p.default is not inspect.Parameter.empty for p in extra)
    assert inspect.getdoc(getattr(F, name))


def test_contract_of_the_package() -> None:
    for name in ("InstanceNormAct2d", "CycleLoss", "GradientPenalty", "SlicedWasserstein"):
        assert hasattr(fastgan.nn, name)
    assert callable(fastgan.fuse)
    assert callable(fastgan.use_backend)
    assert list(inspect.signature(fastgan.numpy.wasserstein_1d).parameters)[:4] == ["x", "y", "x_weights", "y_weights"]


def test_csrc_knows_no_torch() -> None:
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file():
            assert not re.search(r'#include\s*[<"](torch|ATen|c10)', path.read_text()), path
