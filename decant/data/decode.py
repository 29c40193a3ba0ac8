"""Decodes images into uint8 arrays of one shape: orientation, colour and size follow stated rules.

* **Formats**: PNG, JPEG, WebP, GIF (first frame), BMP, TIFF, PNM. Nothing else is tried: Pillow's other readers
  include one that runs an external program (EPS).
* **Orientation**: an EXIF orientation is applied, because whoever labelled the image saw it that way.
* **Colour**: transparency is laid over white; palettes are looked up; CMYK and YCbCr become RGB; gray from colour is
  the ITU-R 601 luma; 16-bit gray is divided by 257 and rounded; 16-bit colour keeps its high byte. Floating-point
  pixels have no known range and are refused.
* **Size**: an image of another size is resized to height x width with Pillow's antialiased bilinear filter. Its
  aspect ratio is not kept, but nothing is cut off: a backdoor trigger may sit in a corner. A JPEG more than twice as
  large is decoded at the smallest scale of 1/2, 1/4 or 1/8 that is still twice the size.
* **Bombs**: an image whose header declares more than MAX_PIXELS is never decoded.

The work is divided over `DECANT_WORKERS` processes; the order of the rows and every byte are the same for any
number.
"""

import io
import math
import multiprocessing
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from decant.data.sources.base import Batch, Item
from decant.errors import SourceError
from decant.runtime import workers

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # where Pillow itself begins to warn: 256 MiB of RGB
ORIENTATION = 0x0112  # the EXIF tag
ORIENTATION_HOLDERS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # as Pillow calls them in `info`
BATCH_BYTES = 16 * 2**20  # of pixels in one batch
PATIENCE = 2.0  # seconds of decoding before other processes are started, which costs about one

Result = TypeVar("Result")


class Undecodable(Exception):
    """This one image can't be used; the message is the reason for its quarantine."""


@dataclass(frozen=True)
class Rules:
    """The shape that every image is brought to."""

    height: int
    width: int
    channels: Literal[1, 3]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)"""
        return self.height, self.width, self.channels


@dataclass(frozen=True)
class Decoded:
    """One batch after decoding. `rows` are those that could be used; the others stand in `rejected`."""

    rows: Int64[np.ndarray, " k"]
    """Row numbers."""
    pixels: UInt8[np.ndarray, "k h w c"]
    rejected: list[tuple[int, str]]
    """(row number, reason)"""


def choose_rules(items: Iterable[Item], size: int | None, color: Literal["auto", "gray", "rgb"]) -> Rules:
    """Chooses the shape of the dataset from a sample: the commonest size, and gray if every sampled image is gray.

    Raises: SourceError when no image of the sample can be decoded.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    all_gray, reasons = True, Counter[str]()
    with _quiet():
        for item in items:
            try:
                found, gray = _guarded(_look, item)
            except Undecodable as error:
                reasons[str(error)] += 1
                continue
            sizes[found] += 1
            all_gray &= gray
    if not sizes:
        count, reason = reasons.total(), reasons.most_common(1)[0][0] if reasons else "there are none"
        raise SourceError(f"no image can be decoded: {count} of {count} sampled rows are bad, most often: {reason}")
    width, height = max(sizes, key=lambda found: (sizes[found], found))  # the larger of two that are equally common
    if size:
        width = height = size
    gray = all_gray if color == "auto" else color == "gray"
    return Rules(height, width, 1 if gray else 3)


