"""The cross-entropies of ``keras.losses``: functions, classes, and ``class_weight`` dicts.

As there: labels come first; ``y_pred`` holds probabilities unless ``from_logits=True``, and rows of
them are divided by their sum. Functions return one loss an example, in the dtype of ``y_pred``, of
class indices in float32 or wider; classes reduce, and return ``dtype`` (None is float32).

====================================================  ========================================
``reduction="sum_over_batch_size"``, ``"mean"``       Σ w · loss / number of losses (of those
                                                      that are not of ``ignore_class``)
``"mean_with_sample_weight"``                         Σ w · loss / Σ w
``"sum"``                                             Σ w · loss
``"none"``, None                                      w · loss
====================================================  ========================================

A mean over nothing is 0. What differs, because it is wrong there:

- Probabilities are not clipped to [1e-7, 1 − 1e-7], which ends every loss at 16.1 and its gradient
  with it. Who wants the clip asks for it: ``epsilon=1e-7``.
- ``axis`` is the class axis for label smoothing and for class indices too.
- A class index out of range, or no whole number, is NaN in value and gradient (a loss of 0 there).
- ``ignore_class`` compares integers: 2049 is not 2048, whatever the dtype of ``y_pred``. An example
  of weight 0 may hold NaN without harm to the value.
- The focal losses of logits go through no clipped probability.
- Weights of fewer axes than the losses are those of the leading axes (of the trailing ones where
  only these fit), and ``mean_with_sample_weight`` divides by the weights of all losses.
- ``CategoricalGeneralizedCrossEntropy`` takes labels ``[batch, 1]`` (a loss of all pairs there).
- ``label_smoothing`` outside [0, 1] raises.

In ``model.compile`` the functions can be given as they are. There the classes would be called
without the sample weights: hand them over with :func:`compiled_loss`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxent import _checks, losses, probabilities, reductions, sigmoid, soft, stats
from jaxent._numerics import times
from jaxent.compat._arrays import axes_of, balance, classes_last, floats, smooth, stretch
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
    loss, _ = _sparse(y_true, y_pred, from_logits, ignore_class, axis, epsilon)
    return loss


def _sparse(y_true, y_pred, from_logits, ignore_class, axis, epsilon):
    """Losses and which examples are not ignored, or None."""
    x, y = _pred(y_pred, from_logits, epsilon), _checks.array("y_true", y_true)
    axis = _axis(axis, x)
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
      y_true: target distributions, real, the shape of ``y_pred``.
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
    p = floats("y_pred", y_pred)
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


# --- class forms --------------------------------------------------------------------------------


class _Loss:
    """A loss function, ``function(y_true, y_pred)``, with a reduction; called with weights."""

    def __init__(
        self,
        function: Callable[[jax.Array, jax.Array], jax.Array],
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype=None,
    ):
        if reduction not in _REDUCTIONS:
            raise ValueError(
                f"Invalid value for argument `reduction`. Expected one of {[*_REDUCTIONS]}; got "
                f"{reduction!r}."
            )
        self.function, self.reduction, self.name = function, reduction, name
        self.dtype = jnp.dtype(dtype or jnp.float32)

    def call(self, y_true: ArrayLike, y_pred: ArrayLike) -> jax.Array:
        """The losses before weights and reduction."""
        return self._losses(y_true, y_pred)[0]

    def __call__(
        self, y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> jax.Array:
        """The reduced loss; sample weights broadcast to the losses."""
        loss, keep = self._losses(y_true, y_pred)
        loss = loss.astype(_checks.accumulator(loss))
        w = None
        if sample_weight is not None:
            w = _checks.array("sample_weight", sample_weight)
            if w.ndim == loss.ndim + 1 == 2 and w.shape[-1] == 1:
                loss, keep = loss[:, None], None if keep is None else keep[:, None]
            w = _weights(w, loss.shape).astype(loss.dtype)
        if keep is not None:
            w = keep.astype(loss.dtype) if w is None else jnp.where(keep, w, 0)
        return _REDUCTIONS[self.reduction](loss, w, keep).astype(self.dtype)

    def _losses(self, y_true, y_pred):
        y, x = _same_rank(_checks.array("y_true", y_true), _checks.array("y_pred", y_pred))
        return self.function(y, x), None


def _weights(w, shape):
    """Weights of exactly this shape: with an axis of 1 more, of its leading or trailing axes."""
    if w.ndim == len(shape) + 1 and w.shape[-1] == 1:
        w = w[..., 0]
    if w.ndim < len(shape) and w.shape == shape[: w.ndim]:
        w = w.reshape(w.shape + (1,) * (len(shape) - w.ndim))
    return stretch("sample_weight", w, shape)


def _same_rank(y, x):
    """The one with an axis of size 1 more loses it; of rank 2 and 1, the other one gains it."""
    for extra, other in ((0, 1), (1, 0)):
        pair = [y, x]
        if pair[extra].ndim == pair[other].ndim + 1 and pair[extra].shape[-1:] == (1,):
            if pair[other].ndim == 1:
                pair[other] = pair[other][:, None]
            else:
                pair[extra] = pair[extra][..., 0]
            return pair
    return y, x


def _none(loss, w, keep):
    return loss if w is None else times(w, loss)


def _sum(loss, w, keep):
    return reductions.weighted_sum(loss, w).total


def _mean(loss, w, keep):
    counted = reductions.weighted_sum(loss, keep).weight
    return reductions.WeightedSum(reductions.weighted_sum(loss, w).total, counted).mean()


def _mean_with_sample_weight(loss, w, keep):
    return reductions.weighted_mean(loss, w)


_REDUCTIONS = {
    "sum_over_batch_size": _mean,
    "mean": _mean,
    "mean_with_sample_weight": _mean_with_sample_weight,
    "sum": _sum,
    "none": _none,
    None: _none,
}


class SparseCategoricalCrossentropy(_Loss):
    """``keras.losses.SparseCategoricalCrossentropy``.

    Args:
      from_logits: as of :func:`sparse_categorical_crossentropy`.
      ignore_class: examples of this class are left out, and not counted by a mean.
      reduction: see the module.
      axis: the class axis.
      name: of the loss.
      dtype: of the result; None is float32.
      epsilon: as of :func:`sparse_categorical_crossentropy`.

    Raises:
      ValueError: an unknown reduction.

    Example:
      >>> loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
      >>> print(loss(jnp.array([0, -1]), jnp.zeros((2, 3))))  # log 3
      1.0986123
    """

    def __init__(
        self,
        from_logits=False,
        ignore_class=None,
        reduction="sum_over_batch_size",
        axis=-1,
        name="sparse_categorical_crossentropy",
        dtype=None,
        *,
        epsilon=0.0,
    ):
        options = (from_logits, ignore_class, axis, epsilon)
        super().__init__(lambda y, x: _sparse(y, x, *options), reduction, name, dtype)

    def _losses(self, y_true, y_pred):
        return self.function(
            *_same_rank(_checks.array("y_true", y_true), _checks.array("y_pred", y_pred))
        )


class CategoricalCrossentropy(_Loss):
    """``keras.losses.CategoricalCrossentropy``.

    Args:
      from_logits: as of :func:`categorical_crossentropy`, and so all but the next three.
      label_smoothing: in [0, 1].
      axis: the class axis.
      reduction: see the module.
      name: of the loss.
      dtype: of the result; None is float32.
      epsilon: clip probabilities.

    Raises:
      ValueError: an unknown reduction.

    Example:
      >>> q, p = jnp.eye(3)[:2], jnp.array([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25]])
      >>> print(CategoricalCrossentropy()(q, p, sample_weight=jnp.array([1.0, 0.0])))  # log(2) / 2
      0.3465736
    """

    def __init__(
        self,
        from_logits=False,
        label_smoothing=0.0,
        axis=-1,
        reduction="sum_over_batch_size",
        name="categorical_crossentropy",
        dtype=None,
        *,
        epsilon=0.0,
    ):
        function = partial(
            categorical_crossentropy,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
            epsilon=epsilon,
        )
        super().__init__(function, reduction, name, dtype)


class CategoricalFocalCrossentropy(_Loss):
    """``keras.losses.CategoricalFocalCrossentropy``.

    Args:
      alpha: as of :func:`categorical_focal_crossentropy`, and so all but the next three.
      gamma: the exponent.
      from_logits: whether ``y_pred`` holds logits.
      label_smoothing: in [0, 1].
      axis: the class axis.
      reduction: see the module.
      name: of the loss.
      dtype: of the result; None is float32.
      epsilon: clip probabilities.

    Raises:
      ValueError: an unknown reduction.

    Example:
      >>> loss = CategoricalFocalCrossentropy(alpha=1.0, gamma=0.0)  # cross-entropy
      >>> print(loss(jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5]])))
      0.6931472
    """

    def __init__(
        self,
        alpha=0.25,
        gamma=2.0,
        from_logits=False,
        label_smoothing=0.0,
        axis=-1,
        reduction="sum_over_batch_size",
        name="categorical_focal_crossentropy",
        dtype=None,
        *,
        epsilon=0.0,
    ):
        function = partial(
            categorical_focal_crossentropy,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
            epsilon=epsilon,
        )
        super().__init__(function, reduction, name, dtype)


class CategoricalGeneralizedCrossEntropy(_Loss):
    """``keras.losses.CategoricalGeneralizedCrossEntropy``.

    Args:
      q: as of :func:`categorical_generalized_cross_entropy`, strictly between 0 and 1.
      reduction: see the module.
      name: of the loss.
      dtype: of the result; None is float32.

    Raises:
      ValueError: ``q`` out of range, an unknown reduction.

    Example:
      >>> print(CategoricalGeneralizedCrossEntropy()(jnp.array([0]), jnp.array([[0.25, 0.75]])))
      1.0
    """

    def __init__(
        self,
        q=0.5,
        reduction="sum_over_batch_size",
        name="categorical_generalized_cross_entropy",
        dtype=None,
    ):
        if not 0 < q < 1:
            raise ValueError(f"q must be in the interval (0, 1); got {q}.")
        function = partial(categorical_generalized_cross_entropy, q=q)
        super().__init__(function, reduction, name, dtype)

    def _losses(self, y_true, y_pred):
        y, x = _checks.array("y_true", y_true), _checks.array("y_pred", y_pred)
        return self.function(y[..., 0] if y.ndim == x.ndim and y.shape[-1] == 1 else y, x), None


class BinaryCrossentropy(_Loss):
    """``keras.losses.BinaryCrossentropy``.

    Args:
      from_logits: as of :func:`binary_crossentropy`, and so all but the next three.
      label_smoothing: in [0, 1], towards 1/2.
      axis: the axis of the mean.
      reduction: see the module.
      name: of the loss.
      dtype: of the result; None is float32.
      epsilon: clip probabilities.

    Raises:
      ValueError: an unknown reduction.

    Example:
      >>> print(BinaryCrossentropy(from_logits=True)(jnp.array([0, 1]), jnp.zeros((2, 1))))
      0.6931472
    """

    def __init__(
        self,
        from_logits=False,
        label_smoothing=0.0,
        axis=-1,
        reduction="sum_over_batch_size",
        name="binary_crossentropy",
        dtype=None,
        *,
        epsilon=0.0,
    ):
        function = partial(
            binary_crossentropy,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
            epsilon=epsilon,
        )
        super().__init__(function, reduction, name, dtype)


class BinaryFocalCrossentropy(_Loss):
    """``keras.losses.BinaryFocalCrossentropy``.

    Args:
      apply_class_balancing: as of :func:`binary_focal_crossentropy`, and so all but the next three.
      alpha: the weight of label 1.
      gamma: the exponent.
      from_logits: whether ``y_pred`` holds logits.
      label_smoothing: in [0, 1], towards 1/2.
      axis: the axis of the mean.
      reduction: see the module.
      name: of the loss.
      dtype: of the result; None is float32.
      epsilon: clip probabilities.

    Raises:
      ValueError: an unknown reduction.

    Example:
      >>> loss = BinaryFocalCrossentropy(from_logits=True)
      >>> print(f"{loss(jnp.array([[1.0]]), jnp.array([[0.0]])):.4f}")  # 0.5 ** 2 * log 2
      0.1733
    """

    def __init__(
        self,
        apply_class_balancing=False,
        alpha=0.25,
        gamma=2.0,
        from_logits=False,
        label_smoothing=0.0,
        axis=-1,
        reduction="sum_over_batch_size",
        name="binary_focal_crossentropy",
        dtype=None,
        *,
        epsilon=0.0,
    ):
        function = partial(
            binary_focal_crossentropy,
            apply_class_balancing=apply_class_balancing,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
            epsilon=epsilon,
        )
        super().__init__(function, reduction, name, dtype)


def compiled_loss(loss: _Loss, keras):
    """A loss of this module as one that ``model.compile`` of the JAX backend takes.

    Keras calls a loss that is not of its own class without the sample weights (and so without
    ``class_weight``), and multiplies what it returns: right for functions, wrong for what is
    reduced already.

    Args:
      loss: of this module.
      keras: the module ``keras``, which jaxent never imports.

    Returns:
      a ``keras.losses.Loss``.

    Example:
      ``model.compile(loss=compiled_loss(BinaryCrossentropy(from_logits=True), keras))``
    """

    class JaxentLoss(keras.losses.Loss):
        def __init__(self):
            super().__init__(name=loss.name)

        def __call__(self, y_true, y_pred, sample_weight=None):
            return loss(y_true, y_pred, sample_weight)

        def call(self, y_true, y_pred):
            return loss.call(y_true, y_pred)

    return JaxentLoss()


def class_weight_to_sample_weights(
    y: ArrayLike, class_weight: Mapping[int, float], axis: int | None = None
) -> jax.Array:
    """What ``fit(class_weight=)`` makes of a dict: one weight an example, for labels of any rank.

    Args:
      y: class indices, any shape and dtype; or dense labels, with ``axis``.
      class_weight: class to weight; a class that is not in it weighs 1.
      axis: the class axis of dense labels, whose largest entry is the class.

    Returns:
      weights, float32, the shape of ``y``, without ``axis``.

    Raises:
      ValueError: a class that is negative; ``axis`` out of bounds.

    Example:
      >>> print(class_weight_to_sample_weights(jnp.array([[0, 1], [2, 1]]), {1: 3.0}))
      [[1. 3.]
       [1. 3.]]
    """
    if any(c < 0 for c in class_weight):
        raise ValueError(f"class_weight must have classes from 0; got {min(class_weight)}.")
    y = _checks.array("y", y)
    y = y if axis is None else jnp.argmax(y, axes_of(axis, y.ndim)[0])
    y = y.astype(jnp.int32)
    other = max(class_weight, default=-1) + 1
    table = [class_weight.get(c, 1.0) for c in range(other)] + [1.0]
    inside = (y >= 0) & (y < other)
    return class_weights(jnp.where(inside, y, other), jnp.asarray(table, jnp.float32))


# --- arguments ----------------------------------------------------------------------------------


def _pred(y_pred, from_logits, epsilon):
    if from_logits and epsilon:
        raise ValueError("epsilon clips probabilities; logits need none.")
    return floats("y_pred", y_pred)


def _axis(axis, x):
    if isinstance(axis, bool):
        raise ValueError(f"axis must be an integer; got {axis}.")
    (axis,) = axes_of(axis, x.ndim)
    return axis


def _dense(y_true, y_pred, from_logits, label_smoothing, axis, epsilon):
    """Predictions, and rows ``[..., C]`` of them and of the smoothed targets."""
    x = _pred(y_pred, from_logits, epsilon)
    axis = _axis(axis, x)
    q = _checks.elements("y_true", y_true, "y_pred", x.shape)
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
