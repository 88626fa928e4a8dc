"""The door of the linear head: what people call, and what they may ask for."""

import dataclasses
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxent import _checks
from jaxent._classes import class_indices, live
from jaxent.linear import chunked, inputs
from jaxent.losses import nll
from jaxent.reductions import WeightedSum, Weights, weighted_sum
from jaxent.stats import LogitStats


def linear_stats(
    hidden: Float[Array, "*batch features"],
    head: Float[Array, "features classes"],
    labels: Integer[Array, "*batch"],
    *,
    bias: Float[Array, " classes"] | None = None,
    where: Bool[Array, "*batch"] | None = None,
    logit_fn: Callable | None = None,
    classes_axis: int = -1,
    predictions: bool = False,
    chunk_size: int | None = None,
    axis_name: Hashable = None,
) -> LogitStats | tuple[LogitStats, Integer[Array, "*batch"]]:
    r"""The statistics of the logits ``hidden @ head``, which are never all in memory.

    Equal to ``softmax_stats(logit_fn(hidden @ head + bias), labels, where=where)``, a chunk of rows
    at a time. The derivative forms each chunk's logits once more (four matmuls for value and
    gradient), so that any loss, weight and transformation works on the result. For a training
    objective :func:`linear_cross_entropy` is faster.

    Args:
      hidden: features, float ``[..., D]``.
      head: ``[D, V]``, of the dtype of ``hidden``; ``[V, D]`` with ``classes_axis=0``.
      labels: class indices in ``[0, V)``, any integer dtype, ``[...]``.
      bias: added to the logits in float32, float ``[V]``.
      where: bool ``[...]``; False makes a row inert: its statistics are 0, and whatever its
        features and label hold adds exactly nothing to any value or gradient.
      logit_fn: logits to logits, float32 ``[n, V]`` of any n rows: a soft-cap, a temperature, a
        class ruled out by −inf, an adjustment by log-priors ``[V]``. May close over traced arrays;
        differentiable in them.
      classes_axis: the axis of ``head`` that holds the classes. 0 takes tied embeddings as they
        are, without a transposed copy.
      predictions: whether to return the largest class of each row too, from the same pass.
      chunk_size: the most rows, of all devices, whose logits may be in memory together; None
        chooses (see :func:`jaxent.linear.inputs.chunk_size`), for each device where axes are
        explicit.
      axis_name: inside ``shard_map``, the mesh axis over which the classes are split: ``head``,
        ``bias`` and whatever ``[V]`` enters ``logit_fn`` are this device's share, labels and
        predictions count over all shares. Under ``jit`` leave it out: sharded arrays are enough.

    Returns:
      :class:`~jaxent.LogitStats` of shape ``[...]``, float32 (float64 for float64 features); with
      ``predictions`` also int32 ``[...]`` (0 for an inert row).

    Raises:
      TypeError: wrong dtypes; ``head`` of another dtype than ``hidden``.
      ValueError: shapes that do not fit; nothing is broadcast.

    References:
      Chen et al., `Training Deep Nets with Sublinear Memory Cost
      <https://arxiv.org/abs/1604.06174>`_, 2016.

    Example:
      >>> from jaxent import focal
      >>> hidden, head = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[2.0, 0, 0], [0, 1.0, 0]])
      >>> s = linear_stats(hidden, head, jnp.array([0, 2]))  # logits [[2, 0, 0], [0, 2, 0]]
      >>> print(s.nll, focal(s, gamma=2.0))
      [0.2395 2.2395] [0.0109 1.7879]
    """
    call = _Call(hidden, head, labels, bias, where, logit_fn, classes_axis, chunk_size, axis_name)
    form = dataclasses.replace(call.form, predictions=bool(predictions))
    stats, largest = chunked.stats(form, call.hidden, call.shared, call.rows)
    stats = jax.tree.map(call.gather, stats)
    return (stats, call.gather(largest)) if predictions else stats