def decode_batches(batches: Iterable[Batch], rules: Rules) -> Iterator[Decoded]:
    """Decodes the batches in their order: in this process, and when that takes long, in others."""
    batches, spent, count = _bounded(batches, rules), 0.0, workers()
    for batch in batches:
        started = time.perf_counter()
        decoded = decode_batch(batch, rules)
        spent += time.perf_counter() - started
        yield decoded
        if count > 1 and spent > PATIENCE:
            break
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:  # starts none before it is used
        waiting: deque[Future[Decoded]] = deque()
        for batch in batches:
            waiting.append(pool.submit(decode_batch, batch, rules))
            if len(waiting) > 2 * count:  # bounds what is in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _bounded(batches: Iterable[Batch], rules: Rules) -> Iterator[Batch]:
    """The batches cut so that none is larger than BATCH_BYTES once decoded."""
    size = max(1, BATCH_BYTES // math.prod(rules.shape))
    for rows, items in batches:
        for start in range(0, len(rows), size):
            yield rows[start : start + size], items[start : start + size]


def decode_batch(batch: Batch, rules: Rules) -> Decoded:
    """Decodes one batch; an image that can't be decoded is rejected with its reason."""
    rows, items = batch
    pixels = np.empty((len(rows), *rules.shape), np.uint8)
    good: list[int] = []
    rejected: list[tuple[int, str]] = []
    with _quiet():
        for row, item in zip(rows.tolist(), items, strict=True):
            try:
                pixels[len(good)] = decode(item, rules)
                good.append(row)
            except Undecodable as error:
                rejected.append((row, str(error)))
    return Decoded(np.array(good, np.int64), pixels[: len(good)], rejected)


def decode(item: Item, rules: Rules) -> UInt8[np.ndarray, "h w c"]:
    """Decodes one image. Raises Undecodable with the reason."""
    if isinstance(item, np.ndarray) and item.shape == rules.shape and item.dtype == np.uint8:
        return item
    return _guarded(_decode, item, rules)


def _decode(item: Item, rules: Rules) -> np.ndarray:
    mode = "L" if rules.channels == 1 else "RGB"
    with _opened(item) as image:
        image.draft(None, (2 * rules.width, 2 * rules.height))
        upright = _upright_8_bit(image)
        upright = upright if upright.mode == mode else upright.convert(mode)
        if upright.size != (rules.width, rules.height):
            upright = upright.resize((rules.width, rules.height), Image.Resampling.BILINEAR)
        return np.asarray(upright).reshape(rules.shape)


def _look(item: Item) -> tuple[tuple[int, int], bool]:
    """((width, height) when upright, whether it has no colour) of an item."""
    with _opened(item) as image:
        width, height = image.size
        turned = _may_be_turned(image) and image.getexif().get(ORIENTATION, 1) >= 5  # 5 to 8: quarter turns
        image.draft(None, (64, 64))  # colour shows at any scale
        upright = _upright_8_bit(image)
        gray = upright.mode == "L"
        if not gray:
            red, green, blue = np.asarray(upright).transpose(2, 0, 1)
            gray = bool((red == green).all() and (green == blue).all())
        return ((height, width) if turned else (width, height)), gray


def _opened(item: Item) -> Image.Image:
    """The item as an image of which only the header has been read."""
    if item is None:
        raise Undecodable("image missing")
    if isinstance(item, np.ndarray):
        return Image.fromarray(item[..., 0] if item.shape[-1] == 1 else item)
    image = Image.open(item if isinstance(item, str) else io.BytesIO(item), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise Undecodable(f"{image.width} x {image.height} pixels declared, over {MAX_PIXELS}: not decoded")
    return image


def _upright_8_bit(image: Image.Image) -> Image.Image:
    """The decoded image, turned as EXIF says, in mode L or RGB."""
    if image.mode == "F":
        raise Undecodable("floating-point pixels, whose range is unknown")
    image.load()
    if _may_be_turned(image):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit gray; Pillow calls some of it 32-bit ("I")
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode == "1" else "RGB")


def _may_be_turned(image: Image.Image) -> bool:
    """False when the file has nowhere to say so: asking Pillow costs as much as decoding a small image."""
    return image.format in ("TIFF", "MPO") or not ORIENTATION_HOLDERS.isdisjoint(image.info)


def _guarded(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls the function, and raises whatever a damaged file makes Pillow raise as Undecodable.

    The reason holds nothing that varies between runs.
    """
    try:
        return function(*arguments)
    except (Undecodable, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its message holds a memory address
        raise Undecodable(f"not an image ({', '.join(FORMATS)} are read)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Undecodable(f"over {MAX_PIXELS} pixels declared: not decoded") from error
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error, ...: any of Pillow's parsers
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Undecodable(f"can't be decoded: {reason.splitlines()[0]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides Pillow's warnings about odd files; its warning of a decompression bomb becomes an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
