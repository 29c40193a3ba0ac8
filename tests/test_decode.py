"""Decoding by the stated rules, against pixels that were computed another way; and files that must not get in."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decant.data import decode as module
from decant.data.decode import Rules, Undecodable, choose_rules, decode, decode_batch, decode_batches
from decant.data.sources.base import Item
from decant.errors import SourceError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)  # 8 wide, 6 high
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
AS_RGB, AS_GRAY = Rules(6, 8, 3), Rules(6, 8, 1)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    contents = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(contents, kind, **options)
    return contents.getvalue()


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601."""
    return rgb @ np.array([0.299, 0.587, 0.114])


# Colour -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_put_in(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(encoded(RGB, kind, **options), AS_RGB), RGB)


def test_gray_becomes_three_equal_channels_and_colour_becomes_luma() -> None:
    np.testing.assert_array_equal(decode(encoded(GRAY), AS_RGB), np.stack([GRAY] * 3, axis=-1))
    np.testing.assert_allclose(decode(encoded(RGB), AS_GRAY)[..., 0], luma(RGB), atol=1)


def test_transparency_is_laid_over_white() -> None:
    alpha = np.linspace(0, 255, 48).reshape(6, 8).round().astype(np.uint8)
    over_white = RGB * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None]
    np.testing.assert_allclose(decode(encoded(np.dstack([RGB, alpha])), AS_RGB), over_white, atol=1)
    gray_over_white = GRAY * (alpha / 255) + 255 * (1 - alpha / 255)
    found = decode(encoded(np.dstack([GRAY, alpha])), AS_GRAY)  # a PNG of gray and alpha
    np.testing.assert_allclose(found[..., 0], gray_over_white, atol=1)


def test_palettes_are_looked_up_and_their_transparent_colour_is_white() -> None:
    image = Image.new("P", (8, 6))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1] * 24)
    found = decode(encoded(image), AS_RGB)
    assert found[0, 0].tolist() == [10, 20, 30] and found[0, 1].tolist() == [200, 100, 50]
    found = decode(encoded(image, transparency=1), AS_RGB)
    assert found[0, 0].tolist() == [10, 20, 30] and found[0, 1].tolist() == [255, 255, 255]


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    deep = np.array([[0, 1, 128, 129, 257, 32768, 65534, 65535]] * 6, np.uint16)
    expected = [0, 0, 0, 1, 1, 128, 255, 255]  # round(v / 257)
    for kind in ("PNG", "TIFF"):
        assert decode(encoded(deep, kind), AS_GRAY)[0, :, 0].tolist() == expected, kind


