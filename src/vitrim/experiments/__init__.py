"""Runs, sweeps of runs, and reports about them."""
