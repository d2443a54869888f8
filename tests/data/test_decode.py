"""Image files of every kind are read as a viewer shows them."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fastgan.data import SingleImageFolder
from fastgan.data.decode import DataError, decode, image_size, list_images


@pytest.fixture
def ramp():
    return np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3) * 2


def _save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".webp"])
def test_rgb(tmp_path, ramp, suffix):
    options = {"lossless": True} if suffix == ".webp" else {}
    path = _save(tmp_path / f"x{suffix}", Image.fromarray(ramp), **options)
    assert np.array_equal(np.asarray(decode(path)), ramp)
    assert decode(path, 1).mode == "L"
    assert np.asarray(decode(path, 4))[..., 3].min() == 255
    assert image_size(path) == (5, 6)


def test_grey_and_bilevel(tmp_path, ramp):
    grey = ramp[..., 0]
    path = _save(tmp_path / "grey.png", Image.fromarray(grey))
    assert np.array_equal(np.asarray(decode(path, 1)), grey)
    assert np.array_equal(np.asarray(decode(path, 3)), np.stack([grey] * 3, 2))
    path = _save(tmp_path / "bits.tif", Image.fromarray(grey > 30))
    assert np.array_equal(np.asarray(decode(path, 1)), np.where(grey > 30, 255, 0))


@pytest.mark.parametrize(("suffix", "order"), [("png", ">u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_16_bit_grey_keeps_its_precision(tmp_path, suffix, order):
    values = np.array([[0, 1, 255, 256], [1000, 30000, 65534, 65535]], np.uint16)
    if suffix == "tif" and order == ">u2":
        path = tmp_path / "big.tif"
        path.write_bytes(_big_endian_tiff(values))
    else:
        path = _save(tmp_path / f"x.{suffix}", Image.fromarray(values))
    for channels in (1, 3):
        image = decode(path, channels)
        assert image.mode == "F"
        assert np.allclose(np.asarray(image), values * (255 / 65535), atol=1e-4)


def _big_endian_tiff(values):
    height, width = values.shape
    data = values.astype(">u2").tobytes()
    entries = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 3, height), (279, 4, len(data))]
    ifd = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        ifd += struct.pack(">HHI", tag, kind, 1) + (
            struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
        )
    return b"MM\x00*" + struct.pack(">I", 8 + len(data)) + data + ifd + struct.pack(">I", 0)


def test_16_bit_rgb_png(tmp_path):
    values = np.array([[[0, 257 * 100, 65535]]], ">u2")
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\x00" + values.tobytes()))
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    assert np.asarray(decode(path)).tolist() == [[[0, 100, 255]]]


def test_16_bit_pgm(tmp_path):
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5\n2 1\n65535\n" + np.array([0, 65535], ">u2").tobytes())
    assert np.asarray(decode(path, 1)).tolist() == [[0, 255]]


def test_transparency_is_laid_on_white_or_kept(tmp_path):
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    path = _save(tmp_path / "rgba.png", Image.fromarray(rgba))
    assert np.asarray(decode(path)).tolist() == [[[200, 0, 0], [255, 255, 255], [204, 204, 204]]]
    assert np.asarray(decode(path, 1)).tolist() == [[60, 255, 204]]
    assert np.array_equal(np.asarray(decode(path, 4)), rgba)
    path = _save(tmp_path / "la.png", Image.fromarray(rgba[..., [1, 3]], "LA"))
    assert np.asarray(decode(path)).tolist() == [[[0] * 3, [255] * 3, [204] * 3]]


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    path = _save(tmp_path / "plain.png", image)
    assert np.asarray(decode(path)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    path = _save(tmp_path / "holes.png", image, transparency=1)
    assert np.asarray(decode(path)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation, suffix):
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = 255  # a mark at the upper left
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / f"x.{suffix}", stored, exif=exif)
    assert np.array_equal(np.asarray(decode(path)), upright)
    assert image_size(path) == (6, 4)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [6, 8])
def test_uncompressed_tiffs_on_their_side(tmp_path, orientation, mode):
    pixels = np.add.outer(np.arange(24) * 3, np.arange(40) * 4).astype(np.uint8)
    stored = (
        Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / "x.tif", stored, exif=exif)
    turned = {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}[orientation]
    expected = np.asarray(Image.fromarray(pixels).transpose(turned)).astype(int)
    found = np.asarray(decode(path, 1)).astype(int)
    assert found.shape == expected.shape == image_size(path)[::-1]
    assert abs(found - expected).max() < 8  # of the way through CMYK


def test_lab_in_any_number_of_channels(tmp_path):
    from PIL import ImageCms

    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    grey = ImageCms.applyTransform(Image.new("RGB", (3, 2), (90, 90, 90)), to_lab)
    path = _save(tmp_path / "x.tif", grey)
    for channels in (1, 3):
        found = np.asarray(decode(path, channels)).astype(int)
        assert abs(found - 90).max() < 4


def test_cmyk_jpeg_and_first_frame(tmp_path):
    path = _save(tmp_path / "x.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    red = np.asarray(decode(path))[0, 0]
    assert red[0] > 240
    assert red[1:].max() < 15
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    path = _save(tmp_path / "x.tif", frames[0], save_all=True, append_images=frames[1:])
    assert np.asarray(decode(path))[0, 0].tolist() == [255, 0, 0]


def test_32_bit_pixels_are_refused(tmp_path):
    for name, dtype in (("float.tif", np.float32), ("int.tif", np.int32)):
        path = _save(tmp_path / name, Image.fromarray(np.ones((2, 2), dtype)))
        with pytest.raises(DataError, match=rf"{name}: holds 32-bit or signed pixels .*expected 8 or unsigned 16 bits"):
            decode(path)


def test_unreadable_files(tmp_path, ramp):
    text = tmp_path / "text.png"
    text.write_text("hello")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    empty = tmp_path / "empty.png"
    empty.touch()
    for path in (text, cut, empty):
        with pytest.raises(DataError, match=rf"{path.name}: not a readable image") as caught:
            decode(path)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # crosses worker processes
    assert image_size(cut) == (64, 64)
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        decode(tmp_path / "gone.png")


def test_listing(tmp_path, ramp):
    with pytest.raises(DataError, match=r"trainB: no such folder"):
        list_images(tmp_path / "trainB")
    folder = tmp_path / "x"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    with pytest.raises(DataError, match=r"x: holds no image \(it is empty\); expected image files \(\.bmp"):
        list_images(folder)
    (folder / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"x: holds no image \(1 other files\)"):
        list_images(folder)
    for name in ("b/1.PNG", "c.jpg", "a.png", "._a.png", ".hidden/d.png"):
        Image.fromarray(ramp).save(folder / name)
    assert [path.relative_to(folder).as_posix() for path in list_images(folder)] == ["a.png", "b/1.PNG", "c.jpg"]


def test_listing_follows_links(tmp_path, ramp):
    """As the official code does: photographs are often linked to, not copied. A link that leads back ends there."""
    folder, store = tmp_path / "trainA", tmp_path / "store"
    (store / "deep").mkdir(parents=True)
    folder.mkdir()
    Image.fromarray(ramp).save(store / "deep" / "a.png")
    (folder / "linked").symlink_to("../store")
    (folder / "b.png").symlink_to("../store/deep/a.png")
    (store / "back").symlink_to("..")
    assert [path.relative_to(folder).as_posix() for path in list_images(folder)] == ["b.png", "linked/deep/a.png"]
    (folder / "c.png").symlink_to("nowhere.png")
    assert len(list_images(folder)) == 3
    with pytest.raises(DataError, match=r"c\.png: a link to a file that is not there"):
        SingleImageFolder(folder)
