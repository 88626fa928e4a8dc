"""``python -m jaxent.demo``: the options, what is printed, the exit status."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from functools import partial
from pathlib import Path

say = partial(print, flush=True)

DESCRIPTION = """\
--task digits trains a small network on imbalanced real data with no weights,
each class-weight recipe, logit adjustment and focal loss; prints recall,
balanced accuracy and calibration, and draws pictures. --task language-model
trains a small model of the text of Python's manual with a full, a linear and a
sampled softmax; prints loss, speed and memory, and draws the loss."""

EPILOG = """\
exit status: 0 if balanced class weights beat no weights in mean balanced
accuracy (digits), or if the heads agree as theory says (language-model); 1 if
not, 2 for a wrong option. Progress goes to stderr, results to stdout."""

MEANS = """\
Per cent, means over the seeds; each seed draws its own split and its own
initial network.
"""
ONE_SEED = "Per cent, of one seed: one split and one initial network, so sd is 0.\n"

LEGEND = """\
  bal.acc  balanced accuracy: the mean of the classes' recall; sd over seeds
  ECE      expected calibration error, classes equally common
  acc*     accuracy, and
  ECE*     the calibration error, classes as common as in training
Weights and logit adjustment prepare for equally common classes and move the
probabilities with them: look at ECE* before you trust those on data as
imbalanced as the training set. Focal looks for hard examples, not for rare
classes. Inverse and median frequency are multiples of balanced: the same loss
in a weighted mean, so the same model but for rounding."""

MULTI_LABEL_LEGEND = """\
  recall   of each label's positives; below it, how many there are in training
  bal.acc  balanced accuracy: the mean recall of positives and negatives;
           sd over the seeds
  ECE      expected calibration error, positives and negatives equally common
  acc*     share of right (example, label) pairs, and
  ECE*     their calibration error, as they come
Balanced is pos_weight=weights.positive(negatives, positives). It and logit
adjustment prepare for positives as common as negatives and move the
probabilities with them: look at ECE* before you trust those on data as
imbalanced as the training set. Focal looks for hard examples, not rare."""


def positive_integer(text: str) -> int:
    """An argparse type: 1, 2, 3, ..."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = argparse.ArgumentParser(
        prog="python -m jaxent.demo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--task",
        choices=("digits", "language-model"),
        default="digits",
        help="class weights on imbalanced data, or heads for a large vocabulary; default: digits",
    )
    p.add_argument(
        "--data",
        choices=("digits", "shuttle", "yeast"),
        help="of --task digits: digits ships with jaxent; shuttle (2 classes, 7 %% anomalies) and "
        'yeast (14 labels, several an example) need pip install "jaxent[datasets]"; '
        "default: digits",
    )
    p.add_argument(
        "--seeds",
        type=positive_integer,
        metavar="N",
        help="fits per recipe or head; default: 3, of language-model 1",
    )
    p.add_argument(
        "--steps",
        type=positive_integer,
        default=300,
        metavar="N",
        help="steps per fit; default: 300",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("jaxent-demo"),
        metavar="DIR",
        help="folder for the pictures, made if need be; default: jaxent-demo",
    )
    p.add_argument("--no-pictures", action="store_true", help="draw nothing")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the demo and returns its exit status."""
    start = time.perf_counter()
    cli = parser()
    options = cli.parse_args(argv)
    if options.data and options.task != "digits":
        cli.error("argument --data: it belongs to --task digits")
    draws = not options.no_pictures and importlib.util.find_spec("matplotlib") is not None

    say(", ".join(version(name) for name in ("jaxent", "jax", "optax")), end=", ")
    say(f"Python {platform.python_version()}")
    import jax  # after the first line of output: finding an accelerator takes its time

    say(f"device: {', '.join(str(device) for device in jax.devices())}")

    prepare, seeds = (digits, 3) if options.task == "digits" else (language_model, 1)
    options.seeds = options.seeds or seeds
    try:
        train, draw, judge = prepare(options)
    except ImportError as error:
        cli.error(str(error))
    if draws:  # now, rather than fail after the training
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            cli.error(f"argument --out: {error.strerror}: {str(options.out)!r}")
    results = train()
    if draws:
        for path in draw(results):
            say(f"wrote {path}")
    elif not options.no_pictures:
        say('no pictures without matplotlib: pip install "jaxent[demo]"')
    say(f"{time.perf_counter() - start:.0f} s\n")
    return judge(results)


# --- the tasks: what trains and prints, what draws, what says how it went -------------------------


def digits(options):
    from jaxent.demo import experiment, report
    from jaxent.demo.data import DATASETS

    try:
        dataset = DATASETS[options.data or "digits"]()
    except ImportError as error:
        raise ImportError(f"argument --data: {error}") from None
    num_steps = experiment.num_steps(dataset, options.seeds, options.steps)

    def train():
        say(f"data: {dataset.about}\n")
        with report.progress(num_steps) as on_progress:
            results = experiment.run(dataset, options.seeds, options.steps, *on_progress)
        say(report.table(results.scores, dataset.class_names, results.counts))
        how = MEANS if options.seeds > 1 else ONE_SEED
        say(f"\n{how}{MULTI_LABEL_LEGEND if dataset.multi_label else LEGEND}\n")
        return results

    def draw(results):
        return report.pictures(options.out, dataset, results)

    return train, draw, lambda results: verdict(results.scores)


def language_model(options):
    from jaxent.demo import language_model as task
    from jaxent.demo import report, topics

    text = topics.text(topics.manual())

    def train():
        say(f"data: {topics.about(text)}\n")
        with report.progress(task.num_steps(options.seeds, options.steps)) as on_progress:
            fits = task.run(text, options.seeds, options.steps, *on_progress)
        means = task.MEANS if options.seeds > 1 else ""
        say(f"{task.table(fits)}\n\n{means}{task.LEGEND}\n")
        return fits

    def draw(fits):
        return [task.picture(options.out, fits, text.unigram_loss)]

    def judge(fits):
        faults = task.faults(fits, text.unigram_loss)
        if not faults:
            say(task.agreement(fits))
            return 0
        print(
            f"The heads do not agree as they should: {'; '.join(faults)}. Hence exit status 1. "
            "Few steps can do this; with the default --steps it would be a fault.",
            file=sys.stderr,
        )
        return 1

    return train, draw, judge


def version(package: str) -> str:
    """``name 1.2.3``, without importing it."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} (source tree)"


def verdict(scores) -> int:
    """Says whether weighting won, on stderr where it did not, and returns the exit status."""
    without, weighted = (
        sum(s.accuracy[0] for s in scores[name]) / len(scores[name])
        for name in ("no weights", "balanced")
    )
    numbers = f"{weighted:.1%} with balanced weights, {without:.1%} with none"
    if weighted > without:
        say(f"Weighting wins: balanced accuracy {numbers}.")
        return 0
    print(
        f"Weighting did not win: balanced accuracy {numbers}. Hence exit status 1. Few steps or a "
        "single seed can do this; with the default --steps and --seeds it would be a fault.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader has gone, as in "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
