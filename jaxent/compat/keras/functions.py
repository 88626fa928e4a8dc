"""The functions of ``keras.losses``: one loss an example, and the weights of ``fit``."""

import warnings
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxent import _checks, losses, probabilities, sigmoid, soft, stats
from jaxent.compat._arrays import (
    axes_of,
    balance,
    broadcast_shape,
    classes_last,
    one_axis,
    smooth,
    stretch,
)
from jaxent.weights import class_weights


def sparse_categorical_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
    *,
    epsilon: float = 0.0,
) -> jax.Array:
    """``keras.losses.sparse_categorical_crossentropy``: class indices.

    Args:
      y_true: class indices, of the shape of ``y_pred`` without ``axis``, or with 1 in its place; of
        any dtype, as Keras itself hands them over as floats.
      y_pred: float, any rank.
      from_logits: whether ``y_pred`` holds logits, and not probabilities.
      ignore_class: examples of this class have loss 0 and no gradient.
      axis: the class axis.
      epsilon: clip probabilities to [epsilon, 1 − epsilon].

    Returns:
      losses, the shape of ``y_pred`` without ``axis``, float32 or wider.

    Raises:
      TypeError: ``y_pred`` not floating-point.
      ValueError: shapes do not fit; ``axis`` out of bounds; ``epsilon`` for logits.

    Example:
      >>> p = jnp.array([[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]])
      >>> print(sparse_categorical_crossentropy(jnp.array([1, 2]), p))
      [0.0513 2.3026]
    """
    loss, _ = sparse_losses(y_true, y_pred, from_logits, ignore_class, axis, epsilon)
    return loss


def sparse_losses(y_true, y_pred, from_logits, ignore_class, axis, epsilon):
    """Losses and which examples are not ignored, or None."""
    x, y = _pred(y_pred, from_logits, epsilon), _checks.array("y_true", y_true)
    axis = one_axis(axis, x.ndim)
    if y.ndim == x.ndim and y.shape[axis] == 1:
        y = jnp.squeeze(y, axis)
    whole = y.astype(jnp.int32)
    y = jnp.where(whole.astype(y.dtype) == y, whole, -(2**31)) if _checks.is_float(y) else whole
    rows = classes_last(x, axis)
    keep = None if ignore_class is None else y != ignore_class
    if y.shape != rows.shape[:-1]:
        like = "y_pred without the class axis"
        raise _checks.shape_error("y_true", y, rows.shape[:-1], like)
    if from_logits:
        s = stats.softmax_stats(rows, y, where=keep)
    elif epsilon:
        s = probabilities.log_prob_stats(_clipped_log(rows, epsilon, keep), y, where=keep)
    else:
        s = probabilities.prob_stats(rows, y, where=keep)
    return losses.nll(s), keep


def categorical_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
    *,
    epsilon: float = 0.0,
) -> jax.Array:
    """``keras.losses.categorical_crossentropy``: dense labels, smoothed towards 1 / classes.

    Args:
      y_true: target distributions, real, the shape of ``y_pred``.
      y_pred: float, any rank.
      from_logits: whether ``y_pred`` holds logits, and not probabilities.
      label_smoothing: in [0, 1].
      axis: the class axis.
      epsilon: clip probabilities to [epsilon, 1 − epsilon].

    Returns:
      losses, the shape of ``y_pred`` without ``axis``, in its dtype.

    Raises:
      TypeError: ``y_pred`` not floating-point.
      ValueError: shapes differ; ``axis`` out of bounds; ``label_smoothing`` outside [0, 1].

    Example:
      >>> q, p = jnp.array([[0.0, 1.0, 0.0]]), jnp.array([[0.05, 0.95, 0.0]])
      >>> print(categorical_crossentropy(q, p), categorical_crossentropy(q, p, epsilon=1e-7))
      [0.0513] [0.0513]
    """
    x, rows, q = _dense(y_true, y_pred, from_logits, label_smoothing, axis, epsilon)
    if from_logits:
        loss = soft.soft_cross_entropy(rows, q)
    elif epsilon:
        loss = probabilities.expected_loss(-_clipped_log(rows, epsilon), q)
    else:
        loss = probabilities.prob_cross_entropy(rows, q)
    return loss.astype(x.dtype)


