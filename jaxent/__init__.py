"""jaxent: cross-entropy for JAX, exact and composable.

Logits and labels make statistics, statistics make losses (one an example), losses and weights make
a sum that divides once::

    losses = jaxent.cross_entropy(logits, labels)                       # [...]
    loss = jaxent.weighted_mean(losses, jaxent.class_weights(labels, table))
"""

import importlib

from jaxent import weights as weights
from jaxent.cost import cost_weights as cost_weights
from jaxent.cost import expected_cost as expected_cost
from jaxent.linear import linear_cross_entropy as linear_cross_entropy
from jaxent.linear import linear_stats as linear_stats
from jaxent.losses import cross_entropy as cross_entropy
from jaxent.losses import focal as focal
from jaxent.losses import generalized_cross_entropy as generalized_cross_entropy
from jaxent.losses import nll as nll
from jaxent.losses import poly1 as poly1
from jaxent.losses import smoothed_nll as smoothed_nll
from jaxent.losses import z_loss as z_loss
from jaxent.reductions import WeightedSum as WeightedSum
from jaxent.reductions import nonzero_mean as nonzero_mean
from jaxent.reductions import plain_mean as plain_mean
from jaxent.reductions import weighted_mean as weighted_mean
from jaxent.reductions import weighted_sum as weighted_sum
from jaxent.sigmoid import sigmoid_cross_entropy as sigmoid_cross_entropy
from jaxent.sigmoid import sigmoid_stats as sigmoid_stats
from jaxent.soft import kl_divergence as kl_divergence
from jaxent.soft import soft_cross_entropy as soft_cross_entropy
from jaxent.stats import LogitStats as LogitStats
from jaxent.stats import softmax_stats as softmax_stats
from jaxent.weights import class_weights as class_weights

__version__ = "0.1.0"

# They import checkify, matplotlib and optax, or are many files.
_LAZY = ("compat", "debug", "plot", "probabilities", "sampled", "train")


def __getattr__(name):
    if name in _LAZY:
        return importlib.import_module(f"jaxent.{name}")
    raise AttributeError(f"module 'jaxent' has no attribute {name!r}")


def __dir__():
    return [*globals(), *_LAZY]
