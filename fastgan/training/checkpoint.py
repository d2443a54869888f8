"""Checkpoints: one safetensors file each, holding tensors and, as JSON in its header, everything else.

A file is written beside its place, synced and renamed, so that a checkpoint is there whole or not at all, whenever
the process dies. Reading never unpickles. The rule of what is kept: the newest ``keep`` checkpoints and the best one.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastgan._output import atomic_write, remove_partial

FORMAT = 1
_HEADER = "fastgan"
_NAME = re.compile(r"step-(\d+)\.safetensors")


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, corrupt, or of something else."""


# --- trees of state -----------------------------------------------------------------------------------------------


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Splits a tree of dicts, lists, tuples, numbers, strings and tensors into JSON and named tensors.

    Raises:
        TypeError: the tree holds something else; the message says where.
    """
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            if path in tensors:
                raise TypeError(f"state has two tensors at {path!r}")
            tensors[path] = value
            return {"$tensor": path}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, tuple):
            return {"$tuple": [visit(v, f"{path}/{i}") for i, v in enumerate(value)]}
        if isinstance(value, list):
            return [visit(v, f"{path}/{i}") for i, v in enumerate(value)]
        if isinstance(value, Mapping):
            if all(isinstance(k, str) and not k.startswith("$") for k in value):
                return {k: visit(v, f"{path}/{k}" if path else k) for k, v in value.items()}
            if all(isinstance(k, int | str) for k in value):
                return {"$dict": [[k, visit(v, f"{path}/{k}")] for k, v in value.items()]}
        raise TypeError(f"state at {path!r} cannot be saved: {type(value).__name__}")

    return visit(tree, ""), tensors


def unflatten(tree: Any, tensor: Callable[[str], Tensor]) -> Any:
    """The inverse of :func:`flatten`; ``tensor`` gives a tensor by its name."""
    if isinstance(tree, list):
        return [unflatten(v, tensor) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensor(tree["$tensor"])
    if "$tuple" in tree:
        return tuple(unflatten(v, tensor) for v in tree["$tuple"])
    if "$dict" in tree:
        return {k: unflatten(v, tensor) for k, v in tree["$dict"]}
    return {k: unflatten(v, tensor) for k, v in tree.items()}


# --- files --------------------------------------------------------------------------------------------------------


def write(path: Path, tree: Any) -> None:
    """Writes ``tree`` (see :func:`flatten`) to ``path``, atomically and durably.

    Raises:
        CheckpointError: it cannot be written (a full disk, say); nothing of it is left, nor was anything replaced.
    """
    document, tensors = flatten(tree)
    storages: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # safetensors refuses shared memory
        storages.add(tensor.untyped_storage().data_ptr())
        stored[name] = tensor
    header = {"format": FORMAT, "checksum": _checksum(stored), "tree": document}
    try:
        with atomic_write(path, durable=True) as file:
            save_file(stored, file, metadata={_HEADER: json.dumps(header)})
    except OSError as error:
        raise CheckpointError(str(error)) from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def read(path: Path, *, only: str = "") -> Any:
    """The tree that was written to ``path``; tensors are on the CPU.

    Args:
        only: read just the subtree under this path, such as ``state/networks/G_A`` (its tensors' checksum is then
            not verified).

    Raises:
        CheckpointError: the file is missing, truncated, damaged or not a checkpoint of fastgan.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            if header is None:
                raise CheckpointError(f"{path} is a safetensors file but not a checkpoint of fastgan")
            if header["format"] > FORMAT:
                raise CheckpointError(f"{path} was written by a newer fastgan (format {header['format']} > {FORMAT})")
            tree = header["tree"]
            if only:
                for key in only.split("/"):
                    if not isinstance(tree, dict) or key not in tree:
                        raise CheckpointError(f"{path} holds no {only!r}")
                    tree = tree[key]
                return unflatten(tree, lambda name: file.get_tensor(name).clone())
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 -- not a dict
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is corrupt or incomplete: {error}") from error
    if _checksum(tensors) != header["checksum"]:
        raise CheckpointError(f"{path} is corrupt: its checksum does not match its contents")
    return unflatten(tree, tensors.__getitem__)


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value


class Checkpoints:
    """The checkpoints of a run: ``folder/step-XXXXXXXX.safetensors``.

    Args:
        folder: made when the first one is saved.
        keep: how many of the newest to keep, beside the best; 0 keeps all.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(m[1]) for p in self.folder.iterdir() if (m := _NAME.fullmatch(p.name)))

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def save(self, step: int, tree: Any, best_step: int | None = None) -> Path:
        """Writes a checkpoint, then removes those that the rule does not keep."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(step)
        write(path, tree)
        newest = self.steps()[-self.keep :]  # keep == 0: all
        for old in self.steps():
            if old not in newest and old != best_step:
                self.path(old).unlink()
        return path

    def clean(self) -> None:
        """Removes what a process that was killed while writing left behind."""
        if self.folder.is_dir():
            remove_partial(self.folder)


def locate(path: str | os.PathLike[str], which: str = "latest") -> Path:
    """The checkpoint file that ``path`` means: itself, or the ``latest`` or ``best`` of a run's folder.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix == ".pth":
            raise CheckpointError(f"{path} is one network of the official code, and no run's checkpoint")
        if which != "latest":
            raise CheckpointError(f"which {which} is for a run's folder, and {path} is one checkpoint")
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoints = Checkpoints(folder)
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError(f"there is no checkpoint in {path}")
    latest = checkpoints.path(steps[-1])
    if which == "latest":
        return latest
    best = read(latest, only="best")
    if best is None:
        raise CheckpointError(f"{latest} knows no best checkpoint: the run kept none (best_metric, eval_freq)")
    return checkpoints.path(best["step"])
