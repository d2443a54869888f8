"""Outputs on a disk that fills up, and where no folder can be: one error that names them, and nothing half written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastgan._output import atomic_write, make_folder
from fastgan.models import save_official
from fastgan.training import checkpoint, gan, sampling
from fastgan.training.log import Stats, TensorBoard, read_stats
from tests.training.test_gan_step import tiny


def test_a_failed_write_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("old")

    def fill() -> None:
        with atomic_write(path) as file:
            file.write_text("ne")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"x\.png cannot be written: No space left on device"):
        fill()
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert path.read_text() == "old"
    with atomic_write(path) as file:
        assert file.suffix == ".png"
        file.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert path.read_text() == "new"


def test_files_are_readable_as_others_are(tmp_path: Path) -> None:
    """Libraries that write by way of a temporary file of their own make it private."""
    (tmp_path / "usual").touch()
    checkpoint.write(tmp_path / "x.safetensors", {"x": torch.zeros(1)})
    save_official(torch.nn.Linear(1, 1), tmp_path / "x.pth")
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_weights_on_a_full_disk_name_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"x\.pth cannot be written: No space left on device"):
        save_official(torch.nn.Linear(1, 1), tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_log_on_a_full_disk_names_itself(tmp_path: Path) -> None:
    stats = Stats(tmp_path / "stats.jsonl", 0)
    stats.write({"step": 1})
    stats._file.close()
    stats._file = open("/dev/full", "a")  # noqa: SIM115 -- Stats closes it
    with pytest.raises(OSError, match=r"stats\.jsonl cannot be written: No space left on device"):
        stats.write({"step": 2})
    stats.close()
    assert read_stats(tmp_path / "stats.jsonl") == [{"step": 1}]


def test_events_on_a_full_disk_name_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = TensorBoard(tmp_path / "events", 0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("add_scalar", "add_image", "close"):
        monkeypatch.setattr(events._writer, name, full)
    for write in (lambda: events.scalars(1, {"loss": 1.0}), lambda: events.image(1, Image.new("RGB", (2, 2)))):
        with pytest.raises(OSError, match="events cannot be written: No space left on device"):
            write()
    with pytest.raises(OSError, match="events cannot be written"):
        events.close()


def test_a_file_in_a_folder_s_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=r"out must be a folder, and .*file.* is a file or lies in one"):
            make_folder("out", path)
    settings = {"objective": "sliced", "steps": 1, "display_freq": 0}
    with pytest.raises(NotADirectoryError, match=r"checkpoints_dir/name must be a folder, and .*file/gan is"):
        gan.train(tiny(**settings, checkpoints_dir=tmp_path / "file"))
    gan.train(tiny(**settings, checkpoints_dir=tmp_path))
    with pytest.raises(NotADirectoryError, match=r"out's folder must be a folder, and .*file is"):
        sampling.write(sampling.load(tmp_path / "gan", device="cpu"), tmp_path / "file" / "x.png", 4)
