"""Runs every benchmark."""

from benchmarks import dense

dense.main()
