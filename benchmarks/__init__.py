"""Measured against other programs in the same run: `python -m benchmarks.inference --help`."""
