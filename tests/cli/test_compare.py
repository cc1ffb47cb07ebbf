"""`vaespec compare`: what blended tiles and exact bands do to a picture."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image
from support.workplace import MODEL, error, files, picture, pixels, run

from vaespec.cli.picture_grid import CAPTION, MARGIN


def test_compare_shows_that_tiles_differ_and_bands_do_not():
    picture("cat.png", 48, 40)
    document = json.loads(run("compare", "cat.png", "--tiling", "--json", *MODEL).stdout)
    blend, exact = document["errors"]
    assert blend["tiling"] == "blended tiles of 16 px"
    assert blend["max"] > blend["mean"] > 0.1
    assert exact["mean"] < exact["max"] < 0.01
    grid = pixels("vaespec-tiling.png")
    assert grid.shape == (2 * (CAPTION + 40) + MARGIN, 3 * (48 + MARGIN) + MARGIN, 3)
    below = CAPTION + 40 + CAPTION
    differences = [grid[below : below + 40, left : left + 48] for left in (2 * MARGIN + 48, 3 * MARGIN + 96)]
    assert differences[0].max() > 50
    assert differences[1].max() == 0
    run("roundtrip", "cat.png", *MODEL)
    np.testing.assert_array_equal(grid[CAPTION : CAPTION + 40, MARGIN : MARGIN + 48], pixels("cat-vae.png"))


def test_wrong_arguments_of_compare_are_reported():
    picture("cat.png", 48, 40), picture("small.png", 16, 16)
    assert "choose a comparison: --tiling" in run("compare", "cat.png", *MODEL, code=2).stderr
    assert "'--tile'" in run("compare", "cat.png", "--tiling", "--tile", "0", *MODEL, code=2).stderr
    assert "one tile holds a picture with a side of 16 px: give one with more than 16 px" in error(
        "compare", "small.png", "--tiling", *MODEL
    )
    assert "do not join" in error("compare", "cat.png", "--tiling", "--tile", "30", *MODEL)
    assert "would replace the input" in error("compare", "cat.png", "--tiling", "--output", "cat.png", *MODEL)
    assert files() == {"cat.png", "small.png"}


def test_compare_has_its_own_picture(weights_without_attention):
    model = ("--weights", weights_without_attention, "--backend", "numpy")
    run("compare", "--tiling", "--tile", "128", "--output", "own.png", *model)
    with Image.open("own.png") as page:
        assert page.size == (3 * (256 + MARGIN) + MARGIN, 2 * (CAPTION + 256) + MARGIN)
