"""The cross-entropies of ``tf.nn``, by their names.

As there: labels come first, losses have the logits' dtype and no reduction; 16-bit logits are
computed in float32. What differs, because it is wrong there:

- Dense labels need not sum to 1: the gradient is Σ q · p − q. (There it is p − q whatever the row
  sums to, so that a row of zeros trains.)
- ``weighted_cross_entropy_with_logits`` has the right gradient at a logit of 0, and raises for a
  negative ``pos_weight``.
- A class ruled out by a logit of −inf adds nothing where its label is 0, and ±inf logits of a
  sigmoid have their limits (NaN there).
- Confident examples keep their tiny loss and gradient.
- Labels may have any integer or floating dtype; integer labels of bfloat16 logits lose nothing.

A label out of range raises where it can be seen (there: on CPU, when the op runs), and makes its
row's loss and gradient NaN under ``jit`` (there: on GPU and under XLA).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent import losses as _losses
from jaxent import reductions as _reductions
from jaxent import sampled as _sampled
from jaxent import sigmoid as _sigmoid
from jaxent import soft as _soft
from jaxent.compat._arrays import classes_last, one_axis, stretch
from jaxent.compat._names import only as _only
from jaxent.compat.tensorflow.random import (
    _true_classes,
    all_candidate_sampler,
    fixed_unigram_candidate_sampler,
    learned_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    uniform_candidate_sampler,
)

__all__ = [
    "all_candidate_sampler",
    "compute_average_loss",
    "fixed_unigram_candidate_sampler",
    "learned_unigram_candidate_sampler",
    "log_uniform_candidate_sampler",
    "nce_loss",
    "sampled_softmax_loss",
    "sigmoid_cross_entropy_with_logits",
    "softmax_cross_entropy_with_logits",
    "sparse_softmax_cross_entropy_with_logits",
    "uniform_candidate_sampler",
    "weighted_cross_entropy_with_logits",
]
__getattr__ = _only(__name__, "tf.nn")


_OF_INDICES = "sparse_softmax_cross_entropy_with_logits(labels, logits)"


def softmax_cross_entropy_with_logits(
    labels: ArrayLike, logits: ArrayLike, axis: int | None = -1, name: str | None = None
) -> jax.Array:
    """``tf.nn.softmax_cross_entropy_with_logits``: dense labels. Gradients flow into them too.

    Args:
      labels: non-negative, real; broadcasts to the logits.
      logits: float, any rank.
      axis: the class axis, one integer; None is the last.
      name: ignored.

    Returns:
      losses, the logits' shape without ``axis``, in their dtype.

    Raises:
      TypeError: logits not floating-point, labels not real.
      ValueError: labels do not broadcast to the logits; ``axis`` out of bounds, or not one.

    Example:
      >>> labels, logits = jnp.array([[0.0, 0.8, 0.2]]), jnp.array([[4.0, 2.0, 1.0]])
      >>> print(softmax_cross_entropy_with_logits(labels=labels, logits=logits))
      [2.3698]
    """
    x = _checks.scores("logits", logits, "(labels, logits)")
    q = stretch("labels", _checks.array("labels", labels), x.shape)
    axis = one_axis(-1 if axis is None else axis, x.ndim)
    return _soft.soft_cross_entropy(classes_last(x, axis), classes_last(q, axis)).astype(x.dtype)


def sparse_softmax_cross_entropy_with_logits(
    labels: ArrayLike, logits: ArrayLike, name: str | None = None
) -> jax.Array:
    """``tf.nn.sparse_softmax_cross_entropy_with_logits``: integer labels.

    Args:
      labels: class indices, any integer dtype, the logits' shape without the last axis.
      logits: float ``[..., num_classes]``.
      name: ignored.

    Returns:
      losses, the labels' shape, in the logits' dtype.

    Raises:
      TypeError: logits not floating-point, labels not integer.
      ValueError: shapes do not fit; a label out of range, where it can be seen.

    Example:
      >>> logits = jnp.array([[2.0, -5.0, 0.5], [0.0, 0.0, 1.9]])
      >>> print(sparse_softmax_cross_entropy_with_logits(labels=jnp.array([0, 2]), logits=logits))
      [0.2022 0.2617]
    """
    x = _checks.logits(_checks.scores("logits", logits, "(labels, logits)"))
    y = _checks.indices("labels", labels)
    loss = _losses.cross_entropy(x, y)
    if fault := _checks.label_fault(y, x.shape[-1], padding=""):
        raise ValueError(fault)
    return loss.astype(x.dtype)


def sigmoid_cross_entropy_with_logits(
    labels: ArrayLike | None = None, logits: ArrayLike | None = None, name: str | None = None
) -> jax.Array:
    """``tf.nn.sigmoid_cross_entropy_with_logits``: independent classes, elementwise, no sum.

    Args:
      labels: in [0, 1], the logits' shape.
      logits: float, any shape.
      name: ignored.

    Returns:
      losses, the logits' shape and dtype.

    Raises:
      TypeError: logits not floating-point, labels not real.
      ValueError: shapes differ, or one of them is None.

    Example:
      >>> logits = jnp.array([1.0, -1.0, 0.0])
      >>> print(sigmoid_cross_entropy_with_logits(labels=jnp.array([0.0, 0.0, 1.0]), logits=logits))
      [1.3133 0.3133 0.6931]
    """
    if labels is None or logits is None:
        raise ValueError("labels and logits must both be given.")
    x = _checks.scores("logits", logits, "(labels, logits)")
    z = _checks.targets(x, labels, "labels", _OF_INDICES)
    return _sigmoid.sigmoid_cross_entropy(x, z).astype(x.dtype)


def weighted_cross_entropy_with_logits(
    labels: ArrayLike, logits: ArrayLike, pos_weight: ArrayLike, name: str | None = None
) -> jax.Array:
    """``tf.nn.weighted_cross_entropy_with_logits``: the sigmoid's, with a weight of the positives.

    Not a softmax, and its weight is not a class weight: those are
    ``sparse_softmax_cross_entropy(labels, logits, weights=class_weights[labels])`` of ``losses``.

    Args:
      labels: in [0, 1], the logits' shape.
      logits: float, any shape.
      pos_weight: ≥ 0; broadcasts to the logits.
      name: ignored.

    Returns:
      losses, the logits' shape and dtype.

    Raises:
      TypeError: logits not floating-point, labels or weight not real.
      ValueError: shapes do not fit; ``pos_weight`` negative.

    Example:
      >>> x, z = jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0])
      >>> print(weighted_cross_entropy_with_logits(labels=z, logits=x, pos_weight=3.0))
      [2.0794 0.6931]
    """
    x = _checks.scores("logits", logits, "(labels, logits)")
    z = _checks.targets(x, labels, "labels", _OF_INDICES)
    if jnp.ndim(pos_weight):
        pos_weight = stretch("pos_weight", _checks.numbers("pos_weight", pos_weight), x.shape)
    return _sigmoid.sigmoid_cross_entropy(x, z, pos_weight=pos_weight).astype(x.dtype)


def compute_average_loss(
    per_example_loss: ArrayLike,
    sample_weight: ArrayLike | None = None,
    global_batch_size: ArrayLike | None = None,
) -> jax.Array:
    """``tf.nn.compute_average_loss``: Σ w · loss / global batch size, whatever the weights.

    Args:
      per_example_loss: float ``[batch, ...]``.
      sample_weight: real; broadcasts to the losses, before or after a last axis of 1 is added to
        it or dropped.
      global_batch_size: the number of examples over all devices, an integer ≥ 0; None is the number
        of those here, ``batch``.

    Returns:
      a scalar in the losses' dtype; 0 where it would divide by 0.

    Raises:
      TypeError: losses not floating-point, weights not real, a batch size that is no integer.
      ValueError: losses without an axis, weights that do not fit, a negative batch size.

    Example:
      >>> loss, w = jnp.array([1.0, 3.0]), jnp.array([2.0, 0.0])
      >>> print(compute_average_loss(loss, w), compute_average_loss(loss, global_batch_size=8))
      1.0 0.5
    """
    loss = _checks.floats("per_example_loss", per_example_loss)
    if not loss.ndim:
        raise ValueError("per_example_loss must have an axis of examples; got a scalar.")
    w = None
    if sample_weight is not None:
        w = _checks.array("sample_weight", sample_weight)
        if w.ndim == loss.ndim + 1 and w.shape[-1] == 1:
            w = w[..., 0]
        elif w.ndim and w.ndim == loss.ndim - 1:
            w = w[..., None]
        w = stretch("sample_weight", w, loss.shape)
    total = _reductions.weighted_sum(loss, w).total
    size = loss.shape[0] if global_batch_size is None else global_batch_size
    if not jnp.issubdtype(jnp.result_type(size), jnp.integer):
        raise TypeError(f"global_batch_size must be an integer; got {size}.")
    most = float(jnp.finfo(total.dtype).max)
    size = _checks.option("global_batch_size", size, 0, most, total.dtype)
    return _reductions.WeightedSum(total, size).mean().astype(loss.dtype)


# --- sampled losses -----------------------------------------------------------------------------


def sampled_softmax_loss(
    weights: ArrayLike | Sequence[ArrayLike],
    biases: ArrayLike | Sequence[ArrayLike],
    labels: ArrayLike,
    inputs: ArrayLike,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: _sampled.Samples | tuple | None = None,
    remove_accidental_hits: bool = True,
    seed: None = None,
    name: str | None = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """``tf.nn.sampled_softmax_loss``: softmax over the labels and a sample. For training only.

    Differentiating with respect to ``weights`` gives a gradient as large as they are; for one of
    the gathered rows alone use :func:`jaxent.sampled.gather_rows`.

    Args:
      weights: ``[num_classes, dim]``, or a list of contiguous shards of it.
      biases: ``[num_classes]``, or a list of shards.
      labels: class indices ``[batch, num_true]``.
      inputs: float ``[batch, dim]``.
      num_sampled: how many classes to sample; a Python integer.
      num_classes: how many there are.
      num_true: how many labels each example has.
      sampled_values: ``(ids, true_expected_count, sampled_expected_count)`` of a sampler; None
        samples with :func:`log_uniform_candidate_sampler`, without replacement.
      remove_accidental_hits: leave out sampled classes that are labels of the same example.
      seed: None; there is no hidden state to seed. Give ``key``.
      name: ignored.
      key: a key of ``jax.random``, a new one each step, where ``sampled_values`` is None.

    Returns:
      losses ``[batch]``, in the inputs' dtype.

    Raises:
      TypeError: neither ``sampled_values`` nor ``key``, or a ``seed``; wrong dtypes.
      ValueError: shapes do not fit; a label out of range, where it can be seen.

    Example:
      >>> table, labels = jnp.eye(8), jnp.array([[1], [2]])
      >>> print(sampled_softmax_loss(table, jnp.zeros(8), labels, 9 * table[:2], 8, 8,
      ...                            sampled_values=all_candidate_sampler(labels, 1, 8, True)))
      [9.0009 9.0009]
    """
    arguments = _arguments(
        weights,
        biases,
        labels,
        inputs,
        num_sampled,
        num_classes,
        num_true,
        sampled_values,
        seed,
        key,
    )
    s = _sampled.sampled_softmax_stats(*arguments, remove_accidental_hits=remove_accidental_hits)
    return jnp.mean(_losses.nll(s), -1).astype(jnp.result_type(inputs))


def nce_loss(
    weights: ArrayLike | Sequence[ArrayLike],
    biases: ArrayLike | Sequence[ArrayLike],
    labels: ArrayLike,
    inputs: ArrayLike,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: _sampled.Samples | tuple | None = None,
    remove_accidental_hits: bool = False,
    name: str | None = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """``tf.nn.nce_loss``: noise-contrastive estimation, sigmoids of the labels and a sample.

    Args:
      weights: as of :func:`sampled_softmax_loss`, and so all that follow.
      biases: ``[num_classes]``.
      labels: class indices ``[batch, num_true]``; each has the target 1 / num_true.
      inputs: float ``[batch, dim]``.
      num_sampled: how many classes to sample.
      num_classes: how many there are.
      num_true: how many labels each example has.
      sampled_values: of a sampler, or None.
      remove_accidental_hits: leave out sampled classes that are labels of the same example.
      name: ignored.
      key: a key of ``jax.random``, where ``sampled_values`` is None.

    Returns:
      losses ``[batch]``, in the inputs' dtype.

    Raises:
      TypeError, ValueError: as :func:`sampled_softmax_loss`.

    Example:
      >>> values = (jnp.array([1, 2]), jnp.array([[0.5]]), jnp.array([0.5, 0.5]))
      >>> print(nce_loss(jnp.zeros([3, 4]), jnp.zeros(3), jnp.array([[0]]), jnp.ones([1, 4]), 2, 3,
      ...                sampled_values=values))  # log(1 + 1/2) + 2 log(1 + 2)
      [2.6027]
    """
    arguments = _arguments(
        weights,
        biases,
        labels,
        inputs,
        num_sampled,
        num_classes,
        num_true,
        sampled_values,
        None,
        key,
    )
    loss = _sampled.nce_loss(*arguments, remove_accidental_hits=remove_accidental_hits)
    return loss.astype(jnp.result_type(inputs))


def _arguments(
    weights, biases, labels, inputs, num_sampled, num_classes, num_true, values, seed, key
):
    table, bias = (jnp.concatenate(x) if isinstance(x, list) else x for x in (weights, biases))
    table, bias, x = (
        _checks.floats("weights", table),
        _checks.floats("biases", bias),
        _checks.floats("inputs", inputs),
    )
    y = _true_classes("labels", labels, num_true, num_classes)
    if table.shape[:1] != (num_classes,):
        raise ValueError(
            f"weights must have {num_classes} rows, one a class; got {_checks.describe(table)}."
        )
    if values is None:
        values = log_uniform_candidate_sampler(
            y, num_true, num_sampled, True, num_classes, seed, key=key
        )
    samples = _sampled.Samples(*values)
    if jnp.shape(samples.ids) != (num_sampled,):
        raise ValueError(
            f"sampled_values must hold {num_sampled} ids; got {jnp.shape(samples.ids)}."
        )
    rows = _sampled.gather_rows(table.astype(x.dtype), y, samples, bias=bias.astype(x.dtype))
    return x, y, samples, rows
