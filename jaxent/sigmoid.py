"""Independent classes: the sigmoid, which is the softmax of the two logits (0, x)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from jaxent import _checks
from jaxent._numerics import (
    elementwise,
    log1p_exp_pair,
    times,
    weighted_log1p_exp,
)
from jaxent.stats import LogitStats, class_indices, live


def sigmoid_cross_entropy(
    logits: Float[Array, "*shape"],
    targets: Real[Array, "*shape"] | Bool[Array, "*shape"],
    *,
    pos_weight: ArrayLike = 1.0,
    where: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    r"""Sigmoid cross-entropy of independent classes, elementwise: no sum, no mean.

    .. math::
        w_+ \, z \log(1 + e^{-x}) + (1 - z) \log(1 + e^{x})

    For classes that exclude each other use :func:`~jaxent.cross_entropy`; its class weights are
    weights (:func:`~jaxent.class_weights`), not a ``pos_weight``.

    Args:
      logits: float, any shape.
      targets: probabilities in [0, 1] (or bool, or 0/1 integers), exactly the logits' shape.
      pos_weight: factor of the positive term, ≥ 0: a scalar, or ``[classes]`` for the last axis;
        see :func:`jaxent.weights.positive`. May be traced; differentiable.
      where: bool, the logits' shape; a False element has loss 0 and no gradient, whatever it holds.

    Returns:
      losses, the logits' shape, in nats, float32 or wider. ``losses.sum(-1)`` is one an example.

    Raises:
      TypeError: logits not floating-point, targets not real, ``where`` not bool.
      ValueError: shapes differ (nothing is broadcast), or ``pos_weight`` negative or NaN (NaN
        losses where it is traced) or of another shape.

    References:
      ``tf.nn.sigmoid_cross_entropy_with_logits``, ``tf.nn.weighted_cross_entropy_with_logits``
      (whose gradient is wrong at x = 0; here it is right).

    Example:
      >>> x = jnp.array([[0.0, 100.0], [-30.0, 2.0]])
      >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> print(sigmoid_cross_entropy(x, z, pos_weight=3.0))
      [[2.0794e+00 1.0000e+02]
       [9.3576e-14 3.8078e-01]]
    """
    x = _checks.scores("logits", logits, "(logits, targets)")
    z = _checks.targets(x, targets)
    where = _checks.where(where, x.shape, "logits")
    dtype = _checks.accumulator(x)
    weight = _positive_weight(pos_weight, x.shape, dtype)
    x, z = live(where, x.astype(dtype)), live(where, z.astype(dtype))
    x = jnp.where(jnp.isnan(weight), jnp.nan, x)
    return live(where, elementwise(weighted_log1p_exp)(x, 1 - z, times(z, weight)))


def _positive_weight(value: ArrayLike, shape: tuple[int, ...], dtype) -> Array:
    weight = _checks.array("pos_weight", value)
    if not (_checks.is_float(weight) or _checks.is_integer(weight)):
        raise TypeError(f"pos_weight must be real; got {_checks.describe(weight)}.")
    if weight.ndim and weight.shape not in (shape, shape[-1:]):
        raise ValueError(
            "pos_weight must be a scalar, [classes] for the last axis, or of the logits' shape "
            f"{list(shape)}; got {_checks.describe(weight)}."
        )
    weight, known = weight.astype(dtype), _checks.known(value)
    if known is None:
        weight = jnp.where(weight >= 0, weight, jnp.nan)
    elif not (known >= 0).all():
        raise ValueError(f"pos_weight must not be negative or NaN; got {value}.")
    return jnp.broadcast_to(weight.reshape((1,) * (len(shape) - weight.ndim) + weight.shape), shape)


def sigmoid_stats(
    logits: Float[Array, "*batch"],
    labels: Integer[Array, "*batch"] | Bool[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> LogitStats:
    """The statistics of two classes with logits ``(0, x)``: every loss of stats, elementwise.

    ``focal(sigmoid_stats(x, y), gamma=2.0)`` is the sigmoid focal loss; ``smoothed_nll`` smooths
    towards 1/2.

    Args:
      logits: float ``[...]``, the logit of class 1.
      labels: 0 or 1, integer or bool, ``[...]``; anything else makes its element NaN.
      where: bool ``[...]``; False makes an element inert: all its statistics are 0.

    Returns:
      :class:`~jaxent.LogitStats` of shape ``[...]``, float32 or wider.

    Raises:
      TypeError: logits not floating-point, labels not integer or bool, ``where`` not bool.
      ValueError: shapes differ.

    Example:
      >>> from jaxent import focal, nll
      >>> s = sigmoid_stats(jnp.array([0.0, 3.0]), jnp.array([1, 0]))
      >>> print(nll(s), focal(s, gamma=2.0))
      [0.6931 3.0486] [0.1733 2.7663]
    """
    x = _checks.scores("logits", logits, "(logits, labels)")
    y = _checks.binary_labels(x, labels)
    where = _checks.where(where, x.shape, "logits")
    x, y = live(where, x.astype(_checks.accumulator(x))), live(where, class_indices(y, 2))
    return LogitStats(*(live(where, field) for field in _two_class_stats(x, y)))


@elementwise
def _two_class_stats(x, y):
    x *= jnp.where((y == 0) | (y == 1), 1, jnp.nan).astype(x.dtype)  # poisons the gradient too
    up, down = log1p_exp_pair(x)
    nll, _ = log1p_exp_pair(jnp.where(y == 1, -1, 1).astype(x.dtype) * x)
    return nll, up, x / 2, (up + down) / 2
