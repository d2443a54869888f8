"""Checkpoints of pytorch-CycleGAN-and-pix2pix (``latest_net_G_A.pth``), read and written.

Such a file is one network's state_dict under the names that :mod:`fastgan.models.cyclegan` uses too.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan._output import atomic_write

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another network."""


def read_official(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of an official checkpoint, on the CPU. Nothing in the file is executed (weights_only)."""
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # pickle, zip and torch each raise their own, and advise to execute the file
        raise CheckpointError(
            f"{path}: damaged, or holds more than weights; expected the state_dict of one network, as "
            "latest_net_G_A.pth holds"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected the state_dict of one network (name → tensor), got something else")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_official(net: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads an official checkpoint into ``net`` (fused or not), in place.

    Statistics that instance norms stored before PyTorch 0.4 are dropped, as the official reader does.

    Raises:
        CheckpointError: an unreadable file, or names or shapes that differ; ``net`` is unchanged then.
    """
    state, own = read_official(path), net.state_dict()
    batch_norms = {key.rpartition(".")[0] for key in state if key.endswith(".running_mean")} & {
        key.rpartition(".")[0] for key in state if key.endswith(".weight")
    }
    for key in list(state):
        prefix, _, name = key.rpartition(".")
        if name in _STATISTICS and prefix not in batch_norms and key not in own:
            del state[key]
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is not in the network" for key in state if key not in own]
    problems += [
        f"{key} has shape {list(state[key].shape)}, the network's has {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        found = infer_generator(state)
        looks = f" The file looks like {found}." if found else ""
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{path}: not a checkpoint of this network: {'; '.join(problems[:3])}{more}.{looks}")
    net.load_state_dict(state)


def save_official(net: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes ``net``'s weights as the official code reads them: dense float tensors on the CPU. The write is atomic.

    Raises:
        OSError: ``path`` cannot be written.
    """
    net = getattr(net, "_orig_mod", net)  # torch.compile's wrapper
    if isinstance(net, nn.parallel.DistributedDataParallel):
        net = net.module
    data = io.BytesIO()  # of a disk that is full, torch.save says nothing that could be understood
    torch.save({key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}, data)
    with atomic_write(Path(path), durable=True) as file:
        file.write_bytes(data.getvalue())  # Python 3.12 may crash collecting a getbuffer() that an error kept


def infer_generator(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The arguments of :func:`fastgan.models.build_generator` that fit a generator's state_dict, or None.

    Dropout in a U-Net leaves no trace in the names and is taken as absent.
    """
    if "model.1.weight" in state and state["model.1.weight"].shape[-1] == 7:  # ResNet
        first = state["model.1.weight"]
        blocks = {int(match[1]) for key in state if (match := re.match(r"model\.(\d+)\.conv_block\.", key))}
        last = max(int(key.split(".")[1]) for key in state)
        return {
            "name": f"resnet_{len(blocks)}blocks",
            "in_channels": first.size(1),
            "out_channels": state[f"model.{last}.weight"].size(0),
            "ngf": first.size(0),
            "norm": "batch" if "model.2.weight" in state else "instance" if "model.1.bias" in state else "none",
            "dropout": any(key.endswith(".conv_block.6.weight") and state[key].dim() == 4 for key in state),
        }
    if "model.model.0.weight" in state and "model.model.3.weight" in state:  # U-Net
        first, last_up = state["model.model.0.weight"], state["model.model.3.weight"]
        downs = sum(key.endswith(".weight") and value.dim() == 4 for key, value in state.items()) // 2
        batch = "model.model.1.model.2.weight" in state
        return {
            "name": f"unet_{2**downs}",
            "in_channels": first.size(1),
            "out_channels": last_up.size(1),
            "ngf": first.size(0),
            "norm": "batch" if batch else "instance" if "model.model.0.bias" in state else "none",
            "dropout": False,
        }
    return None
