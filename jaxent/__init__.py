"""jaxent: cross-entropy for JAX, exact and composable.

Logits and labels make statistics, statistics make losses (one an example), losses and weights make
a sum that divides once::

    losses = jaxent.cross_entropy(logits, labels)                       # [...]
    loss = jaxent.weighted_mean(losses, jaxent.class_weights(labels, table))
"""

import importlib as _importlib

from jaxent import weights
from jaxent.cost import cost_weights, expected_cost
from jaxent.linear import linear_cross_entropy, linear_stats
from jaxent.losses import (
    cross_entropy,
    focal,
    generalized_cross_entropy,
    nll,
    poly1,
    smoothed_nll,
    z_loss,
)
from jaxent.reductions import WeightedSum, nonzero_mean, plain_mean, weighted_mean, weighted_sum
from jaxent.sigmoid import sigmoid_cross_entropy, sigmoid_stats
from jaxent.soft import kl_divergence, soft_cross_entropy
from jaxent.stats import LogitStats, softmax_stats
from jaxent.weights import class_weights

__version__ = "0.1.0"

# They import checkify, matplotlib and optax, or are many files.
_LAZY = ("compat", "debug", "plot", "probabilities", "sampled", "train")

__all__ = [
    "LogitStats",
    "WeightedSum",
    "class_weights",
    "cost_weights",
    "cross_entropy",
    "expected_cost",
    "focal",
    "generalized_cross_entropy",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_stats",
    "nll",
    "nonzero_mean",
    "plain_mean",
    "poly1",
    "sigmoid_cross_entropy",
    "sigmoid_stats",
    "smoothed_nll",
    "soft_cross_entropy",
    "softmax_stats",
    "weighted_mean",
    "weighted_sum",
    "weights",
    "z_loss",
]


def __getattr__(name):
    if name in _LAZY:
        return _importlib.import_module(f"jaxent.{name}")
    raise AttributeError(f"module 'jaxent' has no attribute {name!r}")


def __dir__():
    return [*__all__, *_LAZY, "__version__"]
