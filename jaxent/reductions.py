"""From losses to a scalar: two sums that add up across batches, and one division at the end."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from jaxent import _checks
from jaxent._numerics import times

Weights = Real[Array, "*batch"] | Integer[Array, "*batch"] | Bool[Array, "*batch"] | None


@partial(jax.tree_util.register_dataclass, data_fields=("total", "weight"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class WeightedSum:
    """Σ w·loss and Σ w: all that a weighted mean needs to know of a batch.

    A pytree. Parts of a batch add up to the whole batch's, exactly as far as float sums do, where
    means of means do not: add the parts, then divide once.

    Attributes:
      total: Σ w·loss, ``[]``.
      weight: Σ w, ``[]``.

    Example:
      >>> first = weighted_sum(jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0]))
      >>> second = weighted_sum(jnp.array([5.0]), jnp.array([1.0]))
      >>> print((first + second).mean(), sum([first, second]).weight)
      2.4 5.0
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self, empty: ArrayLike = 0.0) -> Float[Array, ""]:
        """``total / weight``; ``empty``, with no gradient, where the weights sum to exactly 0."""
        none = self.weight == 0
        mean = jnp.where(none, 0, self.total) / jnp.where(none, 1, self.weight)
        return jnp.where(none, _checks.scalar("empty", empty, mean.dtype), mean)

    def __add__(self, other: "WeightedSum") -> "WeightedSum":
        if not isinstance(other, WeightedSum):
            return NotImplemented
        return WeightedSum(self.total + other.total, self.weight + other.weight)

    def __radd__(self, other):
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum(parts)

    def psum(self, axis_name) -> "WeightedSum":
        """The sum over a mapped axis, for ``shard_map`` and ``vmap(axis_name=)``."""
        return WeightedSum(lax.psum(self.total, axis_name), lax.psum(self.weight, axis_name))


def weighted_sum(losses: Float[Array, "*batch"], weights: Weights = None) -> WeightedSum:
    """Σ w·loss and Σ w.

    Args:
      losses: float ``[...]``, any rank.
      weights: real or bool, exactly the losses' shape; None is 1 each. Several kinds of weights
        multiply. A weight of 0 drops a loss, an infinite or NaN one too (in value; to drop the
        *gradient* of a bad row use ``where=`` of the loss). Negative weights count with their sign.

    Returns:
      :class:`WeightedSum`, accumulated in float32 or wider.

    Raises:
      TypeError: losses not floating-point, weights not real.
      ValueError: shapes differ; nothing is broadcast.

    Example:
      >>> part = weighted_sum(jnp.array([1.0, jnp.inf]), jnp.array([2.0, 0.0]))
      >>> print(part.total, part.weight)
      2.0 2.0
    """
    losses, weights = _checks.weights(losses, weights)
    dtype = _checks.accumulator(losses)
    losses = losses.astype(dtype)
    if weights is None:
        return WeightedSum(jnp.sum(losses), jnp.full((), losses.size, dtype))
    total = jnp.sum(times(weights.astype(dtype), losses))
    if weights.dtype == bool:  # counted in integers: float32 stops counting at 2^24
        return WeightedSum(total, jnp.sum(weights, dtype=jnp.int32).astype(dtype))
    return WeightedSum(total, jnp.sum(weights.astype(dtype)))


def weighted_mean(losses: Float[Array, "*batch"], weights: Weights = None) -> Float[Array, ""]:
    """Σ w·loss / Σ w; 0 where the weights sum to exactly 0.

    The mean of PyTorch's class weights, TF1's ``Reduction.MEAN`` and Keras'
    ``mean_with_sample_weight``. Multiplying all weights by a constant changes nothing.

    Args:
      losses: float ``[...]``.
      weights: real or bool, the losses' shape; None is 1 each.

    Returns:
      scalar, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`weighted_sum`.

    Example:
      >>> print(weighted_mean(jnp.array([1.0, 3.0]), jnp.array([3.0, 1.0])))
      1.5
    """
    return weighted_sum(losses, weights).mean()


def nonzero_mean(losses: Float[Array, "*batch"], weights: Weights = None) -> Float[Array, ""]:
    """Σ w·loss / (number of non-zero weights); 0 where there is none. TF1's default.

    Args:
      losses: float ``[...]``.
      weights: real or bool, the losses' shape; None is 1 each.

    Returns:
      scalar, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`weighted_sum`.

    References:
      ``tf.compat.v1.losses.Reduction.SUM_BY_NONZERO_WEIGHTS``.

    Example:
      >>> print(nonzero_mean(jnp.array([1.0, 3.0, 9.0]), jnp.array([2.0, 2.0, 0.0])))
      4.0
    """
    total = weighted_sum(losses, weights).total
    if weights is None:
        return plain_mean(losses)
    return WeightedSum(total, weighted_sum(losses, jnp.asarray(weights).astype(bool)).weight).mean()


def plain_mean(losses: Float[Array, "*batch"], weights: Weights = None) -> Float[Array, ""]:
    """Σ w·loss / N, N the number of losses whatever their weights; 0 where N is 0.

    Keras's ``sum_over_batch_size``, the mean of PyTorch's probability targets and binary losses.

    Args:
      losses: float ``[...]``.
      weights: real or bool, the losses' shape; None is 1 each.

    Returns:
      scalar, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`weighted_sum`.

    Example:
      >>> print(plain_mean(jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0])))
      0.5
    """
    return WeightedSum(weighted_sum(losses, weights).total, weighted_sum(losses).weight).mean()
