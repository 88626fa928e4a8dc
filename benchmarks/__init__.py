"""Benchmarks: ratios side by side in one process. ``python -m benchmarks`` runs all of them."""
