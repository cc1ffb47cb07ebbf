"""The embedded VAE: what it must reach on photographs that its training has not seen."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

import vaespec
from vaespec.cli.picture_files import PHOTOGRAPH
from vaespec.pictures import psnr, to_array, to_pixels

EXAMPLES = Path(__file__).parents[2] / "examples"


def photograph(name: str) -> Image.Image:
    """The largest centred square, 256 x 256 px."""
    picture = Image.fromarray(getattr(skimage.data, name)())
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def photographs():
    return [photograph(name) for name in ("astronaut", "coffee", "chelsea")]


@pytest.fixture(scope="module")
def tiny():
    return vaespec.load("tiny", backend="numpy")


def test_it_reaches_28_db_on_average(tiny, photographs):
    """30.1 dB measured: astronaut 28.5, coffee 30.2, chelsea 31.7."""
    results = to_pixels(tiny(to_array(photographs)).sample)
    reached = [psnr(np.asarray(picture), result) for picture, result in zip(photographs, results, strict=True)]
    assert np.mean(reached) >= 28, reached


def test_its_posterior_holds_information_and_noise(tiny, photographs):
    posterior = tiny.encode(photographs).latent_dist
    per_number = posterior.kl() / posterior.mean[0].size
    assert np.isfinite(per_number).all()
    assert (per_number > 1).all()  # nats; a collapsed posterior has 0
    assert not np.array_equal(posterior.sample(seed=0), posterior.mode())


def test_its_latents_are_scaled_to_unit_variance(tiny, photographs):
    """Measured over training pictures; three photographs cannot be far from that."""
    z = tiny.encode_latents(photographs)
    assert abs(z.mean()) < 0.3
    assert 0.6 < z.std() < 1.4


def test_torch_computes_the_same_pictures(tiny, photographs):
    x = to_array(photographs[:1])
    theirs = tiny.with_backend("torch", device="cpu")
    difference = theirs.to_numpy(theirs(x).sample) - tiny(x).sample
    assert np.linalg.norm(difference) <= 5e-6 * np.linalg.norm(x)


def test_the_picture_of_the_demo_is_the_astronaut(photographs):
    np.testing.assert_array_equal(np.asarray(Image.open(PHOTOGRAPH)), np.asarray(photographs[0]))


def test_its_training_pictures_leave_out_those_it_is_tested_on():
    spec = importlib.util.spec_from_file_location("pictures", EXAMPLES / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    assert {"astronaut", "coffee", "chelsea"} == set(pictures.TEST)
    assert not {Path(name).stem for name in (*pictures.COLOUR, *pictures.GRAY)} & {*pictures.TEST, "cat"}
