"""Training pictures that need no download: drawn here, or photographs that come inside scikit-image.

`crops` gives training batches, `test_pictures` the three photographs that training never sees.
The drawn ones are mostly "dead leaves": opaque textured shapes with power-law sizes that hide one another. Their edges,
flat parts and textures have the statistics of photographs (Lee, Mumford & Huang 2001), which pure noise lacks.
"""

from collections import deque
from functools import cache
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 448  # pixels of a drawn picture
POOL = deque(maxlen=64)  # drawn pictures that crops are cut from; a new one pushes out the oldest
SKIMAGE = Path(skimage.__file__).parent / "data"
TEST = ("astronaut", "coffee", "chelsea")
COLOUR = ("motorcycle_left.png", "motorcycle_right.png", "rocket.jpg", "hubble_deep_field.jpg", "ihc.png", "retina.jpg")
GRAY = ("camera.png", "brick.png", "grass.png", "gravel.png", "coins.png", "moon.png", "page.png", "text.png")


def test_pictures():
    """Name -> uint8 (256, 256, 3): the largest centred square, resized with Lanczos."""
    pictures = {}
    for name in TEST:
        photo = Image.open(SKIMAGE / f"{name}.png").convert("RGB")
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        square = photo.crop((left, top, left + side, top + side))
        pictures[name] = np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS))
    return pictures


def crops(rng, batch, size):
    """Cuts random training crops: float32 (batch, 3, size, size) in [-1, 1]. rng is a numpy Generator.

    The first call draws the pool, which takes about ten seconds.
    """
    while len(POOL) < POOL.maxlen:
        POOL.append(drawn(rng))
    if rng.random() < 0.02:
        POOL.append(drawn(rng))
    return np.stack([crop(rng, size) for _ in range(batch)])


def crop(rng, size):
    """Cuts one crop, float32 (3, size, size), then scales, rotates and mirrors it, and changes its colours a little."""
    photographs, shares = photos()
    kind = rng.random()
    is_gray = kind < 0.12
    if is_gray:
        source = gray_photos()[rng.integers(len(GRAY))]
    elif kind < 0.6:
        source = photographs[rng.choice(len(photographs), p=shares)]
    else:
        source = POOL[rng.integers(len(POOL))]
    cut = min(size * np.exp(rng.uniform(np.log(0.7), np.log(4))), *source.size)
    left, top = rng.uniform(0, source.width - cut), rng.uniform(0, source.height - cut)
    box = (left, top, left + cut, top + cut)
    x = np.asarray(source.resize((size, size), Image.Resampling.LANCZOS, box=box), np.float32) / 127.5 - 1
    x = np.rot90(x, rng.integers(4))
    x = x[:, :: rng.choice([-1, 1])]
    mix = np.eye(3) + rng.normal(0, 0.08, (3, 3))
    if is_gray and rng.random() < 0.7:
        mix = mix * rng.uniform(0.4, 1.2, 3)
    x = rng.uniform(0.6, 1.2) * x @ mix + rng.normal(0, 0.1, 3)
    return np.clip(x, -1, 1).astype(np.float32).transpose(2, 0, 1)


@cache
def photos():
    """Colour photographs, and the probability of each."""
    pictures = [Image.open(SKIMAGE / name).convert("RGB") for name in COLOUR]
    # The last three are stars, stained tissue and an eye: unlike most photographs.
    weights = [3, 3, 3, 1, 1, 0.5]
    return pictures, np.array(weights) / sum(weights)


@cache
def gray_photos():
    """Gray photographs, as RGB."""
    return [Image.open(SKIMAGE / name).convert("RGB") for name in GRAY]


def drawn(rng):
    """Draws one picture, SIDE x SIDE, RGB."""
    draw = rng.choice([dead_leaves, cloud, stripes, text], p=[0.8, 0.08, 0.06, 0.06])
    return draw(rng)


def picture(x):
    """float (H, W, 3), nominally in [-1, 1] -> Image."""
    return Image.fromarray((np.clip(x, -1, 1) * 127.5 + 127.5).astype(np.uint8))


def colours(rng, count):
    """Random colours (count, 3): any brightness, but mostly a small saturation, as in photographs."""
    return rng.uniform(-0.95, 0.95, (count, 1)) + rng.normal(0, 0.25, (count, 3)) * rng.exponential(1, (count, 1))


