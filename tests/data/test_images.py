"""Folders of images: preprocessing, chance, errors, and the loader on top."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.data import DataError, PairedImageFolder, Preprocess, SingleImageFolder, UnpairedImageFolder
from fastgan.training.loader import Loader

SMALL = Preprocess(load_size=20, crop_size=16)


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _picture(seed, width=24, height=18):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def root(tmp_path):
    for k, (folder, count) in enumerate({"trainA": 5, "trainB": 3, "testA": 2, "testB": 2}.items()):
        (tmp_path / folder).mkdir()
        for i in range(count):
            _picture(10 * k + i).save(tmp_path / folder / f"{i}.png")
    return tmp_path


# --- preprocessing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("resize_and_crop", (50, 30), (16, 16)),
        ("crop", (50, 30), (16, 16)),
        ("scale_width_and_crop", (50, 30), (16, 16)),
        ("scale_width_and_crop", (20, 9), (16, 16)),
        ("scale_width", (40, 70), (20, 36)),  # 20·70/40 = 35, to a multiple of 4
        ("scale_width", (40, 10), (20, 16)),  # at least crop_size high
        ("scale_width", (20, 33), (20, 32)),
        ("none", (50, 30), (48, 32)),  # banker's rounding of 12.5 and 7.5, as Python's and so the official code's
        ("none", (3, 1), (4, 4)),
    ],
)
def test_sizes(mode, size, expected):
    preprocess = Preprocess(mode, load_size=20, crop_size=16)
    pixels = preprocess.prepare(_picture(0, *size))
    for generator in (None, _seeded()):
        x = preprocess.finish(pixels, 3, generator)
        assert x.shape == (3, expected[1], expected[0])
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        assert -1 <= x.min() <= x.max() <= 1


def test_values_are_the_official_normalisation():
    """ToTensor and Normalize(0.5, 0.5) of torchvision, to the bit."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    x = Preprocess("none", flip=False).finish(pixels, 3, None)
    expected = (torch.arange(256, dtype=torch.uint8).to(torch.float32).div(255) - 0.5) / 0.5
    assert torch.equal(x[1].flatten(), expected)


