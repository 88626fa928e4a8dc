"""Runs every benchmark."""

import sys

from benchmarks import dense, linear, sampled

if "--json" in sys.argv:
    sys.exit("--json is for one of them: python -m benchmarks.dense --json FILE")
for benchmark in (dense, linear, sampled):
    benchmark.main()
