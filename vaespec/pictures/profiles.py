"""Colour profiles (ICC) in pictures: a conversion to sRGB by Pillow's ImageCms, which is littlecms.

Whatever is wrong with a profile does not fail the picture: its colours then count as sRGB, and a sentence says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from vaespec.pictures.curves import Curves, curves
from vaespec.pictures.values import EIGHT, scaled, split

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageCms import ImageCmsTransform

LARGEST = 4 << 20  # bytes; the profiles of printing presses have up to 3 MB
COLOURS = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space -> Pillow's mode
CLASSES = ("mntr", "scnr", "prtr", "spac")  # of profiles that say what a picture's colours mean
GREYS = ("1", "L", "LA", "La", "F")  # and those of 16 bits, I...

# ICC's own profile for files in sRGB: its tables are for a perceptual PCS, so that littlecms, whose sRGB has none,
# would change the colours of files that are in sRGB.
PREFERENCE = "sRGB v4 ICC preference"


@dataclass(frozen=True)
class Conversion:
    """To sRGB, from pixels of Pillow's `mode`: of 8 bits by a transform of ImageCms, deeper ones by curves if any."""

    mode: str
    transform: ImageCmsTransform
    curves: Curves | None = None

    def dtype(self, of_picture: np.dtype) -> np.dtype:
        """The dtype of converted pixels."""
        return of_picture if self.curves is not None else EIGHT

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Converts (H, W, 1 to 4), grey or RGB and perhaps alpha, of any depth, to grey or RGB and that alpha."""
        from PIL import Image

        if samples.dtype != EIGHT and self.curves is not None:
            return self.curves(samples)
        colours, alpha = split(scaled(samples, EIGHT))
        if self.mode == "L":
            converted = self.rgb(Image.fromarray(np.ascontiguousarray(colours[..., 0])))
        else:
            rgb = np.broadcast_to(colours, (*colours.shape[:2], 3))
            converted = self.rgb(Image.fromarray(np.ascontiguousarray(rgb)))
        return np.asarray(converted) if alpha is None else np.concatenate((np.asarray(converted), alpha), axis=2)

    def rgb(self, colours: Image) -> Image:
        """Converts a picture of this mode to RGB."""
        from PIL import ImageCms

        converted = ImageCms.applyTransform(colours, self.transform)
        assert converted is not None  # None is for a transform in place
        return converted


def conversion(picture: Any) -> tuple[Conversion | None, str]:
    """The conversion that a picture's profile demands, None if its colours are sRGB already; and why one fails."""
    data = picture.info.get("icc_profile")
    if not data or picture.mode == "LAB":  # whose colours are absolute: Pillow converts them
        return None, ""
    if len(data) > LARGEST:
        return None, f"has {len(data):,} bytes, over {LARGEST:,}"
    try:
        return _conversion(data, picture.mode)
    except MemoryError:
        raise
    except ImportError:
        return None, "needs Pillow's ImageCms, which this Pillow was built without"
    except Exception as error:  # whatever littlecms says of damaged data
        return None, f"is damaged ({error})"


def _conversion(data: bytes, mode: str) -> tuple[Conversion | None, str]:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(BytesIO(data))
    facts = profile.profile
    colours, kind = COLOURS.get(facts.xcolor_space), facts.device_class
    if colours is None or kind not in CLASSES:
        return None, f"is one of class {kind.strip()!r} for {facts.xcolor_space.strip()!r}, which no picture has"
    if not _fits(colours, mode):
        return None, f"is for {facts.xcolor_space.strip()} pictures, and this one is {mode}"
    if (facts.profile_description or "").startswith(PREFERENCE):
        return None, ""
    # As browsers do: white becomes white, and colours that sRGB has stay what they are. Perceptual would darken inks.
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    exact = ImageCms.Flags.NOOPTIMIZE if colours == "L" else ImageCms.Flags.NONE  # else dark greys are off by 10
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), colours, "RGB", intent, exact)
    found = Conversion(colours, transform, None if colours == "CMYK" else curves(data, colours == "L"))
    return (None if _is_identity(found) else found), ""


def _fits(colours: str, mode: str) -> bool:
    """Whether pixels of `mode` can be converted to `colours` without a profile; grey is also RGB."""
    if colours == "CMYK" or mode == "CMYK":
        return colours == mode
    return colours == "RGB" or mode in GREYS or mode.startswith("I")


def _is_identity(found: Conversion) -> bool:
    """Whether no colour of a grid moves by more than one step of 255, which is how far two sRGB profiles differ."""
    if found.mode == "CMYK":
        return False
    ramp = np.arange(256, dtype=np.uint8)
    greys, steps = ramp[None, :, None], ramp[::15]
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    probe = greys if found.mode == "L" else np.concatenate((greys.repeat(3, axis=2), grid), axis=1)
    return bool(np.abs(found(probe).astype(int) - probe).max() <= 1)
