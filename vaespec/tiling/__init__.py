"""Images larger than memory: in tiles that are blended, as diffusers does it."""
