"""The network, the training loop and the scores: ``jaxent.train`` and Optax do the work."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxent.train
from jaxent.demo.data import Split
from jaxent.demo.recipes import Batch, Loss

WIDTH = 64
BATCH_SIZE = 1024
OPTIMIZER = optax.adamw(3e-3, weight_decay=1e-2)
NUM_BINS = 15

# --- the network --------------------------------------------------------------------------------


def init(key: jax.Array, num_inputs: int, num_outputs: int) -> list[dict[str, jax.Array]]:
    """Parameters of a network with one hidden layer."""
    sizes = (num_inputs, WIDTH, num_outputs)
    return [
        {
            "weight": jax.random.normal(k, (fan_in, fan_out)) * (2 / fan_in) ** 0.5,
            "bias": jnp.zeros((1, fan_out)),
        }
        for k, fan_in, fan_out in zip(jax.random.split(key, 2), sizes[:-1], sizes[1:], strict=True)
    ]


def apply(params: list[dict[str, jax.Array]], batch: Batch) -> jax.Array:
    """Logits ``[n, num_outputs]`` of ``batch["inputs"]``, ``[n, num_inputs]``."""
    hidden, output = params
    x = jax.nn.relu(batch["inputs"] @ hidden["weight"] + hidden["bias"])
    return x @ output["weight"] + output["bias"]


# --- training -----------------------------------------------------------------------------------


def step_of(loss: Loss) -> Callable:
    """The jitted step ``(params, opt_state, batch) -> (params, opt_state, part)`` of a recipe."""
    return jaxent.train.train_step(jaxent.train.objective(apply, loss), OPTIMIZER)


def fit(
    step: Callable, split: Split, seed: int, steps: int, advance: Callable[[], None]
) -> np.ndarray:
    """Trains a new network; returns its logits of the test examples."""
    params = init(jax.random.key(seed), split.inputs.shape[-1], split.counts.shape[-1])
    opt_state = OPTIMIZER.init(params)
    for _, batch in zip(range(steps), batches(split, seed), strict=False):
        params, opt_state, _ = step(params, opt_state, batch)
        advance()
    return np.asarray(apply(params, {"inputs": jnp.asarray(split.test_inputs)}))


def batches(split: Split, seed: int):
    """Training batches without end: all examples, or a random ``BATCH_SIZE`` of a large set."""
    inputs, labels, counts = map(jnp.asarray, (split.inputs, split.labels, split.counts))
    rng = np.random.default_rng(seed)
    n = len(labels)
    while True:
        rows = np.arange(n) if n <= BATCH_SIZE else rng.integers(n, size=BATCH_SIZE)
        yield {"inputs": inputs[rows], "labels": labels[rows], "counts": counts}


# --- scores -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """One network on its test set.

    ``accuracy`` and ``ece`` are a pair: where all classes are equally common, and where they are as
    common as in training. (The first accuracy is the balanced accuracy.) ``confusion`` counts true
    by predicted class; None for several labels an example.
    """

    recall: np.ndarray
    accuracy: np.ndarray
    ece: np.ndarray
    confusion: np.ndarray | None = None


def softmax_scores(logits: np.ndarray, split: Split) -> Scores:
    """Scores of test logits ``[n, num_classes]``."""
    labels, counts = split.test_labels, split.counts
    probabilities = np.asarray(jax.nn.softmax(logits))
    predictions = probabilities.argmax(-1)
    confusion = np.zeros((len(counts), len(counts)), int)
    np.add.at(confusion, (labels, predictions), 1)
    test_counts = confusion.sum(1)
    importance = (1 / test_counts)[labels], (counts / test_counts)[labels]
    return Scores(
        recall=np.diag(confusion) / test_counts,
        **_accuracy_and_ece(probabilities.max(-1), predictions == labels, importance),
        confusion=confusion,
    )


def sigmoid_scores(logits: np.ndarray, split: Split) -> Scores:
    """Scores of test logits ``[n, num_labels]``: each label a problem of two classes of its own."""
    labels = split.test_labels
    positive = np.asarray(jax.nn.sigmoid(logits))
    correct = (logits > 0) == (labels == 1)
    positives, negatives = labels.sum(0), (1 - labels).sum(0)
    importance = np.where(labels == 1, 1 / positives, 1 / negatives), np.ones(labels.shape)
    return Scores(
        recall=(correct * labels).sum(0) / positives,
        **_accuracy_and_ece(np.maximum(positive, 1 - positive), correct, importance),
    )


def _accuracy_and_ece(confidence, correct, importance):
    return {
        "accuracy": np.array([np.average(correct, weights=w) for w in importance]),
        "ece": np.array([calibration_error(confidence, correct, w) for w in importance]),
    }


def calibration_error(confidence, correct, weights=None, *, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: |accuracy − confidence| a bin, averaged by the bins' weights.

    Args:
      confidence: probability of the prediction, in [0, 1], any shape.
      correct: whether the prediction was right, the same shape.
      weights: how much each counts, the same shape; None is 1 each.
      num_bins: bins of equal width.

    References:
      Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_,
      2017.

    Example:
      >>> round(calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0]), 6)  # (0.1 + 0.1) / 2
      0.1
    """
    confidence, correct = np.ravel(confidence), np.ravel(correct)
    weights = np.ones(confidence.shape) if weights is None else np.ravel(weights)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, weights * (correct - confidence))
    return float(np.abs(gaps).sum() / weights.sum())
