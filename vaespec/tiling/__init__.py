"""Images larger than memory: in bands of rows, with the same numbers, or in blended tiles, as diffusers does."""
