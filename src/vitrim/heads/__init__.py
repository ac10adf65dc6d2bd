"""Heads: classifiers that read more than the last block. One file each; file name = spec name."""
