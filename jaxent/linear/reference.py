"""What the linear head means: full logits through the dense core. For tests and for reading."""

import jax.numpy as jnp
from jax import lax

from jaxent import _checks
from jaxent._classes import live
from jaxent.losses import nll
from jaxent.reductions import WeightedSum, weighted_sum
from jaxent.stats import softmax_stats


def linear_logits(hidden, head, *, bias=None, logit_fn=None, classes_axis=-1):
    """``hidden @ head`` in float32 or wider, ``[..., V]``."""
    contracted = ((hidden.ndim - 1,), (1 if classes_axis == 0 else 0,))
    dtype = _checks.accumulator(hidden)
    logits = lax.dot_general(hidden, head, (contracted, ((), ())), preferred_element_type=dtype)
    if bias is not None:
        logits += jnp.broadcast_to(bias.astype(dtype), logits.shape)
    return logits if logit_fn is None else logit_fn(logits)


def linear_stats(hidden, head, labels, *, where=None, **options):
    """The statistics of those logits."""
    return softmax_stats(linear_logits(live(where, hidden), head, **options), labels, where=where)


def linear_cross_entropy(
    hidden, head, labels, weights=None, *, loss=nll, where=None, **options
) -> WeightedSum:
    """Σ w·loss and Σ w."""
    losses = live(where, loss(linear_stats(hidden, head, labels, where=where, **options)))
    return weighted_sum(losses, where if weights is None else live(where, jnp.asarray(weights)))