def test_resizing_is_pillows_bicubic():
    picture = _picture(1, 31, 47)
    preprocess = Preprocess(load_size=24, crop_size=24, flip=False)
    expected = np.asarray(picture.resize((24, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(preprocess.prepare(picture), expected)


def test_crop_and_flip_are_uniform():
    columns = np.broadcast_to(np.arange(8, dtype=np.uint8)[None, :, None], (6, 8, 1)).copy()
    preprocess = Preprocess("crop", crop_size=4)
    generator, seen = _seeded(), {}
    for _ in range(2000):
        x = (preprocess.finish(columns, 1, generator)[0, 0] * 127.5 + 127.5).round().int().tolist()
        flipped = x[0] > x[-1]
        seen[min(x), flipped] = seen.get((min(x), flipped), 0) + 1
        assert sorted(x) == list(range(min(x), min(x) + 4))
    assert set(seen) == {(left, flip) for left in range(5) for flip in (False, True)}
    assert all(abs(n - 200) < 70 for n in seen.values())  # 5 standard deviations
    central = preprocess.finish(columns, 1, None)
    assert torch.equal(central, preprocess.finish(columns, 1, None))
    assert (central[0, 0] * 127.5 + 127.5).round().int().tolist() == [2, 3, 4, 5]


def test_16_bit_grey_becomes_any_number_of_channels(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8), np.uint16)
    values[:4, :4] = 65535
    Image.fromarray(values).save(tmp_path / "x.png")
    exact = torch.from_numpy(values.astype(np.float32)) / 65535 * 2 - 1
    for channels in (1, 3, 4):
        x = SingleImageFolder(tmp_path, Preprocess("none", flip=False), channels=channels)[0]
        assert x.shape == (channels, 8, 8)
        torch.testing.assert_close(x[:3], exact.expand(min(channels, 3), 8, 8), atol=1e-6, rtol=0)
    assert x[3].min() == 1
    x = SingleImageFolder(tmp_path, Preprocess(load_size=12, crop_size=12), channels=1)[0]
    assert x.max() <= 1  # bicubic overshoot is clipped


def test_testing_settings():
    assert Preprocess().for_testing() == Preprocess(load_size=256, flip=False)
    assert Preprocess("scale_width", 512).for_testing() == Preprocess("scale_width", 512, flip=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "resize"}, r"preprocess must be one of resize_and_crop, .*got 'resize'"),
        ({"load_size": 200}, r"load_size must be at least crop_size .* got load_size 200 < crop_size 256"),
        ({"crop_size": 0}, r"crop_size must be at least 1, got 0"),
        ({"crop_size": 254}, r"crop_size must be a multiple of 4, which the generator needs, got 254"),
        ({"mode": "scale_width", "load_size": 250}, r"load_size must be a multiple of 4.* got 250"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**arguments)


# --- data sets ------------------------------------------------------------------------------------------------------


def test_unpaired(root):
    data = UnpairedImageFolder(root, SMALL)
    assert len(data) == 5
    partners = {data.sample(4, _seeded(seed))["B_path"][-5:] for seed in range(30)}
    assert partners == {"0.png", "1.png", "2.png"}
    item = data[4]
    assert item["A"].shape == item["B"].shape == (3, 16, 16)
    assert item["A_path"].endswith("4.png")
    assert item["B_path"].endswith("1.png")  # 4 mod 3
    with pytest.raises(IndexError):
        data[5]


def test_options(root):
    serial = UnpairedImageFolder(root, SMALL, serial_batches=True)
    assert {serial.sample(3, _seeded(seed))["B_path"][-5:] for seed in range(9)} == {"0.png"}
    back = UnpairedImageFolder(root, SMALL, direction="BtoA", channels_a=1)
    assert back[4]["A_path"].endswith("1.png")
    assert "trainB" in back[4]["A_path"]
    assert back[4]["A"].shape == (1, 16, 16)
    assert back[4]["B"].shape == (3, 16, 16)
    assert len(UnpairedImageFolder(root, SMALL, max_dataset_size=2)) == 2
    assert len(UnpairedImageFolder(root, SMALL, phase="test")) == 2


def test_chance_comes_from_the_generator_alone(root):
    plain, cached = UnpairedImageFolder(root, SMALL), UnpairedImageFolder(root, SMALL, cache=True)
    state = torch.random.get_rng_state()
    for index in (3, 0, 3):
        first, second = plain.sample(index, _seeded(index)), cached.sample(index, _seeded(index))
        assert torch.equal(first["A"], second["A"])
        assert torch.equal(first["B"], second["B"])
        assert first["B_path"] == second["B_path"]
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(plain.sample(3, _seeded(1))["A"], plain.sample(3, _seeded(2))["A"])


def test_a_cache_needs_the_files_no_more(root):
    calls = []
    data = SingleImageFolder(root / "trainA", SMALL, cache=True, progress=lambda *done: calls.append(done))
    assert calls == [(i, 5) for i in range(1, 6)]
    before = data[2]
    for path in data.paths:
        path.unlink()
    assert torch.equal(data[2], before)


def test_loading_does_not_depend_on_workers_and_resumes(root):
    def batches(workers, skip, count):
        loader = Loader(UnpairedImageFolder(root, SMALL), 2, seed=7, workers=workers)
        if skip:
            reached = Loader(UnpairedImageFolder(root, SMALL), 2, seed=7)
            for _ in range(skip):
                next(reached)
            loader.load_state_dict(reached.state_dict())
        result = [next(loader) for _ in range(count)]
        loader.close()
        return result

    whole = batches(0, 0, 6)
    for again in (batches(2, 0, 6), whole[:4] + batches(0, 4, 2)):
        for first, second in zip(whole, again, strict=True):
            assert torch.equal(first["A"], second["A"])
            assert torch.equal(first["B"], second["B"])
            assert first["B_path"] == second["B_path"]
    assert not torch.equal(whole[0]["A"], whole[3]["A"])  # another epoch, another order


def test_paired(root):
    pairs = PairedImageFolder(root, SMALL)
    assert len(pairs) == 2
    assert torch.equal(pairs.sample(1, _seeded())["A"], pairs[1]["A"])
    assert pairs.a.name(1) == "1"
    with Image.open(root / "testB" / "1.png") as image:
        image.resize((image.width + 8, image.height)).save(root / "testB" / "1.png")
    with pytest.raises(DataError, match=r"A/1\.png and .*B/1\.png: expected pairs of one size, got \d+×\d+ and \d+×"):
        PairedImageFolder(root, Preprocess("none"))
    (root / "testB" / "1.png").rename(root / "testB" / "one.png")
    with pytest.raises(
        DataError, match=r"testA and .*testB: expected files of the same names, 2 have no partner: 1, one"
    ):
        PairedImageFolder(root, SMALL)


def test_bad_folders(root):
    with pytest.raises(DataError, match=r"nowhere: no such folder; expected a folder with trainA and trainB"):
        UnpairedImageFolder(root / "nowhere")
    with pytest.raises(
        DataError, match=r"valA: no such folder; .* to hold valA and valB .* found testA, testB, trainA"
    ):
        UnpairedImageFolder(root, phase="val")
    for path in (root / "trainB").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"trainB: holds no image \(it is empty\)"):
        UnpairedImageFolder(root)
    (root / "trainB").rmdir()
    with pytest.raises(DataError, match=r"trainB: no such folder; .* found testA, testB, trainA"):
        UnpairedImageFolder(root)


def test_bad_files_are_named_before_training(root):
    path = root / "trainB" / "1.png"
    path.write_text("not an image")
    with pytest.raises(DataError, match=r"trainB/1\.png: not a readable image"):
        UnpairedImageFolder(root, SMALL)
    _picture(0, 30, 12).save(path)
    with pytest.raises(DataError, match=r"1\.png: is 30×12 pixels, smaller than the crop of 16×16; use preprocess"):
        UnpairedImageFolder(root, Preprocess("crop", crop_size=16))
    _picture(0, 64, 64).save(path.with_suffix(".jpg"))
    whole = path.with_suffix(".jpg").read_bytes()
    path.unlink()
    path.with_suffix(".jpg").write_bytes(whole[: len(whole) // 2])
    lazy = SingleImageFolder(root / "trainB", SMALL)  # its header is whole
    with pytest.raises(DataError, match=r"1\.jpg: not a readable image"):
        lazy[1]
    with pytest.raises(DataError, match=r"1\.jpg: not a readable image"):
        SingleImageFolder(root / "trainB", SMALL, cache=True)
    with pytest.raises(DataError, match=r"1\.jpg: not a readable image"):  # through a worker process, too
        next(Loader(lazy, 3, seed=0, workers=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"direction": "AtoA"}, r"direction must be 'AtoB' or 'BtoA', got 'AtoA'"),
        ({"channels_a": 2}, r"channels must be 1, 3 or 4, got 2"),
        ({"max_dataset_size": 0}, r"max_dataset_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        UnpairedImageFolder(root, SMALL, **arguments)
