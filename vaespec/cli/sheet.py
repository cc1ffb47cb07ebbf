"""Pictures beside and below each other on white, each with a caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

MARGIN, CAPTION = 12, 28  # px


def sheet(rows: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Rows of pictures (H, W, 3) uint8 of one size, by caption -> (H', W', 3) uint8."""
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


def amplified(difference: np.ndarray, times: float) -> np.ndarray:
    """|difference| (H, W, 3), of 255, so many times, as a picture."""
    return np.minimum(np.abs(difference) * times, 255).astype(np.uint8)
