"""Images larger than memory: in bands of rows, with the same numbers, or in tiles that are blended, as diffusers does."""
