"""The classification losses of ``optax.losses``, by their names.

As there: no reduction; labels broadcast against logits; losses have the logits' dtype, promoted
with that of dense labels; ``axis`` is an integer, a tuple or, for dense labels, None; ``where`` has
the losses' shape (whole examples) or broadcasts to the logits' (single classes). Inside, sums are
float32 whatever comes in.

What differs, because it is wrong there:

- A label out of range is NaN, in value and gradient. (There −1 is the last class, −100 is class
  C − 100, and the gradient of other bad labels is a finite wrong one.)
- A class ruled out, by ``where`` or a logit of −inf, has no probability: it adds nothing where its
  target is 0 (NaN there), and the loss is infinite where it is the label (negative there).
- Confident examples, offsets common to all logits and ±inf logits keep their loss and gradient.
- ``poly_loss_cross_entropy`` and the divergences take a ``where`` of whole examples too.
- Targets of 0 leave the gradients of a divergence finite.
- ``gamma`` of the focal loss is at least 0, and ``epsilon`` of the poly loss at least −1.

Not here, because they are not cross-entropies: the hinge, perceptron, sparsemax, Fenchel–Young,
dice, cosine, NT-Xent and triplet losses, CTC and the regressions.
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent import probabilities as _probabilities
from jaxent import sigmoid as _sigmoid
from jaxent import soft as _soft
from jaxent.compat._arrays import (
    Axes,
    axes_of,
    balance,
    broadcast_shape,
    classes_last,
    each_option,
    stretch,
    wider,
)
from jaxent.compat._names import only as _only
from jaxent.losses import cross_entropy, poly1

__all__ = [
    "convex_kl_divergence",
    "generalized_kl_divergence",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "losses",
    "poly_loss_cross_entropy",
    "ranking_softmax_loss",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]
__getattr__ = _only(__name__, "optax")

_Where = ArrayLike | None
losses = sys.modules[__name__]  # the names are at home in optax.losses as well


def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, axis: Axes = -1, where: _Where = None
) -> jax.Array:
    """``optax.softmax_cross_entropy``: dense labels, which broadcast against the logits.

    Args:
      logits: float, any rank.
      labels: target distributions, real.
      axis: the class axis or axes; None is all.
      where: bool, whole examples or single classes.

    Returns:
      losses, the logits' shape without ``axis``.

    Raises:
      TypeError: logits not floating-point, labels not real, ``where`` not bool.
      ValueError: shapes do not broadcast, an axis out of bounds.

    Example:
      >>> logits, labels = jnp.array([[1.2, -0.8, -0.5]]), jnp.array([[1.0, 0.0, 0.0]])
      >>> print(softmax_cross_entropy(logits, labels))
      [0.2761]
    """
    x, q, keep, dtype = _dense(logits, labels, axis, where)
    return _soft.soft_cross_entropy(x, q, where=keep).astype(dtype)


def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """``optax.safe_softmax_cross_entropy``: here :func:`softmax_cross_entropy`, which is safe.

    Args:
      logits: float ``[..., num_classes]``; −inf rules a class out.
      labels: target distributions, real.

    Returns:
      losses ``[...]``.

    Raises:
      TypeError, ValueError: as :func:`softmax_cross_entropy`.

    Example:
      >>> print(safe_softmax_cross_entropy(jnp.array([0.0, -jnp.inf]), jnp.array([1.0, 0.0])))
      0.0
    """
    return softmax_cross_entropy(logits, labels)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, axis: int | tuple[int, ...] = -1, where: _Where = None
) -> jax.Array:
    """``optax.softmax_cross_entropy_with_integer_labels``.

    Args:
      logits: float, any rank.
      labels: class indices, any integer dtype; of the logits' shape without ``axis``, or
        broadcasting against it with the same rank.
      axis: the class axis; of several, a label is a flat index into them.
      where: bool, whole examples or single classes.

    Returns:
      losses, in the logits' dtype.

    Raises:
      TypeError: logits not floating-point, labels not integer, ``where`` not bool.
      ValueError: shapes do not broadcast, ``axis`` out of bounds or neither an integer nor a tuple.

    Example:
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> print(softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1])))
      [0.2761 2.9518]
    """
    if not isinstance(axis, int | tuple):
        raise ValueError(f"axis must be an integer or a tuple of them; got {axis!r}.")
    x, y = _checks.floats("logits", logits), _checks.indices("labels", labels)
    dtype = x.dtype
    keep, possible = _masks(where, x, axis)
    x = _ruled_out(classes_last(x, axis), possible)
    if y.ndim != x.ndim - 1:
        raise ValueError(
            f"labels must have one axis less than logits for each class axis, {x.ndim - 1}; got "
            f"{_checks.describe(y)}. Dense labels go to softmax_cross_entropy."
        )
    shape = broadcast_shape(labels=y, losses=x[..., 0])
    x, y = stretch("logits", x, (*shape, x.shape[-1])), stretch("labels", y, shape)
    keep = None if keep is None else stretch("where", keep, shape)
    return cross_entropy(x, y, where=keep).astype(dtype)


def sigmoid_binary_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """``optax.sigmoid_binary_cross_entropy``: elementwise, no sum.

    Args:
      logits: float, any shape.
      labels: in [0, 1], bool or real; broadcasts against the logits.

    Returns:
      losses, in the logits' dtype.

    Raises:
      TypeError: logits not floating-point.
      ValueError: shapes do not broadcast.

    Example:
      >>> print(sigmoid_binary_cross_entropy(jnp.array([0.0, 100.0]), jnp.array([1, 0])))
      [  0.6931 100.    ]
    """
    x, z, dtype = _elementwise(logits, labels)
    return _sigmoid.sigmoid_cross_entropy(x, z).astype(dtype)


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> jax.Array:
    """``optax.sigmoid_focal_loss``: elementwise, labels anywhere in [0, 1].

    Args:
      logits: float, any shape.
      labels: in [0, 1]; broadcasts against the logits.
      alpha: the weight of label 1, 1 − alpha that of label 0; None weighs nothing; broadcasts.
      gamma: the exponent, ≥ 0; broadcasts.

    Returns:
      losses, in the logits' dtype, promoted with that of an option that is an array.

    Raises:
      TypeError: logits not floating-point.
      ValueError: shapes do not broadcast; ``gamma`` negative.

    Example:
      >>> x, y = jnp.array([0.0, 3.0]), jnp.array([1.0, 0.0])
      >>> print(sigmoid_focal_loss(x, y, alpha=0.25))
      [0.0433 2.0747]
    """
    options = {"gamma": gamma} | ({} if alpha is None else {"alpha": alpha})
    x, z, dtype = _elementwise(logits, labels, **options)
    loss = each_option("gamma", _focal, (x, z), gamma)
    if alpha is not None:
        loss = balance(z.astype(loss.dtype), alpha) * loss
    return loss.astype(dtype)


def _focal(pair, option):
    return _probabilities.sigmoid_focal(*pair, gamma=option)


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: Axes = -1,
    where: _Where = None,
) -> jax.Array:
    """``optax.poly_loss_cross_entropy``: cross-entropy + epsilon · (1 − p), dense labels.

    Args:
      logits: float, any rank.
      labels: target distributions, float; broadcasts against the logits.
      epsilon: the weight of the further term, ≥ −1; broadcasts against the losses.
      axis: the class axis or axes; None is all.
      where: bool, whole examples or single classes.

    Returns:
      losses, the logits' shape without ``axis``, broadcast against ``epsilon``.

    Raises:
      TypeError: logits or labels not floating-point.
      ValueError: shapes do not broadcast; ``epsilon`` below −1.

    Example:
      >>> logits, labels = jnp.log(jnp.array([0.6, 0.4])), jnp.array([1.0, 0.0])
      >>> print(f"{poly_loss_cross_entropy(logits, labels):.4f}")
      1.3108
    """
    x, q, keep, dtype = _dense(logits, _checks.floats("labels", labels), axis, where)
    dtype = wider(jnp.zeros((), dtype), _checks.array("epsilon", epsilon))
    s = _probabilities.class_stats(x, where=keep)
    each = jax.vmap(lambda s: each_option("epsilon", _poly1, s, epsilon), -1, -1)(s)
    q, shape = stretch("labels", q, each.shape), each.shape[:-1]
    keep = None if keep is None else stretch("where", keep, shape)
    return _probabilities.expected_loss(each, q, where=keep).astype(dtype)


def _poly1(s, option):
    return poly1(s, epsilon=option)


def kl_divergence(
    log_predictions: ArrayLike, targets: ArrayLike, axis: Axes = -1, where: _Where = None
) -> jax.Array:
    """``optax.kl_divergence``: of log-probabilities, which are taken as they are.

    Args:
      log_predictions: log-probabilities, float.
      targets: probabilities, float; broadcasts against the former. 0 · log 0 is 0.
      axis: the axis or axes to sum over; None is all.
      where: bool, broadcasting to both.

    Returns:
      divergences, without ``axis``.

    Raises:
      TypeError: one of them not floating-point.
      ValueError: shapes do not broadcast.

    Example:
      >>> p, q = jnp.array([0.25, 0.25, 0.5]), jnp.array([0.0, 0.5, 0.5])
      >>> print(f"{kl_divergence(jnp.log(p), q):.4f}")
      0.3466
    """
    x, q, keep, dtype = _logs(log_predictions, "targets", targets, axis, where)
    terms = _probabilities.pointwise_kl(x, q, where=keep)
    return jnp.sum(terms, axes_of(axis, terms.ndim)).astype(dtype)


def kl_divergence_with_log_targets(
    log_predictions: ArrayLike, log_targets: ArrayLike, axis: Axes = -1, where: _Where = None
) -> jax.Array:
    """``optax.kl_divergence_with_log_targets``.

    Args:
      log_predictions: log-probabilities, float.
      log_targets: log-probabilities, float; −inf is a target of 0.
      axis: the axis or axes to sum over; None is all.
      where: bool, broadcasting to both.

    Returns:
      divergences, without ``axis``.

    Raises:
      TypeError, ValueError: as :func:`kl_divergence`.

    Example:
      >>> p, q = jnp.array([0.25, 0.75]), jnp.array([0.5, 0.5])
      >>> print(f"{kl_divergence_with_log_targets(jnp.log(p), jnp.log(q)):.4f}")
      0.1438
    """
    x, t, keep, dtype = _logs(log_predictions, "log_targets", log_targets, axis, where)
    terms = _probabilities.pointwise_kl_of_logs(x, t, where=keep)
    return jnp.sum(terms, axes_of(axis, terms.ndim)).astype(dtype)


def generalized_kl_divergence(
    log_predictions: ArrayLike, targets: ArrayLike, axis: Axes = -1, where: _Where = None
) -> jax.Array:
    """``optax.losses.generalized_kl_divergence``: of masses that need not sum to 1.

    Args:
      log_predictions: logarithms of the predicted masses, float.
      targets: masses, float; broadcasts against the former.
      axis: the axis or axes to sum over; None is all.
      where: bool, broadcasting to both.

    Returns:
      divergences, without ``axis``.

    Raises:
      TypeError, ValueError: as :func:`kl_divergence`.

    Example:
      >>> p, q = jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])
      >>> print(f"{generalized_kl_divergence(jnp.log(p), q):.4f}")
      0.3069
    """
    x, q, keep, dtype = _logs(log_predictions, "targets", targets, axis, where)
    terms = _probabilities.pointwise_generalized_kl(x, q, where=keep)
    return jnp.sum(terms, axes_of(axis, terms.ndim)).astype(dtype)


convex_kl_divergence = generalized_kl_divergence


def ranking_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: _Where = None,
    weights: ArrayLike | None = None,
    reduce_fn: Callable[..., jax.Array] | None = jnp.mean,
) -> jax.Array:
    """``optax.losses.ranking_softmax_loss``: a list's scores against the relevance of its items.

    Args:
      logits: scores, float ``[..., list_size]``.
      labels: relevance, real, the same shape.
      where: bool, the same shape: the items there are. Lists without any are left out.
      weights: real, the same shape; multiply the labels.
      reduce_fn: ``reduce_fn(losses, where=)``; None for one loss a list. A mean over no list is 0.

    Returns:
      the reduced loss, or losses ``[...]``.

    Raises:
      TypeError, ValueError: as :func:`softmax_cross_entropy`.

    Example:
      >>> scores, relevance = jnp.array([[2.0, 1.0, 3.0]]), jnp.array([[1.0, 0.0, 0.0]])
      >>> print(ranking_softmax_loss(scores, relevance))
      1.4076059
    """
    x = _checks.floats("logits", logits)
    q = _checks.numbers("labels", labels).astype(_checks.accumulator(x))
    if weights is not None:
        q = q * stretch("weights", _checks.numbers("weights", weights).astype(q.dtype), q.shape)
    where = None if where is None else stretch("where", _bool(where), x.shape)
    loss = softmax_cross_entropy(x, q, where=where).astype(x.dtype)
    if reduce_fn is None:
        return loss
    exists = jnp.ones(loss.shape, bool) if where is None else jnp.any(where, -1)
    if reduce_fn is jnp.mean:  # a list that exists but holds NaN must show
        return jnp.where(jnp.any(exists), reduce_fn(loss, where=exists), 0)
    return reduce_fn(loss, where=exists)


def smooth_labels(
    labels: ArrayLike, alpha: ArrayLike, *, axis: Axes = -1, where: _Where = None
) -> jax.Array:
    """``optax.smooth_labels``: (1 − alpha) · labels + alpha / C, C the number of classes kept.

    For integer labels :func:`jaxent.smoothed_nll` needs no dense labels at all.

    Args:
      labels: float, any rank.
      alpha: the share spread over all classes; broadcasts against the labels.
      axis: the class axis or axes; None is all.
      where: bool, broadcasting to the labels: the classes that count.

    Returns:
      labels, smoothed.

    Raises:
      TypeError: labels not floating-point.
      ValueError: shapes do not broadcast, an axis out of bounds.

    Example:
      >>> print(smooth_labels(jnp.array([1.0, 0.0, 0.0, 0.0]), 0.1))
      [0.925 0.025 0.025 0.025]
    """
    q = _checks.floats("labels", labels)
    axes = axes_of(axis, q.ndim)
    alpha = _checks.array("alpha", alpha)
    dtype, shape = wider(q, alpha), broadcast_shape(labels=q, alpha=alpha)
    counted = jnp.ones(q.shape, bool) if where is None else stretch("where", _bool(where), q.shape)
    classes = jnp.sum(counted, axes, keepdims=True, dtype=jnp.int32)
    q, classes = (stretch("labels", x.astype(dtype), shape) for x in (q, classes))
    alpha = stretch("alpha", alpha.astype(dtype), shape)
    return (1 - alpha) * q + alpha / classes


# --- shapes and masks ---------------------------------------------------------------------------


def _bool(where) -> jax.Array:
    mask = _checks.array("where", where)
    if mask.dtype != bool:
        raise ValueError(f"where must be boolean; got {_checks.describe(mask)}.")
    return mask


def _masks(where, x, axis):
    """Whole examples that exist ``[...]``, and classes that are possible ``[..., C]``; or None."""
    if where is None:
        return None, None
    mask, axes = _bool(where), axes_of(axis, x.ndim)
    if mask.ndim != x.ndim:
        return stretch("where", mask, _without(x.shape, axes)), None
    possible = classes_last(stretch("where", mask, x.shape), axis)
    return jnp.any(possible, -1), possible


def _without(shape, axes):
    return tuple(size for place, size in enumerate(shape) if place not in axes)


def _sizes(shape, axis):
    return tuple(shape[a] for a in axes_of(axis, len(shape)))


def _ruled_out(x, possible):
    return x if possible is None else jnp.where(possible, x, -jnp.inf)


def _dense(logits, labels, axis, where):
    """Logits and targets ``[..., C]`` of one shape, which examples exist, the losses' dtype."""
    x, q = _checks.floats("logits", logits), _checks.array("labels", labels)
    dtype = wider(x, q) if _checks.is_float(q) else x.dtype
    shape = broadcast_shape(logits=x, labels=q)
    if _sizes(x.shape, axis) != _sizes(shape, axis):
        raise ValueError(
            "logits must have all the classes, only labels may broadcast along them; got logits "
            f"{_checks.describe(x)} and labels {_checks.describe(q)} with axis {axis}."
        )
    keep, possible = _masks(where, stretch("logits", x, shape), axis)
    x = _ruled_out(classes_last(stretch("logits", x, shape), axis), possible)
    q = classes_last(stretch("labels", q, shape), axis)
    return x, q if possible is None else jnp.where(possible, q, jnp.zeros_like(q)), keep, dtype


def _elementwise(logits, labels, **options):
    """Logits and labels of one shape, which is that of the losses, and the losses' dtype."""
    x, z = _checks.floats("logits", logits), _checks.array("labels", labels)
    options = {name: _checks.array(name, option) for name, option in options.items()}
    shape = broadcast_shape(logits=x, labels=z, **options)
    dtype = wider(x, *options.values())
    return stretch("logits", x, shape), stretch("labels", z, shape), dtype


def _logs(log_predictions, name, targets, axis, where):
    x, q = _checks.floats("log_predictions", log_predictions), _checks.floats(name, targets)
    shape = broadcast_shape(log_predictions=x, **{name: q})
    keep = None if where is None else _whole(_bool(where), shape, axis)
    return stretch("log_predictions", x, shape), stretch(name, q, shape), keep, wider(x, q)


def _whole(mask, shape, axis):
    axes = axes_of(axis, len(shape))
    if mask.shape == _without(shape, axes) and mask.ndim != len(shape):
        mask = jnp.expand_dims(mask, sorted(axes))
    return stretch("where", mask, shape)