def categorical_focal_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    alpha: ArrayLike | Sequence[float] = 0.25,
    gamma: ArrayLike = 2.0,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
    *,
    epsilon: float = 0.0,
) -> jax.Array:
    """``keras.losses.categorical_focal_crossentropy``: Σ q_c · alpha_c (1 − p_c)^gamma (−log p_c).

    Args:
      y_true: target distributions, real, exactly the shape of ``y_pred`` (broadcast there).
      y_pred: float, any rank.
      alpha: the weight of all classes, or of each.
      gamma: the exponent, a scalar ≥ 0.
      from_logits: whether ``y_pred`` holds logits, and not probabilities.
      label_smoothing: in [0, 1].
      axis: the class axis.
      epsilon: clip probabilities to [epsilon, 1 − epsilon].

    Returns:
      losses, the shape of ``y_pred`` without ``axis``, in its dtype.

    Raises:
      TypeError, ValueError: as :func:`categorical_crossentropy`; ``gamma`` negative.

    Example:
      >>> q, p = jnp.array([[0.0, 1.0, 0.0]]), jnp.array([[0.05, 0.6, 0.35]])
      >>> print(categorical_focal_crossentropy(q, p))  # 0.25 * 0.4 ** 2 * -log 0.6
      [0.0204]
    """
    x, rows, q = _dense(y_true, y_pred, from_logits, label_smoothing, axis, epsilon)
    if from_logits:
        s = probabilities.class_stats(rows)
    elif epsilon:
        nll = -_clipped_log(rows, epsilon)
        s = stats.LogitStats(nll, jnp.zeros_like(nll), -nll)
    else:
        s = probabilities.prob_class_stats(rows, needed=(q != 0) | (rows != 0))
    alpha = _checks.numbers("alpha", np.asarray(alpha) if isinstance(alpha, Sequence) else alpha)
    q = q * stretch("alpha", alpha.astype(q.dtype), q.shape)
    return probabilities.expected_loss(losses.focal(s, gamma=gamma), q).astype(x.dtype)


def categorical_generalized_cross_entropy(
    y_true: ArrayLike, y_pred: ArrayLike, q: ArrayLike
) -> jax.Array:
    """``keras.losses.categorical_generalized_cross_entropy``: (1 − p_y^q) / q.

    Args:
      y_true: class indices ``[...]``.
      y_pred: probabilities ``[..., num_classes]``, float, taken as they are. One that is exactly 0
        has no gradient (−inf or NaN there).
      q: in [0, 1].

    Returns:
      losses ``[...]``, in the dtype of ``y_pred``.

    Raises:
      TypeError: ``y_pred`` not floating-point.
      ValueError: shapes do not fit; ``q`` outside [0, 1].

    Example:
      >>> p = jnp.array([[0.25, 0.75]])
      >>> print(categorical_generalized_cross_entropy(jnp.array([0]), p, 0.5))
      [1.]
    """
    p = _pred(y_pred)
    y = _checks.array("y_true", y_true).astype(jnp.int32)
    wide = p.astype(_checks.accumulator(p))
    log_p = jnp.log(jnp.maximum(wide, jnp.finfo(wide.dtype).tiny))
    loss = losses.generalized_cross_entropy(probabilities.log_prob_stats(log_p, y), q=q)
    return loss.astype(p.dtype)


def binary_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
    *,
    epsilon: float = 0.0,
) -> jax.Array:
    """``keras.losses.binary_crossentropy``: independent classes, their mean over ``axis``.

    Args:
      y_true: in [0, 1], the shape of ``y_pred``.
      y_pred: float, any rank.
      from_logits: whether ``y_pred`` holds logits, and not probabilities.
      label_smoothing: in [0, 1], towards 1/2.
      axis: the axis of the mean.
      epsilon: clip probabilities to [epsilon, 1 − epsilon].

    Returns:
      losses, the shape of ``y_pred`` without ``axis``, in its dtype.

    Raises:
      TypeError, ValueError: as :func:`categorical_crossentropy`.

    Example:
      >>> z, p = jnp.array([[0.0, 1.0], [0.0, 0.0]]), jnp.array([[0.6, 0.4], [0.4, 0.6]])
      >>> print(binary_crossentropy(z, p))
      [0.9163 0.7136]
    """
    x, z = _binary(y_true, y_pred, from_logits, label_smoothing, epsilon)
    if from_logits:
        loss = sigmoid.sigmoid_cross_entropy(x, z)
    else:
        loss = probabilities.binary_prob_cross_entropy(x, z)
    return jnp.mean(loss, axes_of(axis, loss.ndim)).astype(jnp.result_type(y_pred))


