"""The cross-entropies of ``tf.losses`` (``tf.compat.v1.losses``), with all their reductions.

As there: labels come first; weights are a scalar or have the losses' rank, each axis 1 or equal;
the default divides by the number of weights that are not 0; a mean over nothing is 0; dense labels
of logits have no gradient. What differs, because it is wrong there:

- An example of weight 0 may hold anything, NaN logits and a label of −1 too: it reaches neither the
  loss nor a gradient. (The loss is NaN there.)
- Sums are float32 or wider: float64 losses are not rounded to float32, 16-bit ones do not overflow.
- ``label_smoothing`` outside [0, 1] raises.
- What differs in :mod:`jaxent.compat.tensorflow.nn`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent import probabilities as _probabilities
from jaxent import reductions as _reductions
from jaxent import sigmoid as _sigmoid
from jaxent import soft as _soft
from jaxent._classes import class_indices
from jaxent._numerics import times
from jaxent.compat._arrays import is_zero, smooth
from jaxent.compat._names import only as _only
from jaxent.losses import cross_entropy

__all__ = [
    "Reduction",
    "compute_weighted_loss",
    "log_loss",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "sparse_softmax_cross_entropy",
]
__getattr__ = _only(__name__, "tf.compat.v1.losses")


class Reduction:
    """The names of the reductions, as of ``tf.compat.v1.losses.Reduction``.

    ==============================  ================================================
    ``NONE``                        w · loss
    ``SUM``                         Σ w · loss
    ``MEAN``                        Σ w · loss / Σ w
    ``SUM_OVER_BATCH_SIZE``         Σ w · loss / number of losses
    ``SUM_BY_NONZERO_WEIGHTS``      Σ w · loss / number of weights that are not 0
    ``SUM_OVER_NONZERO_WEIGHTS``    the same
    ==============================  ================================================
    """

    NONE = "none"
    SUM = "weighted_sum"
    SUM_OVER_BATCH_SIZE = "weighted_sum_over_batch_size"
    MEAN = "weighted_mean"
    SUM_BY_NONZERO_WEIGHTS = "weighted_sum_by_nonzero_weights"
    SUM_OVER_NONZERO_WEIGHTS = SUM_BY_NONZERO_WEIGHTS

    @classmethod
    def all(cls) -> tuple[str, ...]:
        """All six."""
        return tuple(getattr(cls, name) for name in dir(cls) if name.isupper())

    @classmethod
    def validate(cls, key: str) -> None:
        """A ValueError unless ``key`` is one of them."""
        if key not in cls.all():
            raise ValueError(f"Invalid Reduction Key {key!r}. It should be one of {cls.all()}.")


def compute_weighted_loss(
    losses: ArrayLike,
    weights: ArrayLike = 1.0,
    scope: str | None = None,
    loss_collection: str | None = None,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> jax.Array:
    """``tf.losses.compute_weighted_loss``.

    Args:
      losses: float, any shape.
      weights: a scalar, or of the losses' rank with axes that are 1 or equal.
      scope: ignored.
      loss_collection: ignored.
      reduction: one of :class:`Reduction`.

    Returns:
      a scalar, or with ``Reduction.NONE`` the weighted losses; in the losses' dtype.

    Raises:
      TypeError: losses not floating-point, weights not real.
      ValueError: weights that do not fit, an unknown reduction.

    Example:
      >>> loss, w = jnp.array([1.0, 3.0, 9.0]), jnp.array([2.0, 2.0, 0.0])
      >>> print(compute_weighted_loss(loss, w))
      4.0
      >>> print(compute_weighted_loss(loss, w, reduction=Reduction.MEAN))
      2.0
    """
    loss = _checks.floats("losses", losses)
    return _reduce(loss, _weights(weights, loss.shape), reduction, loss.dtype)


def softmax_cross_entropy(
    onehot_labels: ArrayLike,
    logits: ArrayLike,
    weights: ArrayLike = 1.0,
    label_smoothing: ArrayLike = 0,
    scope: str | None = None,
    loss_collection: str | None = None,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> jax.Array:
    """``tf.losses.softmax_cross_entropy``: dense labels, smoothed towards 1 / num_classes.

    Args:
      onehot_labels: real, the logits' shape; no gradient flows into them.
      logits: float ``[..., num_classes]``.
      weights: a scalar, or of the losses' rank.
      label_smoothing: in [0, 1].
      scope: ignored.
      loss_collection: ignored.
      reduction: one of :class:`Reduction`.

    Returns:
      a scalar, or with ``Reduction.NONE`` losses ``[...]``; in the logits' dtype.

    Raises:
      TypeError: logits not floating-point, labels or weights not real.
      ValueError: shapes do not fit, an unknown reduction, ``label_smoothing`` outside [0, 1].

    Example:
      >>> labels, logits = jnp.eye(3)[jnp.array([1, 2])], jnp.zeros((2, 3))
      >>> print(softmax_cross_entropy(labels, logits, weights=jnp.array([2.0, 0.0])))  # 2 log 3
      2.1972246
    """
    x = _given("logits", logits, _scores)
    q = _targets("onehot_labels", onehot_labels, x)
    q = jax.lax.stop_gradient(q.astype(_checks.accumulator(x)))
    q = smooth(q, label_smoothing, 1 / max(x.shape[-1], 1))
    w = _weights(weights, x.shape[:-1])
    loss = _soft.soft_cross_entropy(x, q, where=_counts(w, jnp.isfinite(x).all(-1)))
    return _reduce(loss, w, reduction, x.dtype)


def sparse_softmax_cross_entropy(
    labels: ArrayLike,
    logits: ArrayLike,
    weights: ArrayLike = 1.0,
    scope: str | None = None,
    loss_collection: str | None = None,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> jax.Array:
    """``tf.losses.sparse_softmax_cross_entropy``: integer labels; the home of class weights.

    Args:
      labels: class indices, any integer dtype, the logits' shape without the last axis; one more
        axis of size 1 is dropped, of weights too.
      logits: float ``[..., num_classes]``.
      weights: a scalar, or of the losses' rank; for class weights ``table[labels]``.
      scope: ignored.
      loss_collection: ignored.
      reduction: one of :class:`Reduction`.

    Returns:
      a scalar, or with ``Reduction.NONE`` losses, the labels' shape; in the logits' dtype.

    Raises:
      TypeError: logits not floating-point, labels not integer, weights not real.
      ValueError: shapes do not fit, an unknown reduction; a label out of range whose weight is not
        0, where it can be seen.

    Example:
      >>> labels, table = jnp.array([0, 1]), jnp.array([1.0, 3.0])
      >>> print(sparse_softmax_cross_entropy(labels, jnp.zeros((2, 2)), weights=table[labels]))
      1.3862944
    """
    x = _given("logits", logits, _scores)
    y = _given("labels", labels, _checks.indices)
    if x.ndim == y.ndim + 2 and x.shape[-1] == 1:
        x = x[..., 0]
    if x.ndim == y.ndim and y.shape[-1:] == (1,):
        y = y[..., 0]
    y = _checks.labels(x, y)
    w = _given("weights", weights, _checks.array)
    if w.ndim == y.ndim + 1 and w.shape[-1] == 1:
        w = w[..., 0]
    w = _weights(w, y.shape)
    valid = class_indices(y, x.shape[-1]) >= 0
    where = _counts(w, jnp.isfinite(x).all(-1) & valid)
    if fault := _checks.label_fault(y, x.shape[-1], where, padding="weights=labels != {}"):
        raise ValueError(fault)
    return _reduce(cross_entropy(x, y, where=where), w, reduction, x.dtype)


def sigmoid_cross_entropy(
    multi_class_labels: ArrayLike,
    logits: ArrayLike,
    weights: ArrayLike = 1.0,
    label_smoothing: ArrayLike = 0,
    scope: str | None = None,
    loss_collection: str | None = None,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> jax.Array:
    """``tf.losses.sigmoid_cross_entropy``: independent classes, smoothed towards 1/2.

    One loss a class: the default is a mean over all of them, not a sum over an example's.

    Args:
      multi_class_labels: in [0, 1], the logits' shape.
      logits: float, any shape.
      weights: a scalar, or of the logits' rank: ``[batch, 1]`` for weights of examples.
      label_smoothing: in [0, 1].
      scope: ignored.
      loss_collection: ignored.
      reduction: one of :class:`Reduction`.

    Returns:
      a scalar, or with ``Reduction.NONE`` losses of the logits' shape; in their dtype.

    Raises:
      TypeError: logits not floating-point, labels or weights not real.
      ValueError: shapes do not fit, an unknown reduction, ``label_smoothing`` outside [0, 1].

    Example:
      >>> print(sigmoid_cross_entropy(jnp.ones((2, 2)), jnp.zeros((2, 2))))
      0.6931472
    """
    x = _given("logits", logits, _scores)
    z = _targets("multi_class_labels", multi_class_labels, x)
    z = smooth(z.astype(_checks.accumulator(x)), label_smoothing, 0.5)
    w = _weights(weights, x.shape)
    loss = _sigmoid.sigmoid_cross_entropy(x, z, where=_counts(w, jnp.isfinite(x)))
    return _reduce(loss, w, reduction, x.dtype)


def log_loss(
    labels: ArrayLike,
    predictions: ArrayLike,
    weights: ArrayLike = 1.0,
    epsilon: ArrayLike = 1e-7,
    scope: str | None = None,
    loss_collection: str | None = None,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> jax.Array:
    """``tf.losses.log_loss``: independent probabilities, −z log(p + ε) − (1 − z) log(1 − p + ε).

    ``epsilon=0`` is the cross-entropy itself. Logits need no ε: :func:`sigmoid_cross_entropy`.

    Args:
      labels: in [0, 1], the shape of ``predictions``.
      predictions: in [0, 1], real, any shape; outside it is NaN.
      weights: a scalar, or of the predictions' rank: ``[batch, 1]`` for weights of examples.
      epsilon: ε ≥ 0: no loss exceeds −log ε.
      scope: ignored.
      loss_collection: ignored.
      reduction: one of :class:`Reduction`.

    Returns:
      a scalar, or with ``Reduction.NONE`` losses of the predictions' shape; float32 or wider.

    Raises:
      TypeError: one of them not real.
      ValueError: shapes do not fit, an unknown reduction, ``epsilon`` negative.

    Example:
      >>> print(log_loss(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.75])))  # (log 2 + log 4) / 2
      1.0397205
    """
    p = _given("predictions", predictions, _checks.numbers)
    z = _given("labels", labels, _checks.array)
    z = _checks.elements("labels", z, "predictions", p.shape).astype(p.dtype)
    w = _weights(weights, p.shape)
    exists = _counts(w, (p >= 0) & (p <= 1) & jnp.isfinite(z))
    p, z = jnp.where(exists, p, 0.5), jnp.where(exists, z, 0.5)
    if is_zero(epsilon):
        return _reduce(_probabilities.binary_prob_cross_entropy(p, z), w, reduction, p.dtype)
    epsilon = _checks.option("epsilon", epsilon, 0, float(jnp.finfo(p.dtype).max), p.dtype)
    p *= jnp.where((p >= 0) & (p <= 1), 1, jnp.nan).astype(p.dtype)
    masses, shares = jnp.stack([1 - p, p], -1) + epsilon, jnp.stack([1 - z, z], -1)
    loss = _probabilities.expected_loss(-jnp.log(masses), shares)
    return _reduce(loss, w, reduction, p.dtype)


# --- labels, weights, reductions ----------------------------------------------------------------


_scores = partial(_checks.scores, order="(labels, logits)")


def _targets(name, value, logits):
    q = _given(name, value, _checks.array)
    return _checks.targets(logits, q, name, "sparse_softmax_cross_entropy(labels, logits)")


def _given(name, value, check):
    if value is None:
        raise ValueError(f"{name} must not be None.")
    return check(name, value)


def _weights(value, shape):
    """Weights of exactly this shape: of a scalar, or of the same rank with axes of 1."""
    w = _given("weights", value, _checks.array)
    if w.ndim not in (0, len(shape)) or any(
        a not in (1, b) for a, b in zip(w.shape, shape, strict=bool(w.ndim))
    ):
        raise ValueError(
            "weights can not be broadcast to the losses: they must be a scalar, or have the rank "
            f"of {list(shape)} with each axis 1 or equal; got {_checks.describe(w)}."
        )
    return jnp.broadcast_to(w, shape)


def _counts(w, sound):
    """Which losses exist: all but those of weight 0 that are not sound, which may hold anything."""
    return (w != 0) | sound


def _reduce(loss, w, reduction, dtype):
    Reduction.validate(reduction)
    w = w if w.dtype == bool else w.astype(_checks.accumulator(loss))
    if reduction == Reduction.NONE:
        w = w.astype(_checks.accumulator(loss))
        return times(w, loss.astype(w.dtype)).astype(dtype)
    return _REDUCERS[reduction](loss, w).astype(dtype)


_REDUCERS = {
    Reduction.SUM: lambda loss, w: _reductions.weighted_sum(loss, w).total,
    Reduction.MEAN: _reductions.weighted_mean,
    Reduction.SUM_OVER_BATCH_SIZE: _reductions.plain_mean,
    Reduction.SUM_BY_NONZERO_WEIGHTS: _reductions.nonzero_mean,
}
