"""The data sets of the demo, and how each seed splits them. NumPy only: nothing here is traced."""

import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TEST_PER_DIGIT = 60
HEAD = 118  # digit 0 has 178 images; 60 are kept for the test
IMBALANCE = 40


@dataclass(frozen=True)
class Split:
    """Inputs float32 ``[n, d]``; labels int32 ``[n]``, or 0 and 1 ``[n, num_labels]``.

    ``counts`` int32: training examples of each class ``[num_classes]``, or negatives over positives
    of each label ``[2, num_labels]``.
    """

    inputs: np.ndarray
    labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """A named data set: ``split(seed)`` draws training and test examples that share none."""

    name: str
    about: str
    class_names: tuple[str, ...]
    split: Callable[[int], Split]
    multi_label: bool = False


def long_tail(head: int, num_classes: int, imbalance: float) -> np.ndarray:
    """Examples to keep of each class, falling geometrically from ``head`` to ``head / imbalance``.

    Example:
      >>> long_tail(118, 10, 40)
      array([118,  78,  52,  35,  23,  15,  10,   7,   4,   3], dtype=int32)
    """
    return np.rint(head * imbalance ** -np.linspace(0, 1, num_classes)).astype(np.int32)


def digits() -> Dataset:
    """Handwritten digits, embedded; the long tail is made by subsampling."""
    file = importlib.resources.files("jaxent.demo") / "data" / "digits.npz"
    with file.open("rb") as stream, np.load(stream) as arrays:
        inputs = arrays["images"].reshape(-1, 64).astype(np.float32) / 16
        labels = arrays["labels"].astype(np.int32)
    keep = long_tail(HEAD, 10, IMBALANCE)

    def split(seed):
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(np.flatnonzero(labels == c)) for c in range(10)]
        test = np.concatenate([rows[:TEST_PER_DIGIT] for rows in shuffled])
        train = np.concatenate(
            [rows[TEST_PER_DIGIT:][:n] for rows, n in zip(shuffled, keep, strict=True)]
        )
        return Split(inputs[train], labels[train], inputs[test], labels[test], keep)

    return Dataset(
        name="digits",
        about=f"{len(labels)} real handwritten digits (UCI optdigits, by way of scikit-learn),\n"
        "shipped with jaxent. They come balanced: the long tail is made by subsampling.\n"
        f"Training keeps {HEAD} * (1/{IMBALANCE})^(c/9) of digit c:\n"
        f"{', '.join(map(str, keep))}. The test set has {TEST_PER_DIGIT} of each.",
        class_names=tuple("0123456789"),
        split=split,
    )


def shuttle() -> Dataset:
    """NASA space shuttle sensors: 7 % anomalies, as they come."""
    rows = _from_river("Shuttle")
    inputs = np.array([list(x.values()) for x, _ in rows], np.float32)
    labels = np.array([y for _, y in rows], np.int32)
    return Dataset(
        name="shuttle",
        about=f"{len(labels)} rows of 9 space shuttle sensors (UCI Statlog, by way of river),\n"
        f"{labels.mean():.1%} anomalies. The imbalance is the data's own; each seed keeps a "
        "random\n30 % for the test.",
        class_names=("normal", "anomaly"),
        split=lambda seed: _random_split(inputs, labels, seed, np.bincount),
    )


def yeast() -> Dataset:
    """Yeast genes: 14 functions, several a gene."""
    rows = _from_river("Yeast")
    inputs = np.array([list(x.values()) for x, _ in rows], np.float32)
    labels = np.array([list(y.values()) for _, y in rows], np.int32)
    rates = labels.mean(0)
    return Dataset(
        name="yeast",
        about=f"{len(labels)} yeast genes, 103 features, 14 labels, several a gene "
        "(MULAN, by way of\nriver). "
        f"Labels are positive for {rates.max():.0%} to {rates.min():.1%} of the genes: the "
        "imbalance is\nthe data's own. Each seed keeps a random 30 % for the test.",
        class_names=tuple(str(i) for i in range(1, 15)),
        split=lambda seed: _random_split(
            inputs, labels, seed, lambda y: np.stack([(1 - y).sum(0), y.sum(0)])
        ),
        multi_label=True,
    )


DATASETS = {"digits": digits, "shuttle": shuttle, "yeast": yeast}


def _random_split(inputs, labels, seed, count, test_share=0.3):
    """A random test share; inputs standardised by the training part; counts of its labels."""
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = np.split(order, [round(test_share * len(labels))])
    mean, std = inputs[train].mean(0), inputs[train].std(0)
    scaled = (inputs - mean) / np.where(std == 0, 1, std)
    counts = count(labels[train]).astype(np.int32)
    return Split(scaled[train], labels[train], scaled[test], labels[test], counts)


def _from_river(name):
    try:
        return list(getattr(importlib.import_module("river.datasets"), name)())
    except (ImportError, AttributeError):
        raise ImportError(
            f'{name} comes with river 0.26 or later: pip install --upgrade "jaxent[datasets]"'
        ) from None
