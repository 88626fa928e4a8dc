"""What the demo shows while it runs and when it is done: progress, a table, pictures."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jaxent
from jaxent import plot
from jaxent.demo.data import Dataset
from jaxent.demo.experiment import Results
from jaxent.demo.recipes import UNWEIGHTED
from jaxent.demo.training import Scores

# --- progress -----------------------------------------------------------------------------------


@contextlib.contextmanager
def progress(total: int) -> Generator[tuple[Callable[[str], None], Callable[[], None]]]:
    """``(describe, advance)`` of a progress display on stderr.

    A bar on a terminal (by rich where it is installed), else one plain line a description, and an
    empty one after the last.
    """
    if not sys.stderr.isatty():
        yield _lines()
        print(file=sys.stderr, flush=True)
    elif importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)
            yield (
                lambda text: bar.update(task, description=f"{text:<16}"),
                lambda: bar.advance(task),
            )
    else:
        yield _plain_bar(total)
        sys.stderr.write("\r" + " " * 60 + "\r")


def _lines():
    start = time.perf_counter()

    def describe(text):
        seconds = time.perf_counter() - start
        print(f"starts at {seconds:5.1f} s: {text}", file=sys.stderr, flush=True)

    return describe, lambda: None


def _plain_bar(total, width=30):
    done, text, shown = 0, "", None

    def draw():
        nonlocal shown
        line = f"\r{text:<16} [{'#' * (width * done // total):<{width}}] {100 * done // total:3d} %"
        if line != shown:
            sys.stderr.write(line)
            sys.stderr.flush()
            shown = line

    def describe(new_text):
        nonlocal text
        text = new_text
        draw()

    def advance():
        nonlocal done
        done += 1
        draw()

    return describe, advance


# --- table --------------------------------------------------------------------------------------


def table(
    results: Mapping[str, list[Scores]], class_names: tuple[str, ...], counts: np.ndarray
) -> str:
    """Two plain-text tables in per cent, a row a recipe: each class's recall, and the summary.

    Both are of means over the seeds. Ten classes fit a terminal of 80 columns.

    Args:
      results: the scores of each seed, by recipe.
      class_names: heads of the recall columns.
      counts: training examples of each class.
    """
    recalls = {"recall of class": class_names, "training examples": [str(n) for n in counts]}
    summaries = {"all classes": ("bal.acc", "sd", "ECE", "acc*", "ECE*")}
    for name, scores in results.items():
        accuracy = 100 * np.array([s.accuracy for s in scores])
        ece = 100 * np.mean([s.ece for s in scores], 0)
        (balanced, natural), spread = accuracy.mean(0), accuracy[:, 0].std()
        recalls[name] = [f"{100 * r:.0f}" for r in np.mean([s.recall for s in scores], 0)]
        summaries[name] = [f"{x:.1f}" for x in (balanced, spread, ece[0], natural, ece[1])]
    return f"{_aligned(recalls, 2, '100')}\n\n{_aligned(summaries, 1, '  100.0')}"


def _aligned(rows, num_heads, widest):
    """Lines of these cells, with a rule below the heads; columns hold at least ``widest``."""
    widths = [max(map(len, (widest, *column))) for column in zip(*rows.values(), strict=True)]
    names = max(map(len, rows))
    lines = [
        f"{name:<{names}}" + "".join(f" {x:>{w}}" for x, w in zip(cells, widths, strict=True))
        for name, cells in rows.items()
    ]
    return "\n".join([*lines[:num_heads], "-" * len(lines[0]), *lines[num_heads:]])


# --- pictures -----------------------------------------------------------------------------------


def pictures(folder: Path, dataset: Dataset, results: Results) -> list[Path]:
    """Draws and writes the demo's pictures; returns their paths."""
    names = dataset.class_names
    shown = (UNWEIGHTED, "balanced", "logit adjustment")
    figures = {
        "class_recall": plot.class_recall(
            {name: [s.recall for s in results.scores[name]] for name in shown},
            counts=results.counts,
            class_names=names,
        ).figure,
        "weights_and_counts": plot.weights_and_counts(
            results.counts,
            results.tables,
            normalize=not dataset.multi_label,
            class_names=names,
        ),
        "loss_against_margin": plot.loss_against_margin(),
    }
    if not dataset.multi_label:
        matrices = (np.sum([s.confusion for s in results.scores[n]], 0) for n in shown[:2])
        figures["confusion_pair"] = plot.confusion_pair(
            *matrices, titles=shown[:2], class_names=names
        )
        figures["gradient_heatmap"] = _gradient_heatmap(results, names).figure
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path)
    return paths


def _gradient_heatmap(results, class_names, rows=20, padding=4):
    """Some test examples of each class, then padding: NaN logits, label -100, where=False."""
    labels, each = results.split.test_labels, rows // len(class_names)
    chosen = np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(len(class_names))])
    where = jnp.arange(len(chosen) + padding) < len(chosen)
    logits = np.pad(results.logits[chosen], ((0, padding), (0, 0)), constant_values=np.nan)
    labels = jnp.pad(labels[chosen], (0, padding), constant_values=-100)
    weights = jaxent.class_weights(labels, results.tables["balanced"], where=where)
    return plot.gradient_heatmap(
        logits, labels, weights=weights, where=where, class_names=class_names
    )
