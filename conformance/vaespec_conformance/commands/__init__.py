"""The commands that the suite adds to `vaespec`: one file each."""
