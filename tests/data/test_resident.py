"""Images kept on a device: draws and pixels of the host's way, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.data import Preprocess, SingleImageFolder, UnpairedImageFolder
from fastgan.data.resident import ResidentImages, ResidentPairs, on_device

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, count in (("trainA", 5), ("trainB", 3)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            pixels = np.random.default_rng(count + i).integers(0, 256, (19, 23, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    return tmp_path


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["resize_and_crop", "scale_width_and_crop", "none"])
@pytest.mark.parametrize(("channels_a", "flip"), [(3, True), (1, False)])
def test_pairs_are_the_hosts(root: Path, mode: str, channels_a: int, flip: bool, device: str) -> None:
    preprocess = Preprocess(mode, load_size=16, crop_size=12, flip=flip)
    host = UnpairedImageFolder(root, preprocess, channels_a=channels_a, cache=True)
    resident = ResidentPairs(host, device)
    assert len(resident) == len(host) == 5
    generators = [seeded(1), seeded(1)]
    for generator in (True, False):
        items = [host.sample(i, generators[0] if generator else None) for i in range(5)]
        drawn = [resident.sample(i, generators[1] if generator else None) for i in range(5)]
        made = resident.finish({name: torch.stack([d[name] for d in drawn]) for name in "AB"})
        for name in "AB":
            assert made[name].device.type == device
            assert torch.equal(made[name].cpu(), torch.stack([item[name] for item in items]))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_what_cannot_be_kept_is_refused(root: Path) -> None:
    apart = SingleImageFolder(root / "trainA", Preprocess("none"))
    with pytest.raises(ValueError, match="trainA: images are not cached"):
        ResidentImages(apart, "cpu")
    deep = root / "deep"
    deep.mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999).save(deep / "a.png")
    folder = SingleImageFolder(deep, Preprocess("none"), cache=True)
    with pytest.raises(ValueError, match="deep: a has 16 bits"):
        ResidentImages(folder, "cpu")
    for name in ("0", "b"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(deep / f"{name}.png")
    for channels in (1, 3):  # among images of 8 bits it is the one, not its number of channels
        with pytest.raises(ValueError, match="deep: a has 16 bits, and only images of 8"):
            ResidentImages(SingleImageFolder(deep, Preprocess("none"), channels=channels, cache=True), "cpu")
    Image.fromarray(np.zeros((12, 8, 3), np.uint8)).save(root / "trainA" / "tall.png")
    mixed = SingleImageFolder(root / "trainA", Preprocess("none"), cache=True)
    with pytest.raises(ValueError, match=r"trainA: images have different sizes \(0 and tall\)"):
        ResidentImages(mixed, "cpu")
    cpu = torch.device("cpu")
    assert on_device("device", [mixed], cpu)  # and then refused
    assert not any(on_device(cache, [mixed], cpu) for cache in ("auto", "on", "off"))