def binary_focal_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    apply_class_balancing: bool = False,
    alpha: ArrayLike = 0.25,
    gamma: ArrayLike = 2.0,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
    *,
    epsilon: float = 0.0,
) -> jax.Array:
    """``keras.losses.binary_focal_crossentropy``: independent classes, their mean over ``axis``.

    Args:
      y_true: in [0, 1], the shape of ``y_pred``.
      y_pred: float, any rank.
      apply_class_balancing: whether ``alpha`` weighs label 1, and 1 − alpha label 0.
      alpha: see there.
      gamma: the exponent, a scalar ≥ 0.
      from_logits: whether ``y_pred`` holds logits, and not probabilities.
      label_smoothing: in [0, 1], towards 1/2.
      axis: the axis of the mean.
      epsilon: clip probabilities to [epsilon, 1 − epsilon].

    Returns:
      losses, the shape of ``y_pred`` without ``axis``, in its dtype.

    Raises:
      TypeError, ValueError: as :func:`categorical_crossentropy`; ``gamma`` negative.

    Example:
      >>> z, p = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]])
      >>> print(binary_focal_crossentropy(z, p))  # 0.5 ** 2 * log 2
      [0.1733]
    """
    x, z = _binary(y_true, y_pred, from_logits, label_smoothing, epsilon)
    focal = probabilities.sigmoid_focal if from_logits else probabilities.binary_prob_focal
    loss = focal(x, z, gamma=gamma)
    if apply_class_balancing:
        loss = balance(z.astype(loss.dtype), alpha) * loss
    return jnp.mean(loss, axes_of(axis, loss.ndim)).astype(jnp.result_type(y_pred))


def kl_divergence(y_true: ArrayLike, y_pred: ArrayLike, *, epsilon: float = 0.0) -> jax.Array:
    """``keras.losses.kl_divergence``: Σ q_c log(q_c / p_c), both taken as they are.

    Args:
      y_true: target distributions q, real; broadcasts against ``y_pred``. 0 · log 0 is 0.
      y_pred: probabilities p, float ``[..., num_classes]``.
      epsilon: clip both to [epsilon, 1].

    Returns:
      divergences ``[...]``, in the dtype of ``y_pred``.

    Raises:
      TypeError: ``y_pred`` not floating-point.
      ValueError: shapes do not broadcast.

    Example:
      >>> q, p = jnp.array([[0.0, 0.5, 0.5]]), jnp.array([[0.25, 0.25, 0.5]])
      >>> print(kl_divergence(q, p))  # log(2) / 2
      [0.3466]
    """
    p, q = _pred(y_pred, epsilon=epsilon), _checks.array("y_true", y_true)
    shape, dtype = broadcast_shape(y_true=q, y_pred=p), _checks.accumulator(p)
    p, q = (stretch(name, x.astype(dtype), shape) for name, x in (("y_pred", p), ("y_true", q)))
    if epsilon:
        p, q = jnp.clip(p, epsilon, 1), jnp.clip(q, epsilon, 1)
    log_p = jnp.log(jnp.where((p == 0) & (q == 0), 1, p))  # so that the slope of 0 · log 0 is 0
    terms = probabilities.pointwise_kl(log_p, q)
    return jnp.sum(terms, axes_of(-1, terms.ndim)).astype(jnp.result_type(y_pred))


