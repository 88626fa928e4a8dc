"""Pictures of a run: time and memory against the size, the limits as lines."""

import importlib.util
import math
import re
from pathlib import Path
from typing import NamedTuple

LIMITS = {"exp": "--", "read and write": "-.", "read": ":", "goal": (0, (1, 4))}  # line styles
COLOURS = {
    "jaxent": "tab:blue",
    "jaxent, linear head": "tab:green",
    "optax": "tab:orange",
    "torch": "tab:red",
    "tensorflow": "tab:purple",
}


class Panel(NamedTuple):
    """Axes of a picture; ``lines``: ``{name: {x: y}}``."""

    title: str
    x: str
    y: str
    lines: dict[str, dict[int, float]]


def draw(report: dict, path: Path) -> str:
    """Draws a report of ``benchmarks.dense``; says what it wrote, or why nothing."""
    if not importlib.util.find_spec("matplotlib"):
        return "no picture: matplotlib is not installed"
    from matplotlib.figure import Figure

    rows = [list(of_works(report["works"]))]
    if "sweep" in report:
        rows.append(list(of_sweep(report["sweep"])))
    across = max(len(row) for row in rows)
    figure = Figure(figsize=(4.6 * across, 4 * len(rows) + 0.8), layout="constrained")
    shown = {}  # by name, for one legend of all panels
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            plot(figure.add_subplot(len(rows), across, i * across + j + 1), panel, shown)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown))
    versions = report["environment"]
    figure.suptitle(f"jax {versions['jax']}, {versions['cpus']} cores, {versions['device']}")
    figure.savefig(path, dpi=100)
    return f"wrote {path}"


def plot(axes, panel: Panel, shown: dict) -> None:
    """Draws lines and limits on log-log axes of whole decades."""
    for name, points in panel.lines.items():
        x, y = zip(*sorted(points.items()), strict=True)
        if name in LIMITS:
            style = {"color": "gray", "linestyle": LIMITS[name]}
        else:
            style = {"color": COLOURS.get(name, "black"), "marker": "o", "markersize": 4}
        if name == "jaxent":  # wide, to be seen below one that is the same
            style |= {"linewidth": 5, "alpha": 0.5}
        (line,) = axes.plot(x, y, **style)
        shown.setdefault(name, line)
    heights = [y for points in panel.lines.values() for y in points.values() if y > 0]
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y, xscale="log", yscale="log")
    decades = [math.log10(y) for y in heights]
    axes.set_ylim(10.0 ** math.floor(min(decades) - 0.05), 10.0 ** math.ceil(max(decades) + 0.05))
    axes.grid(alpha=0.3)


def of_works(works):
    """Integer labels: per logit, for the shapes differ in rows too."""
    shapes = {}
    for name in works:
        if match := re.fullmatch(r"integer labels \[(\d+), (\d+)\]", name):
            shapes[name] = int(match[1]), int(match[2])
    for kind in ("value", "value_and_grad"):
        lines = {}
        for name, (n, v) in shapes.items():
            limits = works[name]["limit"]
            limits = {"read": limits["read"]} if kind == "value" else limits
            for implementation, t in (works[name][kind] | limits).items():
                lines.setdefault(implementation, {})[v] = 1e6 * t["ms"] / (n * v)
        yield Panel(f"integer labels, {kind}", "classes V", "ns a logit", lines)
    memory = {}
    for name, (n, v) in shapes.items():
        for implementation, t in works[name]["value_and_grad"].items():
            if t["temp_mb"] is not None:
                memory.setdefault(implementation, {})[v] = 1e6 * t["temp_mb"] / (4 * n * v)
        if v >= 1000:
            memory.setdefault("goal", {})[v] = 0.01
    title = "value_and_grad, temporary memory"
    yield Panel(title, "classes V", "share of the logits", memory)


def of_sweep(sweep):
    """As they grow: milliseconds, and all memory that a program needs."""
    for axis, lines in sweep.items():
        x, fixed = ("classes V", "100 rows") if axis == "V" else ("rows N", "1000 classes")
        for quantity, y in (("ms", "ms"), ("total_mb", "arguments, results, temporary: MB")):
            shown = {
                name: {int(size): t[quantity] for size, t in points.items()}
                for name, points in lines.items()
                if quantity == "ms" or name not in ("exp", "read")
            }
            yield Panel(f"value_and_grad, {fixed}", x, y, shown)
