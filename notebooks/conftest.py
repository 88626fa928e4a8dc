"""nbmake runs each notebook as an .ipynb; its py:percent twin is for review, not for doctests."""

collect_ignore_glob = ["[0-9]*.py"]
