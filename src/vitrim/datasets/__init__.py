"""Data sets on disk: one file per family, ways to bring your own, splits, checks and transforms."""
