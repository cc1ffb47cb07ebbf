"""Subjects that are programs in any language: they are asked by files, by the protocol of docs/programs.md."""
