"""Batched clustering and matching, below the methods."""