def test_cmyk_and_one_bit_images_are_converted() -> None:
    plain = Image.new("CMYK", (8, 6), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    found = decode(encoded(plain, "JPEG", quality=95), AS_RGB)
    np.testing.assert_allclose(found.reshape(-1, 3).mean(axis=0), [255, 0, 0], atol=3)
    bits = Image.fromarray(GRAY > 127)
    assert bits.mode == "1"
    np.testing.assert_array_equal(decode(encoded(bits), AS_GRAY)[..., 0], np.where(GRAY > 127, 255, 0))


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(Undecodable, match="floating-point pixels, whose range is unknown"):
        decode(encoded(GRAY.astype(np.float32), "TIFF"), AS_GRAY)


# Orientation and size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("orientation", "turned"), [(1, RGB), (3, RGB[::-1, ::-1]), (6, np.rot90(RGB, -1))])
def test_images_stand_as_a_viewer_shows_them(orientation: int, turned: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    contents = encoded(RGB, "PNG", exif=exif)
    assert choose_rules([contents], None, "rgb") == Rules(*turned.shape)
    np.testing.assert_array_equal(decode(contents, Rules(*turned.shape)), turned)


def test_halving_is_the_triangle_average_of_an_antialiased_bilinear_filter() -> None:
    """Reducing by two, Pillow's bilinear filter weighs the four nearest pixels 1/8, 3/8, 3/8, 1/8 along each side."""
    row = RNG.integers(0, 256, 16).astype(np.uint8)
    found = decode(encoded(np.tile(row, (16, 1))), Rules(8, 8, 1))[0, 1:-1, 0]
    expected = [row[i - 1 : i + 3] @ [1, 3, 3, 1] / 8 for i in range(2, 14, 2)]
    np.testing.assert_allclose(found, expected, atol=1)


def test_nothing_is_cut_off_when_the_aspect_ratio_changes() -> None:
    wide = np.zeros((10, 40), np.uint8)
    wide[:, :8], wide[:, -8:] = 255, 128
    found = decode(encoded(wide), Rules(10, 10, 1))[5, :, 0]
    assert found[0] == 255 and found[-1] == 128 and found[5] == 0


def test_large_jpegs_decoded_at_a_reduced_scale_look_the_same() -> None:
    y, x = np.mgrid[:800, :800]
    photo = (127 + 60 * np.sin(x / 90) + 60 * np.cos(y / 70)).astype(np.uint8)
    contents = encoded(photo, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(contents)).resize((40, 40), Image.Resampling.BILINEAR)
    found = decode(contents, Rules(40, 40, 1))[..., 0].astype(int)
    assert np.abs(found - np.asarray(whole)).max() <= 4


def test_the_commonest_size_wins_and_gray_needs_every_image_gray() -> None:
    small, large = encoded(GRAY[:4, :4]), encoded(GRAY)
    assert choose_rules([large, small, large], None, "auto") == Rules(6, 8, 1)
    assert choose_rules([large, small], None, "auto") == Rules(6, 8, 1), "of two equally common sizes the larger"
    assert choose_rules([large, encoded(RGB)], None, "auto") == Rules(6, 8, 3)
    assert choose_rules([encoded(np.stack([GRAY] * 3, axis=-1))], None, "auto").channels == 1, "gray stored as RGB"
    assert choose_rules([encoded(RGB)], 5, "gray") == Rules(5, 5, 1)
    assert choose_rules([large], None, "rgb").channels == 3


# Files that must not get in -----------------------------------------------------------------------------------------


def png_that_declares(width: int, height: int) -> bytes:
    """A valid PNG header and a few bytes of zeros: what a decompression bomb looks like from outside."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_460, 50_000])  # just above the limit, and where Pillow raises
@pytest.mark.parametrize("pillows_limit", [Image.MAX_IMAGE_PIXELS, None])  # some libraries switch it off
def test_a_bomb_is_known_by_its_header_and_never_decoded(
    side: int, pillows_limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("decoded")

    contents = png_that_declares(side, side)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    decoded = decode_batch((np.array([3]), [contents]), AS_GRAY)
    assert len(decoded.rows) == 0
    assert "pixels declared" in decoded.rejected[0][1] and "not decoded" in decoded.rejected[0][1]


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Item]:
    """Part of the reason that is expected, to the item."""
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.png").touch()
    return {
        "can't be decoded: image file is truncated": encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))[:2000],
        "not an image (PNG, JPEG": b"<html>404 Not Found</html>",
        "image missing": None,
        "can't be decoded: No such file or directory": str(tmp_path / "gone"),
        "can't be decoded: Is a directory": str(tmp_path),
        "not an image": str(tmp_path / "empty.png"),  # what a file without contents is
    }


def test_each_broken_item_is_set_aside_with_its_reason_and_the_others_come_through(
    broken: dict[str, Item], tmp_path: Path
) -> None:
    items = [encoded(RGB), *broken.values(), encoded(RGB[::-1])]
    decoded = decode_batch((np.arange(10, 10 + len(items)), items), AS_RGB)
    assert decoded.rows.tolist() == [10, 9 + len(items)]
    np.testing.assert_array_equal(decoded.pixels, [RGB, RGB[::-1]])
    assert [row for row, _ in decoded.rejected] == list(range(11, 11 + len(broken)))
    for expected, (_, reason) in zip(broken, decoded.rejected, strict=True):
        assert expected in reason
        assert "0x" not in reason and str(tmp_path) not in reason, "reasons must not differ between runs"


def test_no_external_program_is_ever_started() -> None:
    """Pillow's EPS reader would run Ghostscript."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(postscript)).format == "EPS"
    with pytest.raises(Undecodable, match="not an image"):
        decode(postscript, AS_RGB)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_is_a_reason_never_a_crash(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = [encoded(RGB, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]
    for contents in whole * 20:
        damaged = bytearray(contents)
        for at in rng.integers(0, len(damaged), 4):
            damaged[at] = rng.integers(0, 256)
        decode_batch((np.array([0]), [bytes(damaged)]), AS_RGB)


def test_a_sample_without_a_single_image_is_an_error() -> None:
    with pytest.raises(
        SourceError, match="no image can be decoded: 2 of 2 sampled rows are bad, most often: not an image"
    ):
        choose_rules([b"text", b"more text"], None, "auto")


# Many at once -------------------------------------------------------------------------------------------------------


def test_any_number_of_workers_gives_the_same_rows_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    contents: list[Item] = [encoded(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(40)]
    contents[17] = b"broken"
    batches = [(np.arange(start, start + 4), contents[start : start + 4]) for start in range(0, 40, 4)]
    monkeypatch.setattr(module, "PATIENCE", 0.0)  # other processes take over after the first batch
    found = {}
    for workers in ("1", "2"):
        monkeypatch.setenv("DECANT_WORKERS", workers)
        found[workers] = list(decode_batches(batches, AS_RGB))
    for one, two in zip(found["1"], found["2"], strict=True):
        for name in ("rows", "pixels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.rejected == two.rejected
    assert np.concatenate([part.rows for part in found["2"]]).tolist() == [row for row in range(40) if row != 17]


def test_large_batches_are_cut_so_that_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 3 * 6 * 8 * 3)  # three images
    parts = list(decode_batches([(np.arange(7), [encoded(RGB)] * 7)], AS_RGB))
    assert [len(part.rows) for part in parts] == [3, 3, 1]
