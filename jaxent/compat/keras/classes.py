"""The classes of ``keras.losses``: a loss with a reduction, called with sample weights."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, reductions
from jaxent._numerics import times
from jaxent.compat._arrays import stretch
from jaxent.compat.keras.functions import (
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    categorical_generalized_cross_entropy,
    kl_divergence,
    sparse_losses,
)


class _Loss:
    """A loss ``function(y_true, y_pred, **options)`` with a reduction; called with weights."""

    def __init__(self, function: Callable, reduction: str | None, name: str, dtype, **options):
        if reduction not in _REDUCTIONS:
            raise ValueError(
                f"Invalid value for argument `reduction`. Expected one of {[*_REDUCTIONS]}; got "
                f"{reduction!r}."
            )
        self.function, self.reduction, self.name = partial(function, **options), reduction, name
        self.dtype = jnp.dtype(dtype or jnp.float32)

    def get_config(self) -> dict:
        """The constructor's arguments as plain Python, for ``from_config``."""
        return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in self._arguments().items()}

    @classmethod
    def from_config(cls, config: dict):
        """The loss whose ``get_config`` this is."""
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())
        return f"{type(self).__name__}({arguments})"

    def _arguments(self):
        rest = {"reduction": self.reduction, "name": self.name, "dtype": str(self.dtype)}
        return self.function.keywords | rest

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
            w = _weights(w, loss.shape, jnp.shape(y_pred)).astype(loss.dtype)
        if keep is not None:
            w = keep.astype(loss.dtype) if w is None else jnp.where(keep, w, 0)
        return _REDUCTIONS[self.reduction](loss, w, keep).astype(self.dtype)

    def _losses(self, y_true, y_pred):
        y, x = _same_rank(_checks.array("y_true", y_true), _checks.array("y_pred", y_pred))
        return self.function(y, x), None


def _weights(w, shape, predictions):
    """Weights of exactly this shape: with an axis of 1 more, of its leading or trailing axes."""
    if w.size > 1 and not shape and len(predictions) == 1:
        n = predictions[0]
        raise ValueError(
            f"sample_weight {_checks.describe(w)} is for several examples, and y_pred [{n}] is one "
            f"example of {n} outputs; for {n} examples give it shape [{n}, 1]."
        )
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
        super().__init__(
            sparse_losses,
            reduction,
            name,
            dtype,
            from_logits=from_logits,
            ignore_class=ignore_class,
            axis=axis,
            epsilon=epsilon,
        )

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
        super().__init__(
            categorical_crossentropy,
            reduction,
            name,
            dtype,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
            epsilon=epsilon,
        )


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
        super().__init__(
            categorical_focal_crossentropy,
            reduction,
            name,
            dtype,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
            epsilon=epsilon,
        )


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
        super().__init__(categorical_generalized_cross_entropy, reduction, name, dtype, q=q)

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
        super().__init__(
            binary_crossentropy,
            reduction,
            name,
            dtype,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
            epsilon=epsilon,
        )


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
        super().__init__(
            binary_focal_crossentropy,
            reduction,
            name,
            dtype,
            apply_class_balancing=apply_class_balancing,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
            epsilon=epsilon,
        )


class KLDivergence(_Loss):
    """``keras.losses.KLDivergence``.

    Args:
      reduction: see the module.
      name: of the loss.
      dtype: of the result; None is float32.
      epsilon: as of :func:`kl_divergence`.

    Raises:
      ValueError: an unknown reduction.

    Example:
      >>> q, p = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]])
      >>> print(KLDivergence()(q, p))  # log 2
      0.6931472
    """

    def __init__(
        self,
        reduction="sum_over_batch_size",
        name="kl_divergence",
        dtype=None,
        *,
        epsilon=0.0,
    ):
        super().__init__(kl_divergence, reduction, name, dtype, epsilon=epsilon)


def compiled_loss(loss: _Loss, keras):
    """A loss of this module as one that ``model.compile`` of the JAX backend takes, and saves.

    Keras calls a loss that is not of its own class without the sample weights (and so without
    ``class_weight``), and multiplies what it returns: right for functions, wrong for what is
    reduced already.

    Args:
      loss: of this module.
      keras: the module ``keras``, which jaxent never imports.

    Returns:
      a ``keras.losses.Loss``. To load its model in another program, :func:`register` first.

    Example:
      ``model.compile(loss=compiled_loss(BinaryCrossentropy(from_logits=True), keras))``
    """
    return register(keras)(loss)


@cache
def register(keras) -> type:
    """Tell ``keras.saving`` of the losses of this module, so that ``load_model`` finds them.

    Args:
      keras: the module ``keras``, which jaxent never imports.

    Returns:
      the class of what :func:`compiled_loss` returns.

    Example:
      ``register(keras)``, and then ``keras.saving.load_model("model.keras")``
    """
    for loss in _Loss.__subclasses__():
        keras.saving.register_keras_serializable("jaxent")(loss)

    @keras.saving.register_keras_serializable("jaxent")
    class JaxentLoss(keras.losses.Loss):
        def __init__(self, loss):
            super().__init__(loss.name, loss.reduction)
            self.loss = loss

        def __call__(self, y_true, y_pred, sample_weight=None):
            return self.loss(y_true, y_pred, sample_weight)

        def call(self, y_true, y_pred):
            return self.loss.call(y_true, y_pred)

        def get_config(self):
            return {"loss": keras.saving.serialize_keras_object(self.loss)}

        @classmethod
        def from_config(cls, config):
            return cls(keras.saving.deserialize_keras_object(config["loss"]))

    return JaxentLoss
