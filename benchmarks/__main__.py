"""Runs every benchmark.

``python -m benchmarks [--out FOLDER] [--quick] [--peers] [--sweep]``: the numbers as JSON and the
pictures go to the folder; ``benchmarks.scaling`` needs a process of its own and is not among them.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import dense, linear, sampled

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
parser.add_argument("--out", type=Path, metavar="FOLDER")
options, others = parser.parse_known_args()
for benchmark in (dense, linear, sampled):
    sys.argv[1:] = others
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / benchmark.__name__.rpartition(".")[2]
        sys.argv += ["--json", f"{file}.json", "--plot", f"{file}.png"]
    benchmark.main()