def linear_cross_entropy(
    hidden: Float[Array, "*batch features"],
    head: Float[Array, "features classes"],
    labels: Integer[Array, "*batch"],
    weights: Weights = None,
    *,
    loss: Callable[[LogitStats], Float[Array, " rows"]] = nll,
    bias: Float[Array, " classes"] | None = None,
    where: Bool[Array, "*batch"] | None = None,
    logit_fn: Callable | None = None,
    classes_axis: int = -1,
    predictions: bool = False,
    chunk_size: int | None = None,
    axis_name: Hashable = None,
) -> WeightedSum | tuple[WeightedSum, Integer[Array, "*batch"]]:
    r"""Σ w·loss over the logits ``hidden @ head``, which are never all in memory.

    Equal to ``weighted_sum(loss(linear_stats(hidden, head, labels, ...)), weights)``. The gradient
    is formed while a chunk's logits are there: three matmuls for value and gradient, two if the
    features or the head are not differentiated, one for the value alone. Forward mode and higher
    orders keep to chunks too.

    Args:
      hidden: features, float ``[..., D]``.
      head: ``[D, V]``, of the dtype of ``hidden``; ``[V, D]`` with ``classes_axis=0``.
      labels: class indices in ``[0, V)``, any integer dtype, ``[...]``. A label out of range makes
        the sum NaN, and the gradient of its row, unless its weight is 0.
      weights: real or bool ``[...]``, None is 1 each; differentiable. Class weights come from
        :func:`~jaxent.class_weights`; several kinds multiply.
      loss: of :class:`~jaxent.LogitStats` ``[n]``, one number a row: ``nll`` or any sum of losses.
        May close over traced values; differentiable in them.
      bias: added to the logits in float32, float ``[V]``.
      where: bool ``[...]``; a False row adds exactly nothing to any value, weight or gradient,
        whatever it holds.
      logit_fn: logits to logits, float32 ``[n, V]`` of any n rows; see :func:`linear_stats`.
      classes_axis: the axis of ``head`` that holds the classes; 0 for tied embeddings.
      predictions: whether to return the largest class of each row too, from the same pass.
      chunk_size: the most rows, of all devices, whose logits may be in memory together; None
        chooses (see :func:`jaxent.linear.inputs.chunk_size`), for each device where axes are
        explicit.
      axis_name: inside ``shard_map``, the mesh axis over which the classes are split: ``head``,
        ``bias`` and whatever ``[V]`` enters ``logit_fn`` are this device's share, labels and
        predictions count over all shares. Under ``jit`` leave it out: sharded arrays are enough.

    Returns:
      :class:`~jaxent.WeightedSum`, float32 (float64 for float64 features): its ``mean()`` is the
      loss. With ``predictions`` also int32 ``[...]`` (0 for an inert row).

    Raises:
      TypeError: wrong dtypes; ``head`` of another dtype than ``hidden``.
      ValueError: shapes that do not fit; nothing is broadcast.

    References:
      Malek, `efficient_cross_entropy <https://github.com/mgmalek/efficient_cross_entropy>`_, 2023;
      Hsu et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024.

    Example:
      >>> hidden, head = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[2.0, 0, 0], [0, 1.0, 0]])
      >>> labels, weights = jnp.array([0, 2]), jnp.array([3.0, 1.0])
      >>> part = linear_cross_entropy(hidden, head, labels, weights)
      >>> print(f"{part.mean():.4f} {part.weight}")  # (3 * 0.2395 + 2.2395) / 4
      0.7395 4.0
      >>> print(jax.grad(lambda w: linear_cross_entropy(hidden, w, labels).mean())(head))
      [[-0.1065  0.0533  0.0533]
       [ 0.1065  0.787  -0.8935]]
    """
    call = _Call(
        hidden, head, labels, bias, where, logit_fn, classes_axis, chunk_size, axis_name, weights
    )
    loss_fn, constants = call.closed("loss", loss)
    form = dataclasses.replace(call.form, loss=loss_fn, predictions=bool(predictions))
    shared = call.shared._replace(loss_constants=constants)
    total, largest = chunked.objective(form, call.hidden, shared, call.rows, call.weights)
    part = WeightedSum(total, call.weight.astype(total.dtype))
    return (part, call.gather(largest)) if predictions else part


