"""What the demo compares: recipes ``(logits, batch) -> WeightedSum``, a line or two of jaxent each.

A batch holds ``labels`` and the ``counts`` of the whole training set: examples of each class, or,
for several labels an example, negatives over positives ``[2, num_labels]``.

``weights.inverse_frequency(counts)`` and ``weights.median_frequency(counts)`` are multiples of
``weights.balanced(counts)``, and a weighted mean divides multiples out: their rows say so.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

import jaxent
from jaxent import weights

Batch = dict[str, jax.Array]
Loss = Callable[[jax.Array, Batch], jaxent.WeightedSum]

UNWEIGHTED = "no weights"
GAMMA = 2.0

# --- one class an example -----------------------------------------------------------------------

CLASS_TABLES = {
    "balanced": weights.balanced,
    "inverse frequency": weights.inverse_frequency,
    "median frequency": weights.median_frequency,
    "inverse sqrt": partial(weights.inverse_frequency, power=0.5),
    "effective number": lambda n: weights.effective_number(n, beta=1 - 1 / n.sum()),
    "log ratio": weights.log_ratio,
}


def unweighted(logits: jax.Array, batch: Batch) -> jaxent.WeightedSum:
    """Cross-entropy, every example the same."""
    return jaxent.weighted_sum(jaxent.cross_entropy(logits, batch["labels"]))


def class_weighted(logits: jax.Array, batch: Batch, *, table: Callable) -> jaxent.WeightedSum:
    """Cross-entropy times the weight of the example's class."""
    losses = jaxent.cross_entropy(logits, batch["labels"])
    return jaxent.weighted_sum(
        losses, jaxent.class_weights(batch["labels"], table(batch["counts"]))
    )


def logit_adjusted(logits: jax.Array, batch: Batch) -> jaxent.WeightedSum:
    """Cross-entropy of logits to which training adds the log class frequencies."""
    return unweighted(logits + weights.log_prior(batch["counts"])[None, :], batch)


def focal(logits: jax.Array, batch: Batch) -> jaxent.WeightedSum:
    """Focal loss, without weights."""
    stats = jaxent.softmax_stats(logits, batch["labels"])
    return jaxent.weighted_sum(jaxent.focal(stats, gamma=GAMMA))


SOFTMAX: dict[str, Loss] = {
    UNWEIGHTED: unweighted,
    **{name: partial(class_weighted, table=table) for name, table in CLASS_TABLES.items()},
    "logit adjustment": logit_adjusted,
    "focal": focal,
}

# --- several labels an example ------------------------------------------------------------------

POSITIVE_TABLES = {
    "balanced": lambda counts: weights.positive(*counts),
    "inverse sqrt": lambda counts: jnp.sqrt(weights.positive(*counts)),
}


def label_weighted(logits: jax.Array, batch: Batch, *, table: Callable) -> jaxent.WeightedSum:
    """Sigmoid cross-entropy, positives of each label times its weight."""
    losses = jaxent.sigmoid_cross_entropy(
        logits, batch["labels"], pos_weight=table(batch["counts"])
    )
    return jaxent.weighted_sum(losses.sum(-1))


def label_unweighted(logits: jax.Array, batch: Batch) -> jaxent.WeightedSum:
    """Sigmoid cross-entropy, positives and negatives the same."""
    return jaxent.weighted_sum(jaxent.sigmoid_cross_entropy(logits, batch["labels"]).sum(-1))


def label_adjusted(logits: jax.Array, batch: Batch) -> jaxent.WeightedSum:
    """Sigmoid cross-entropy of logits to which training adds the log odds of each label."""
    log_odds = -jnp.log(weights.positive(*batch["counts"]))
    return label_unweighted(logits + log_odds[None, :], batch)


def label_focal(logits: jax.Array, batch: Batch) -> jaxent.WeightedSum:
    """Sigmoid focal loss, without weights."""
    stats = jaxent.sigmoid_stats(logits, batch["labels"])
    return jaxent.weighted_sum(jaxent.focal(stats, gamma=GAMMA).sum(-1))


SIGMOID: dict[str, Loss] = {
    UNWEIGHTED: label_unweighted,
    **{name: partial(label_weighted, table=table) for name, table in POSITIVE_TABLES.items()},
    "logit adjustment": label_adjusted,
    "focal": label_focal,
}
