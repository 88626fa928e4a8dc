"""The functions of ``torch.nn.functional``."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, linear, losses, probabilities, sigmoid, soft, stats
from jaxent._numerics import times
from jaxent.compat._arrays import broadcast_shape, is_zero, smooth, stretch, wider
from jaxent.reductions import WeightedSum
from jaxent.weights import class_weights


def cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    r"""``F.cross_entropy``: logits against class indices or probabilities.

    With ``weight`` w and ``label_smoothing`` ε, a class index y costs

    .. math::
        (1 - \varepsilon)\, w_y (-\log p_y) + \frac{\varepsilon}{C} \sum_c w_c (-\log p_c)

    and probabilities q cost :math:`-\sum_c w_c ((1 - \varepsilon) q_c + \varepsilon/C) \log p_c`.

    Args:
      input: logits, float ``[C]``, ``[N, C]`` or ``[N, C, ...]``.
      target: class indices, of the input's shape without C; or probabilities, float, of its shape.
      weight: real ``[C]``.
      size_average: with ``reduce``, the old form of ``reduction``.
      ignore_index: class indices of this value are left out.
      reduce: see ``size_average``.
      reduction: "mean", "sum" or "none".
      label_smoothing: ε in [0, 1].

    Returns:
      a scalar, or with "none" losses of the input's shape without C.

    Raises:
      TypeError: input not floating-point, indices not integer, probabilities not floating-point.
      ValueError: shapes do not fit, an unknown ``reduction``, ε outside [0, 1].
      IndexError: a class index out of range, where it can be seen.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]))
      >>> table = jnp.array([1.0, 3.0, 1.0])
      >>> print(f"{cross_entropy(logits, jnp.array([0, 2]), table):.4f}")  # (log 2 + log 4) / 2
      1.0397
      >>> print(f"{cross_entropy(logits, jnp.array([0, -100]), table):.4f}")  # log 2
      0.6931
    """
    reduction = _reduction(reduction, size_average, reduce)
    x, y = _classes_last(_checks.floats("input", input)), _checks.array("target", target)
    table = _table(weight, x)
    if y.shape == jnp.shape(input):
        loss, dtype = _of_probabilities(x, _classes_last(y), table, ignore_index, label_smoothing)
        return _reduce(loss, loss.size, reduction, dtype)
    y, keep = _indices(x, target, y.shape, ignore_index)
    s = stats.softmax_stats(x, y, where=keep)
    if table is None:
        plain = is_zero(label_smoothing)
        loss = losses.nll(s) if plain else losses.smoothed_nll(s, label_smoothing=label_smoothing)
        return _reduce(loss, jnp.sum(keep, dtype=jnp.int32), reduction, x.dtype)
    w = class_weights(y, table, where=keep)
    loss = times(w, losses.nll(s))
    if not is_zero(label_smoothing):
        epsilon = _checks.option("label_smoothing", label_smoothing, 0, 1, loss.dtype)
        uniform = soft.soft_cross_entropy(x, stretch("weight", table, x.shape), where=keep)
        loss = times(1 - epsilon, loss) + times(epsilon / x.shape[-1], uniform)
    return _reduce(loss, jnp.sum(w), reduction, x.dtype)


def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    options: int | None = None,
) -> jax.Array:
    """``F.linear_cross_entropy``: :func:`cross_entropy` of ``input @ linear_weight.T``.

    For class indices the logits are never all in memory, nor in any derivative of any order (which
    are silently 0 there, with ``options``); all of them are formed for probabilities, for a weight
    with more axes, and for class weights with smoothing.

    Args:
      input: features, float ``[D]`` or ``[N, D]``.
      linear_weight: ``[C, D]`` or ``[C, ..., D]``, of the input's dtype.
      target: class indices or probabilities, as of :func:`cross_entropy`.
      linear_bias: float, ``linear_weight`` without D.
      weight: real ``[C]``.
      reduction: "mean", "sum" or "none".
      ignore_index: class indices of this value are left out; None is −100.
      label_smoothing: ε in [0, 1].
      options: the most rows whose logits may be in memory together; None chooses.

    Returns:
      a scalar, or with "none" losses; in the input's dtype.

    Raises:
      TypeError, ValueError, IndexError: as :func:`cross_entropy`; shapes that do not fit.

    Example:
      >>> head = jnp.log(jnp.array([[0.5], [0.25], [0.25]]))
      >>> print(linear_cross_entropy(jnp.ones((2, 1)), head, jnp.array([0, 1]), reduction="none"))
      [0.6931 1.3863]
    """
    x, head = _checks.floats("input", input), _checks.floats("linear_weight", linear_weight)
    bias = None if linear_bias is None else _checks.floats("linear_bias", linear_bias)
    _fits(x, head, bias)
    logits_shape = (*x.shape[:-1], *head.shape[:-1])
    probable = jnp.shape(target) == logits_shape
    if probable and ignore_index is not None:
        raise ValueError("ignore_index is for class indices; target holds probabilities.")
    ignore_index = -100 if ignore_index is None else ignore_index
    if probable or head.ndim > 2 or not (weight is None or is_zero(label_smoothing)):
        logits = jnp.tensordot(x, head, (-1, -1)).astype(x.dtype)
        if bias is not None:
            logits += jnp.broadcast_to(bias.astype(x.dtype), logits_shape)
        return cross_entropy(
            logits, target, weight, None, ignore_index, None, reduction, label_smoothing
        )
    reduction = _reduction(reduction, None, None)
    like = jax.ShapeDtypeStruct(logits_shape, x.dtype)
    y, keep = _indices(like, target, jnp.shape(target), ignore_index)
    w = None if weight is None else class_weights(y, _table(weight, like), where=keep)

    def loss(s):
        smoothed = not is_zero(label_smoothing)
        return losses.smoothed_nll(s, label_smoothing=label_smoothing) if smoothed else s.nll

    places: dict[str, Any] = {"bias": bias, "where": keep, "classes_axis": 0, "chunk_size": options}
    if reduction == "none":
        each = loss(linear.linear_stats(x, head, y, **places))
        return (each if w is None else times(w, each)).astype(x.dtype)
    part: Any = linear.linear_cross_entropy(x, head, y, w, loss=loss, **places)
    return (part.total if reduction == "sum" else part.mean(jnp.nan)).astype(x.dtype)


def nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """``F.nll_loss``: log-probabilities, taken as they are, against class indices.

    Args:
      input: log-probabilities, float ``[C]``, ``[N, C]`` or ``[N, C, ...]``.
      target: class indices, of the input's shape without C.
      weight: real ``[C]``.
      size_average: as of :func:`cross_entropy`.
      ignore_index: class indices of this value are left out.
      reduce: as of :func:`cross_entropy`.
      reduction: "mean", "sum" or "none".

    Returns:
      a scalar, or with "none" losses of the input's shape without C.

    Raises:
      TypeError, ValueError, IndexError: as :func:`cross_entropy`.

    Example:
      >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
      >>> print(nll_loss(log_probs, jnp.array([0, 0]), reduction="none"))
      [0.6931 1.3863]
    """
    reduction = _reduction(reduction, size_average, reduce)
    x = _classes_last(_checks.floats("input", input))
    table = _table(weight, x)
    y, keep = _indices(x, target, jnp.shape(target), ignore_index)
    loss = losses.nll(probabilities.log_prob_stats(x, y, where=keep))
    if table is None:
        return _reduce(loss, jnp.sum(keep, dtype=jnp.int32), reduction, x.dtype)
    w = class_weights(y, table, where=keep)
    return _reduce(times(w, loss), jnp.sum(w), reduction, x.dtype)


def binary_cross_entropy_with_logits(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: ArrayLike | None = None,
) -> jax.Array:
    """``F.binary_cross_entropy_with_logits``: independent classes.

    Args:
      input: logits, float, any shape.
      target: in [0, 1], float, the same shape.
      weight: real; broadcasts to the input, from the right: weights of the examples of ``[N, C]``
        logits are ``[N, 1]``.
      size_average: as of :func:`cross_entropy`.
      reduce: as of :func:`cross_entropy`.
      reduction: "mean" (over all elements), "sum" or "none".
      pos_weight: real, ≥ 0; factor of the positive term, broadcasts to the input.

    Returns:
      a scalar, or with "none" losses of the input's shape.

    Raises:
      TypeError: input or target not floating-point.
      ValueError: shapes do not fit, an unknown ``reduction``, ``pos_weight`` negative.

    Example:
      >>> x, z = jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0])
      >>> print(binary_cross_entropy_with_logits(x, z, pos_weight=3.0, reduction="none"))
      [2.0794 0.6931]
    """
    reduction = _reduction(reduction, size_average, reduce)
    x, z = _checks.floats("input", input), _checks.floats("target", target)
    if z.shape != x.shape:
        raise _checks.shape_error("target", z, x.shape, "input")
    positive = 1.0 if pos_weight is None else pos_weight
    if jnp.ndim(positive):
        positive = stretch("pos_weight", _checks.numbers("pos_weight", positive), x.shape)
    loss = sigmoid.sigmoid_cross_entropy(x, z.astype(x.dtype), pos_weight=positive)
    return _reduce(_weighed(loss, weight), loss.size, reduction, wider(x, z))


def binary_cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """``F.binary_cross_entropy``: independent probabilities; no logarithm stops at −100.

    Logits lose nothing on the way: :func:`binary_cross_entropy_with_logits`.

    Args:
      input: in [0, 1], float, any shape; outside it is NaN under ``jit``, where it cannot raise.
      target: in [0, 1], of the input's shape and dtype.
      weight: real; broadcasts to the input, from the right.
      size_average: as of :func:`cross_entropy`.
      reduce: as of :func:`cross_entropy`.
      reduction: "mean" (over all elements), "sum" or "none".

    Returns:
      a scalar, or with "none" losses of the input's shape.

    Raises:
      TypeError: input or target not floating-point, or of two dtypes.
      ValueError: shapes do not fit, an unknown ``reduction``; an element outside [0, 1], where it
        can be seen.

    Example:
      >>> p, z = jnp.array([0.5, 0.25, 0.0]), jnp.array([1.0, 0.0, 0.0])
      >>> print(binary_cross_entropy(p, z, reduction="none"))
      [0.6931 0.2877 0.    ]
    """
    reduction = _reduction(reduction, size_average, reduce)
    p, z = _checks.floats("input", input), _checks.floats("target", target)
    if z.shape != p.shape:
        raise _checks.shape_error("target", z, p.shape, "input")
    if z.dtype != p.dtype:
        raise TypeError(f"target must have the input's dtype, {p.dtype}; got {z.dtype}.")
    for name, x in (("input", p), ("target", z)):
        values = _checks.known(x)
        if values is not None and not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"all elements of {name} should be between 0 and 1.")
    loss = probabilities.binary_prob_cross_entropy(p, z)
    return _reduce(_weighed(loss, weight), loss.size, reduction, p.dtype)


def multilabel_soft_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """``F.multilabel_soft_margin_loss``: independent classes, their mean one loss an example.

    Args:
      input: logits, float ``[..., C]``.
      target: in [0, 1], real; broadcasts to the input.
      weight: real; broadcasts to the input, ``[C]`` for weights of classes.
      size_average: as of :func:`cross_entropy`.
      reduce: as of :func:`cross_entropy`.
      reduction: "mean", "sum" or "none".

    Returns:
      a scalar, or with "none" losses ``[...]``.

    Raises:
      TypeError: input not floating-point, target not real.
      ValueError: shapes do not fit, an unknown ``reduction``.

    Example:
      >>> x, z = jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])
      >>> print(multilabel_soft_margin_loss(x, z, weight=jnp.array([1.0, 3.0])))  # 4 log(2) / 2
      1.3862944
    """
    reduction = _reduction(reduction, size_average, reduce)
    x, z = _checks.floats("input", input), _checks.array("target", target)
    each = sigmoid.sigmoid_cross_entropy(x, stretch("target", z, x.shape))
    loss = jnp.mean(_weighed(each, weight), -1)
    return _reduce(loss, loss.size, reduction, wider(x, z))


def soft_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """``F.soft_margin_loss``: two classes, −1 and 1, of one logit each: log(1 + e^(−y·x)).

    Args:
      input: logits, float, any shape.
      target: −1 or 1, real; broadcasts to the input.
      size_average: as of :func:`cross_entropy`.
      reduce: as of :func:`cross_entropy`.
      reduction: "mean" (over all elements), "sum" or "none".

    Returns:
      a scalar, or with "none" losses of the input's shape; in its dtype.

    Raises:
      TypeError: input not floating-point, target not real.
      ValueError: shapes do not fit, an unknown ``reduction``.

    Example:
      >>> print(soft_margin_loss(jnp.array([0.0, -2.0]), jnp.array([1, -1]), reduction="none"))
      [0.6931 0.1269]
    """
    reduction = _reduction(reduction, size_average, reduce)
    x, y = _checks.floats("input", input), _checks.numbers("target", target)
    dtype = _checks.accumulator(x)
    margin = times(stretch("target", y, x.shape).astype(dtype), x.astype(dtype))
    loss = sigmoid.sigmoid_cross_entropy(margin, jnp.ones_like(margin))
    return _reduce(loss, loss.size, reduction, x.dtype)


def kl_div(
    input: ArrayLike,
    target: ArrayLike,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> jax.Array:
    """``F.kl_div``: from ``target`` to log-probabilities, pointwise.

    ``reduction="batchmean"`` is the divergence; "mean" also divides by the number of classes.

    Args:
      input: log-probabilities, float, taken as they are.
      target: probabilities, or their logarithms with ``log_target``, float; broadcast.
      size_average: as of :func:`cross_entropy`.
      reduce: as of :func:`cross_entropy`.
      reduction: "mean", "sum", "none", or "batchmean": the sum over the input's first dimension.
      log_target: whether ``target`` holds logarithms.

    Returns:
      a scalar, or with "none" the terms, in the shape both broadcast to.

    Raises:
      TypeError: one of them not floating-point.
      ValueError: shapes do not broadcast, an unknown ``reduction``.

    Example:
      >>> p, q = jnp.array([[0.25, 0.25, 0.5]]), jnp.array([[0.0, 0.5, 0.5]])
      >>> print(f"{kl_div(jnp.log(p), q, reduction='batchmean'):.4f}")  # log(2) / 2
      0.3466
    """
    reduction = _reduction(reduction, size_average, reduce, "batchmean")
    x, q = _checks.floats("input", input), _checks.floats("target", target)
    shape = broadcast_shape(input=x, target=q)
    divergence = probabilities.pointwise_kl_of_logs if log_target else probabilities.pointwise_kl
    terms = divergence(stretch("input", x, shape), stretch("target", q, shape))
    examples = x.shape[0] if x.ndim else 1
    return _reduce(
        terms, examples if reduction == "batchmean" else terms.size, reduction, wider(x, q)
    )


def _of_probabilities(x, q, table, ignore_index, label_smoothing):
    """Losses of probabilities, and the dtype of the result."""
    q = _checks.floats("target", q)
    ignored = _checks.known(ignore_index)
    if ignored is None or ignored >= 0:
        raise ValueError("ignore_index is for class indices; target holds probabilities.")
    dtype, row = wider(x, q), q.astype(wider(x, q, jnp.zeros((), _checks.accumulator(x))))
    row = smooth(row, label_smoothing, 1 / max(x.shape[-1], 1))
    if table is not None:
        row = times(stretch("weight", table.astype(row.dtype), row.shape), row)
    return soft.soft_cross_entropy(x.astype(row.dtype), row), dtype


# --- weights and reductions ---------------------------------------------------------------------


def _weighed(loss, weight):
    if weight is None:
        return loss
    weight = stretch("weight", _checks.numbers("weight", weight), loss.shape)
    return times(weight.astype(loss.dtype), loss)


def _reduction(reduction, size_average, reduce, *more) -> str:
    if size_average is not None or reduce is not None:
        mean = size_average is None or size_average
        reduction = "none" if reduce is not None and not reduce else "mean" if mean else "sum"
    if reduction not in ("none", "mean", "sum", *more):
        raise ValueError(f"{reduction!r} is not a valid value for reduction.")
    return reduction


def _reduce(loss, denominator, reduction, dtype):
    if reduction == "none":
        return loss.astype(dtype)
    total = jnp.sum(loss)
    if reduction == "sum":
        return total.astype(dtype)
    return (
        WeightedSum(total, jnp.asarray(denominator).astype(total.dtype)).mean(jnp.nan).astype(dtype)
    )


# --- arguments ----------------------------------------------------------------------------------


def _classes_last(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 1, -1) if x.ndim > 1 else x


def _fits(x, head, bias):
    if x.ndim not in (1, 2) or head.ndim < 2 or x.shape[-1] != head.shape[-1]:
        raise ValueError(
            "input must be [D] or [N, D], and linear_weight [C, D] or [C, ..., D]; got "
            f"{_checks.describe(x)} and {_checks.describe(head)}."
        )
    if x.ndim == 1 and head.ndim > 2:
        raise ValueError("linear_weight of more than two axes needs input [N, D]; got [D].")
    if bias is not None and bias.shape != head.shape[:-1]:
        raise _checks.shape_error("linear_bias", bias, head.shape[:-1], "linear_weight without D")


def _table(weight, x):
    if weight is None:
        return None
    table = _checks.numbers("weight", weight).astype(_checks.accumulator(x))
    if table.shape != x.shape[-1:]:
        raise ValueError(
            f"weight must have one entry a class, {list(x.shape[-1:])}; got "
            f"{_checks.describe(table)}."
        )
    return table


def _indices(x, target, shape, ignore_index):
    """Class indices, and which of them are not ignored."""
    single = x.ndim == 1 and shape == (1,)
    if shape[:1] != x.shape[:-1][:1] and not single:
        raise ValueError(
            "Expected input batch_size to match target batch_size: target must have the shape of "
            f"input without its class dimension, {list(x.shape[:-1])}; got {list(shape)}."
        )
    y = _checks.indices("target", target)
    y = y[0] if single else y
    if y.shape != x.shape[:-1]:
        swapped = x.ndim > 2 and y.shape == (x.shape[0], x.shape[-1], *x.shape[1:-2])
        cure = "Classes are on axis 1: jnp.moveaxis(input, -1, 1)." if swapped else ""
        like = "input without its class dimension"
        raise _checks.shape_error("target", y, x.shape[:-1], like, cure)
    with jax.numpy_dtype_promotion("standard"):  # −100 is no uint8, and must not become one
        keep = y != _checks.indices("ignore_index", ignore_index)
    if fault := _checks.label_fault(y, x.shape[-1], keep, "target", "ignore_index={}"):
        raise IndexError(fault)
    return y, keep
