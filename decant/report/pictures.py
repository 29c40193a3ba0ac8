"""Images as a page can show them: PNG inside the page, perturbations made visible, whole multiples of pixels."""

import base64
import io

import numpy as np
from PIL import Image

MAX_SIDE = 64  # pixels; larger images are embedded smaller, or a page of photographs would weigh tens of megabytes

_DARKER, _MIDDLE, _LIGHTER = np.array([[0, 60, 136], [136, 136, 136], [255, 178, 76]], dtype=float)


def diverging(perturbation: np.ndarray) -> np.ndarray:
    """(h, w, c) signed -> (h, w, 3) uint8 around gray, scaled so that the largest value of this image is full colour.

    One channel: dark blue where the perturbation made a pixel darker, bright orange where lighter. Three channels: each
    channel around its own gray.
    """
    values = perturbation.astype(float) / max(float(np.abs(perturbation).max()), 1e-9)  # [-1, 1]
    if values.shape[-1] != 1:
        return np.rint(127.5 + 127.5 * values).astype(np.uint8)
    towards = np.where(values < 0, _DARKER, _LIGHTER)
    return np.rint(_MIDDLE + np.abs(values) * (towards - _MIDDLE)).astype(np.uint8)


def png_uri(pixels: np.ndarray) -> str:
    """(h, w, c) uint8 as the data URI of a PNG whose longer side is at most MAX_SIDE."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels)
    longer = max(image.size)
    if longer > MAX_SIDE:
        width, height = (max(1, round(side * MAX_SIDE / longer)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def shown_side(shape: tuple[int, int, int], wanted: int) -> int:
    """Width in CSS pixels near `wanted`, a multiple of the embedded width: all pixels are drawn equally large."""
    height, width, _ = shape
    embedded = max(1, round(width * min(1, MAX_SIDE / max(height, width))))
    return embedded * max(1, round(wanted / embedded))