class _Call:
    """Checked arguments, dealt into chunks."""

    def __init__(
        self,
        hidden,
        head,
        labels,
        bias,
        where,
        logit_fn,
        classes_axis,
        chunk_size,
        axis_name,
        weights=None,
    ):
        classes_axis = inputs.classes_axis(classes_axis)
        hidden = inputs.hidden(hidden)
        head = inputs.head(hidden, head, classes_axis)
        batch, num_classes = hidden.shape[:-1], head.shape[classes_axis]
        dtype = _checks.accumulator(hidden)
        bias = inputs.bias(num_classes, bias)
        logits = jax.ShapeDtypeStruct((*batch, num_classes), dtype)
        labels = _checks.labels(logits, labels)  # ty: ignore[invalid-argument-type]
        where = _checks.where(where, batch, "labels")
        num_classes *= _checks.class_shards("head", head, axis_name)
        weights, self.weight, where = _weights(weights, labels, where, num_classes, dtype)

        own_classes = head.shape[classes_axis]
        size = inputs.chunk_size(chunk_size, hidden.shape[-1], own_classes, hidden.dtype)
        shards = inputs.row_shards(hidden, len(batch))
        size *= shards if chunk_size is None else 1  # the default is that of one device
        chunks = inputs.num_chunks(labels.size, size, shards)
        deal, self.gather, added = inputs.dealer(batch, chunks)
        if added and where is None:
            where = jnp.ones(batch, bool)
        over = _checks.varying((hidden, labels, where, weights))
        hidden, weights = _checks.spread((hidden, weights), over)
        self.hidden = deal(live(where, hidden))
        self.rows = chunked.Rows(deal(labels), None if where is None else deal(where))
        self.weights = None if weights is None else deal(weights)
        self.shared = chunked.Shared(head, bias)
        self.form = chunked.Form(classes_axis, axis_name)
        if logit_fn is not None:
            logit_fn, constants = self.closed("logit_fn", logit_fn)
            self.shared = self.shared._replace(logit_constants=constants)
            self.form = dataclasses.replace(self.form, logit_fn=logit_fn)

    def closed(self, name: str, function: Callable):
        """``logit_fn`` or ``loss`` apart from what it closes over."""
        if not callable(function):
            raise TypeError(f"{name} must be a function; got {function!r}.")
        of = chunked.example_stats if name == "loss" else chunked.example_logits
        first = jax.tree.map(lambda x: x[0], (self.hidden, self.rows))
        examples = [of(self.form, *first, self.shared)]
        if inputs.is_halved(self.hidden):  # as a second derivative takes them
            half = jax.tree.map(lambda x: x[: x.shape[0] // 2], first)
            examples.append(of(self.form, *half, self.shared))
        if name == "loss":
            wanted, meaning = examples[0].nll.shape, "one loss a row"
        else:
            wanted, meaning = examples[0].shape, "logits of the shape it is given"
        closed, constants, results = chunked.Closed.of(function, *examples)
        inputs.result(name, results, wanted, meaning)
        return closed, constants


def _weights(weights, labels, where, num_classes, dtype):
    """The weights, their sum, and which rows exist."""
    if weights is None:
        return None, weighted_sum(jnp.zeros(labels.shape, dtype), where).weight, where
    zeros, weights = _checks.weights(jnp.zeros(labels.shape, dtype), weights)
    weights = live(where, jnp.asarray(weights))
    weight, weights = weighted_sum(zeros, weights).weight, weights.astype(dtype)
    # Padding is marked by a label out of range as often as by a mask; of weight 0 it is no fault.
    padding = (weights == 0) & (class_indices(labels, num_classes) < 0)
    where = ~padding if where is None else where & ~padding
    return weights, weight, where
