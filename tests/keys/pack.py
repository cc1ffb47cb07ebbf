"""Packs names and shapes of real files for the tests: `python pack.py FOLDER` writes listings.json.xz beside this file.

FOLDER has <family>-<format>.json, {name: shape} in the order the code that wrote such files yields them, and
<family>.config.json. They were made by running that code on its meta device, without any weights:

- *-diffusers: diffusers 0.42.1; *-deprecated: diffusers 0.16.1; -conv4d: the same with attention as (C, C, 1, 1)
- *-ldm*: CompVis latent-diffusion a506df57; sd3-ldm*: Stability-AI sd3.5 fbf8f483; *-bfl: flux 802fb471, flux2 ab7cca68
- *-flax: FlaxAutoencoderKL of diffusers at 80bfe77b^; *-mlx-examples: mlx-examples 7ddca42f; *-mflux*: mflux 97ac5e62
- ldm-loss-keys: CompVis' LPIPSWithDiscriminator
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

PACKED = Path(__file__).with_name("listings.json.xz")


def main(folder: Path) -> None:
    listings = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
        if path.name != "families.json"
    }
    text = json.dumps(listings, separators=(",", ":")).encode()
    PACKED.write_bytes(lzma.compress(text, preset=9))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
