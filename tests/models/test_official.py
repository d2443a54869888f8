"""Checkpoints of the official code, in both directions."""

from __future__ import annotations

import pytest
import torch

from fastgan.models import (
    CheckpointError,
    build_discriminator,
    build_generator,
    infer_generator,
    load_official,
    read_official,
    save_official,
)
from fastgan.nn import fuse

CASES = [
    {"name": "resnet_3blocks", "norm": "instance"},
    {"name": "resnet_3blocks", "norm": "batch", "dropout": True},
    {"name": "resnet_1blocks", "norm": "none", "in_channels": 1},
    {"name": "unet_32", "norm": "instance", "out_channels": 1},
    {"name": "unet_64", "norm": "batch"},
    {"name": "unet_32", "norm": "none"},
]


@pytest.mark.parametrize("arguments", CASES)
def test_round_trip(tmp_path, arguments):
    net, other = build_generator(ngf=4, **arguments), build_generator(ngf=4, **arguments)
    net.to(memory_format=torch.channels_last)
    save_official(net, tmp_path / "latest_net_G_A.pth")
    load_official(other, tmp_path / "latest_net_G_A.pth")
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    stored = torch.load(tmp_path / "latest_net_G_A.pth", weights_only=True)
    assert list(stored) == list(net.state_dict())
    assert all(value.is_contiguous() for value in stored.values())
    assert list(tmp_path.iterdir()) == [tmp_path / "latest_net_G_A.pth"]


@pytest.mark.parametrize("arguments", CASES)
def test_architecture_is_inferred(arguments):
    net = build_generator(ngf=4, **arguments)
    full = {"in_channels": 3, "out_channels": 3, "ngf": 4, "dropout": False, **arguments}
    assert infer_generator(net.state_dict()) == full
    assert infer_generator(build_discriminator(ndf=2).state_dict()) is None


def test_fused_networks_read_and_write_the_same_files(tmp_path):
    plain, fused = build_generator("resnet_1blocks", ngf=2), build_generator("resnet_1blocks", ngf=2)
    fuse(fused)
    save_official(plain, tmp_path / "plain.pth")
    load_official(fused, tmp_path / "plain.pth")
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(fused(x), plain(x))
    save_official(fused, tmp_path / "fused.pth")
    stored, expected = (read_official(tmp_path / name) for name in ("fused.pth", "plain.pth"))
    assert list(stored) == list(expected)
    assert all(torch.equal(stored[key], expected[key]) for key in expected)


def test_wrappers_of_the_network_leave_no_trace(tmp_path):
    net = build_discriminator(ndf=2)
    save_official(torch.compile(net, backend="eager"), tmp_path / "net.pth")
    assert list(read_official(tmp_path / "net.pth")) == list(net.state_dict())
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "parallel.pth")
    load_official(build_discriminator(ndf=2), tmp_path / "parallel.pth")


def test_statistics_of_old_instance_norms_are_dropped(tmp_path):
    net = build_discriminator(ndf=2)
    state = net.state_dict()
    for index in (3, 6, 9):
        state[f"model.{index}.running_mean"] = torch.ones(2)
        state[f"model.{index}.running_var"] = torch.ones(2)
        state[f"model.{index}.num_batches_tracked"] = torch.tensor(1)
    torch.save(state, tmp_path / "old.pth")
    loaded = build_discriminator(ndf=2)
    load_official(loaded, tmp_path / "old.pth")
    assert torch.equal(loaded.model[0].weight, net.model[0].weight)


def test_batch_norm_statistics_are_not_dropped_silently(tmp_path):
    save_official(build_discriminator(ndf=2, norm="batch"), tmp_path / "batch.pth")
    with pytest.raises(CheckpointError, match=r"model\.2\.bias is missing"):
        load_official(build_discriminator(ndf=2), tmp_path / "batch.pth")


def test_another_network_is_refused_and_nothing_is_loaded(tmp_path):
    save_official(build_generator("resnet_3blocks", ngf=4), tmp_path / "three.pth")
    net = build_generator("resnet_2blocks", ngf=4)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"three\.pth: not a checkpoint.*looks like .*resnet_3blocks"):
        load_official(net, tmp_path / "three.pth")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(CheckpointError, match=r"model\.1\.weight has shape \[4, 3, 7, 7\].*\[2, 3, 7, 7\]"):
        load_official(build_generator("resnet_3blocks", ngf=2), tmp_path / "three.pth")


class _Evil:
    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


def test_unreadable_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_official(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_official(tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pth: damaged, or holds more than weights; expected"):
        read_official(tmp_path / "text.pth")
    torch.save({"weight": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: damaged, or holds more than weights"):
        read_official(tmp_path / "evil.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="expected the state_dict"):
        read_official(tmp_path / "other.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_official(build_discriminator(ndf=2), tmp_path / "net.pth")
    before = (tmp_path / "net.pth").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_official(build_discriminator(ndf=2), tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]
