"""The commands, one file each; what two of them share is one folder up."""