def class_weight_to_sample_weights(
    y: ArrayLike, class_weight: Mapping[int, float], axis: int | None = None
) -> jax.Array:
    """What ``fit(class_weight=)`` makes of a dict: one weight an example, for labels of any rank.

    As there, a last axis of size 1 is dropped, and floats of more axes are dense labels. Integers
    of more axes are class indices. (There their last axis would hold classes as well, and a row of
    indices count as the place of its largest.)

    Args:
      y: class indices, any shape; or dense labels, float or with ``axis``.
      class_weight: class to weight; a class that is not in it weighs 1.
      axis: the class axis of dense labels, whose largest entry is the class.

    Returns:
      weights, float32, the shape of ``y`` without its class axis, or last axis of size 1.

    Raises:
      ValueError: a class that is negative; ``axis`` out of bounds; without ``axis``, integer rows
        that look one-hot, or dense labels outside [0, 1], where they can be seen.

    Example:
      >>> print(class_weight_to_sample_weights(jnp.array([[0, 1], [2, 1]]), {1: 3.0}))
      [[1. 3.]
       [1. 3.]]
      >>> print(class_weight_to_sample_weights(jnp.eye(3), {1: 3.0}))
      [1. 3. 1.]
    """
    if any(c < 0 for c in class_weight):
        raise ValueError(f"class_weight must have classes from 0; got {min(class_weight)}.")
    y = _classes(_checks.array("y", y), axis)
    other = max(class_weight, default=-1) + 1
    table = [class_weight.get(c, 1.0) for c in range(other)] + [1.0]
    inside = (y >= 0) & (y < other)
    return class_weights(jnp.where(inside, y, other), jnp.asarray(table, jnp.float32))


def _classes(y, axis):
    """Class indices of labels: themselves, or the largest entry of those that are dense."""
    if axis is None and y.ndim > 1:
        if y.shape[-1] == 1:
            y = y[..., 0]
        elif _dense_labels(y):
            axis = -1
    if axis is not None:
        return jnp.argmax(y, axes_of(axis, y.ndim)[0]).astype(jnp.int32)
    return (jnp.round(y) if _checks.is_float(y) else y).astype(jnp.int32)


def _dense_labels(y):
    """Whether the last axis of y holds classes: that of floats. Its values must not deny it."""
    values = _checks.known(y)
    if values is None or not values.size:
        return _checks.is_float(y)
    if _checks.is_float(y) and not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"y {_checks.describe(y)} has no dense labels, which are in [0, 1]. Class indices of "
            "more than one axis are integers, y.astype(jnp.int32)."
        )
    onehot = (values.max(-1) == 1).all() and (np.sort(values)[..., :-1] == 0).all()
    if onehot and not _checks.is_float(y):
        raise ValueError(
            f"y {_checks.describe(y)} may be one-hot or class indices. Use axis=-1 if they are "
            "one-hot, and y[..., None] if they are indices."
        )
    return _checks.is_float(y)


# --- arguments ----------------------------------------------------------------------------------


def _pred(y_pred, from_logits=False, epsilon=0.0):
    if from_logits and epsilon:
        raise ValueError("epsilon clips probabilities; logits need none.")
    return _checks.scores("y_pred", y_pred, "(y_true, y_pred)")


def _dense(y_true, y_pred, from_logits, label_smoothing, axis, epsilon):
    """Predictions, and rows ``[..., C]`` of them and of the smoothed targets."""
    x = _pred(y_pred, from_logits, epsilon)
    axis = one_axis(axis, x.ndim)
    of_labels = "sparse_categorical_crossentropy" if axis == x.ndim - 1 else ""
    q = _checks.elements("y_true", y_true, "y_pred", x.shape, of_labels)
    if x.shape[axis] == 1:
        warnings.warn(
            f"y_pred must have more than one class on axis {axis}; got {_checks.describe(x)}, "
            "whose loss is 0. For two classes use binary_crossentropy.",
            SyntaxWarning,
            stacklevel=3,
        )
    q = smooth(q.astype(_checks.accumulator(x)), label_smoothing, 1 / max(x.shape[axis], 1))
    return x, classes_last(x, axis), classes_last(q, axis)


def _binary(y_true, y_pred, from_logits, label_smoothing, epsilon):
    x = _pred(y_pred, from_logits, epsilon)
    x = x.astype(_checks.accumulator(x))
    z = _checks.elements("y_true", y_true, "y_pred", x.shape).astype(x.dtype)
    return jnp.clip(x, epsilon, 1 - epsilon) if epsilon else x, smooth(z, label_smoothing, 0.5)


def _clipped_log(p, epsilon, where=None):
    """Log of rows divided by their sums and clipped; of ones where an example is left out."""
    p = p.astype(_checks.accumulator(p))
    p = p if where is None else jnp.where(where[..., None], p, 1)
    return jnp.log(jnp.clip(p / jnp.sum(p, -1, keepdims=True), epsilon, 1 - epsilon))