def noise(rng, exponent):
    """Coloured noise (SIDE, SIDE, 3) with amplitude 1 / f^exponent, mean 0, standard deviation near 1."""
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    f[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE, 3)), axes=(0, 1)) / f[..., None] ** exponent
    x = np.fft.irfft2(spectrum, s=(SIDE, SIDE), axes=(0, 1))
    # The channels of a photograph vary together: one part is shared, and each channel adds a little.
    x = x[..., :1] + rng.uniform(0, 0.5) * x
    return (x / x.std()).astype(np.float32)


def gradient(rng, height, width):
    """A colour ramp (height, width, 3) in a random direction."""
    y, x = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[None, :, None]
    return (y * rng.normal(0, 0.2) + x * rng.normal(0, 0.2)) * (1 + rng.normal(0, 0.3, 3))


def dead_leaves(rng):
    """Shapes with radius density r^-3, each with its own colour ramp and texture; later ones hide earlier ones."""
    textures = [noise(rng, exponent) for exponent in rng.uniform(0.4, 1.8, 4)]
    palette = colours(rng, 12)
    canvas = picture(rng.choice(palette) + gradient(rng, SIDE, SIDE) + 0.15 * textures[0])
    smallest, largest = np.exp(rng.uniform(np.log(3), np.log(12))), 160
    count = int(0.6 * (SIDE / smallest) ** 2 / np.log(largest / smallest))
    radii = (largest**-2 + rng.random(count) * (smallest**-2 - largest**-2)) ** -0.5
    roughness = rng.uniform(0.02, 0.2)
    for r in radii:
        mask = shape(rng, r)
        texture = textures[rng.integers(4)]
        top, left = rng.integers(0, SIDE - mask.height + 1), rng.integers(0, SIDE - mask.width + 1)
        leaf = texture[top : top + mask.height, left : left + mask.width] * rng.exponential(roughness)
        leaf = leaf + palette[rng.integers(12)] + rng.normal(0, 0.08, 3) + gradient(rng, mask.height, mask.width)
        x, y = rng.integers(0, SIDE, 2)
        canvas.paste(picture(leaf), (int(x) - mask.width // 2, int(y) - mask.height // 2), mask)
    return canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))


def shape(rng, r):
    """A mask: an ellipse or a polygon of about radius r, sometimes with a blurred edge."""
    width, height = np.clip(2 * r * np.exp(rng.normal(0, 0.4, 2)), 3, SIDE).astype(int)
    mask = Image.new("L", (int(width), int(height)))
    draw = ImageDraw.Draw(mask)
    if rng.random() < 0.5:
        draw.ellipse((0, 0, width - 1, height - 1), fill=255)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        corners = (0.5 + 0.5 * np.stack([np.cos(angles), np.sin(angles)], 1)) * (width, height)
        draw.polygon([tuple(corner) for corner in corners], fill=255)
    return mask.filter(ImageFilter.GaussianBlur(float(r) / 8)) if rng.random() < 0.15 else mask


def cloud(rng):
    """A colour ramp with 1 / f noise over it."""
    contrast, exponent = rng.uniform(0, 0.4), rng.uniform(0.6, 2)
    return picture(colours(rng, 1)[0] + 2 * gradient(rng, SIDE, SIDE) + contrast * noise(rng, exponent))


def stripes(rng):
    """Stripes, or two crossed sets of stripes (a chessboard), with hard or soft edges."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 60)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = np.sin(2 * np.pi * u / period) * (np.sin(2 * np.pi * v / period) if rng.random() < 0.5 else 1)
    wave = np.tanh(rng.uniform(0.5, 10) * wave)[..., None]
    one, other = colours(rng, 2)
    return picture((one + other) / 2 + wave * (one - other) / 2 + gradient(rng, SIDE, SIDE))


def text(rng):
    """Lines of random letters in random sizes and colours over a cloud."""
    canvas = cloud(rng)
    draw = ImageDraw.Draw(canvas)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789    "))
    y = 0.0
    while y < SIDE:
        size = rng.uniform(12, 60)
        ink = picture(colours(rng, 1)[None]).getpixel((0, 0))
        line = "".join(rng.choice(letters, 70))
        draw.text((rng.uniform(-20, 20), y), line, fill=ink, font=ImageFont.load_default(size))
        y += 1.2 * size
    return canvas
