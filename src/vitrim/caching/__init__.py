"""Caches: tokens that cross layers. One file each; file name = spec name."""
