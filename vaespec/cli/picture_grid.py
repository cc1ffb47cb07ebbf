"""A grid of pictures with captions, drawn on white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

MARGIN, CAPTION = 12, 28  # px


def picture_grid(rows: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Draws rows of caption -> picture (H, W, 3) uint8, all of one size. Returns (H', W', 3) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    H, W = next(iter(rows[0].values())).shape[:2]
    columns = max(map(len, rows))
    page = Image.new("RGB", (MARGIN + (W + MARGIN) * columns, (CAPTION + H) * len(rows) + MARGIN), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for i, row in enumerate(rows):
        for j, (caption, picture) in enumerate(row.items()):
            left, top = MARGIN + j * (W + MARGIN), i * (CAPTION + H)
            draw.text((left, top + CAPTION / 2), caption, fill="black", font=font, anchor="lm")
            page.paste(Image.fromarray(picture), (left, top + CAPTION))
    return np.asarray(page)


def amplified(difference: np.ndarray, factor: float) -> np.ndarray:
    """Returns factor · |difference| as a picture (H, W, 3) uint8; differences (H, W, C) are in levels from 0 to 255.

    Of four channels, each colour is shown with alpha's difference if that is greater.
    """
    shown = np.minimum(np.abs(difference) * factor, 255).astype(np.uint8)
    shown = np.maximum(shown[..., :3], shown[..., 3:]) if shown.shape[2] == 4 else shown
    return np.broadcast_to(shown, (*shown.shape[:2], 3))
