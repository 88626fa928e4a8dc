"""Costs of (true class, predicted class): what a mistake costs depends on which mistake it is."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Real

from jaxent import _checks
from jaxent._classes import class_indices, class_sum, is_class, live, of_rows
from jaxent._numerics import times
from jaxent.stats import exponential_of, largest_class_stats, probabilities
from jaxent.weights import lookup

_SymbolicZero = jax.custom_derivatives.SymbolicZero


def expected_cost(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    cost_matrix: Real[Array, "classes classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""The expected cost of predicting from the softmax: :math:`\sum_j M_{yj}\, p_j`.

    Row = true class, column = predicted class. With M = 1 − I it is the probability of a mistake;
    add it to the cross-entropy to keep a strong gradient far from the goal.

    Args:
      logits: unnormalised log-probabilities, float ``[..., num_classes]``.
      labels: true classes in ``[0, num_classes)``, any integer dtype, ``[...]``.
      cost_matrix: M, real ``[num_classes, num_classes]``. Differentiable.
      where: bool ``[...]``; a False example has cost 0 and no gradient, whatever it holds.

    Returns:
      costs ``[...]`` in the units of M, float32 (float64 for float64 logits); NaN, with a NaN
      gradient, where a label is out of range.

    Raises:
      TypeError: logits not floating-point, labels not integer, ``where`` not bool.
      ValueError: shapes do not fit.

    References:
      Elkan, *The Foundations of Cost-Sensitive Learning*, 2001.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
      >>> cost = jnp.array([[0.0, 1.0, 10.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
      >>> print(expected_cost(logits, jnp.array([0]), cost))  # 0.3 + 10 * 0.2
      [2.3]
    """
    logits = _checks.logits(logits)
    labels = _checks.labels(logits, labels)
    costs = _cost_matrix(cost_matrix, logits.shape[-1])
    where = _checks.where(where, labels.shape, "labels")
    cost = of_rows(lambda x, y, where: _expected_cost(x, y, costs, where))
    return cost(logits, labels, where)


def cost_weights(
    labels: Integer[Array, "*batch"],
    predictions: Integer[Array, "*batch"],
    cost_matrix: Real[Array, "classes classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Weights by true and predicted class, :math:`M_{y\hat y}`, for any loss.

    ``predictions`` are decisions, usually ``jnp.argmax(logits, -1)``: no gradient passes through
    them. A correct prediction weighs the diagonal: with a diagonal of 0 it is no longer trained on.

    Args:
      labels: true classes in ``[0, num_classes)``, any integer dtype, ``[...]``.
      predictions: predicted classes, the same.
      cost_matrix: M, real ``[num_classes, num_classes]``.
      where: bool ``[...]``; a False example has weight 0, whatever it holds.

    Returns:
      weights ``[...]`` in the matrix' dtype; NaN where a class is out of range.

    Raises:
      TypeError: labels or predictions not integer, ``where`` not bool.
      ValueError: shapes do not fit.

    Example:
      >>> cost = jnp.array([[1.0, 2.0], [5.0, 1.0]])  # missing class 1 costs 5
      >>> print(cost_weights(jnp.array([0, 0, 1]), jnp.array([0, 1, 0]), cost))
      [1. 2. 5.]
    """
    costs = _cost_matrix(cost_matrix, None)
    num_classes = costs.shape[0]
    labels = _checks.indices("labels", labels)
    predictions = _checks.predictions(labels, predictions)
    where = _checks.where(where, labels.shape, "labels")
    true = class_indices(live(where, labels), num_classes)
    predicted = class_indices(live(where, predictions), num_classes)
    pair = jnp.where((true < 0) | (predicted < 0), -1, true * num_classes + predicted)
    return live(where, lookup(costs.reshape(-1), pair))


def _cost_matrix(value, num_classes):
    costs = _checks.array("cost_matrix", value)
    if costs.ndim != 2:
        raise ValueError(
            "cost_matrix must have shape [num_classes, num_classes], row = true class; "
            f"got {_checks.describe(costs)}."
        )
    return _checks.table(num_classes or costs.shape[0], costs, "cost_matrix")


# L = Σ_j M_j p_j with M_j = M[y, j]. As dp_j = p_j (dx_j − Σ_k p_k dx_k),
#     dL = Σ_j p_j (M_j − L) dx_j,
# in which M_j − L cancels where the largest class a has p_a near 1. With D = M_a − L formed as
# Σ_k (M_a − M_k) p_k, and as Σ_j p_j (M_j − L) = 0 lets dx_a be subtracted from every dx_j,
#     dL = Σ_{j≠a} p_j ((M_j − M_a) + D) (dx_j − dx_a).


@jax.custom_jvp
def _expected_cost(logits, labels, costs, where):
    _, row = largest_class_stats(logits, where)
    return _expected_cost_value(logits, labels, costs, where, row)


@partial(_expected_cost.defjvp, symbolic_zeros=True)
def _expected_cost_jvp(primals, tangents):
    logits, labels, costs, where = primals
    d_logits, _, d_costs, _ = tangents
    largest, row = largest_class_stats(logits, where)
    cost = _expected_cost(*primals)
    d_cost = jnp.zeros_like(cost)
    if not isinstance(d_logits, _SymbolicZero):
        d_cost += _logits_tangent(logits, labels, costs, where, largest, row, d_logits)
    if not isinstance(d_costs, _SymbolicZero):
        d_cost += _costs_tangent(logits, labels, d_costs, where, largest, row)
    return cost, d_cost


def _label_costs(labels, costs, where, dtype):
    """M[y], ``[..., num_classes]``; NaN where the label is out of range."""
    y = class_indices(live(where, labels), costs.shape[-1])
    return lookup(costs, y).astype(dtype)


def _softmax(logits, where, largest, row):
    return probabilities(logits, largest, row, where)[0]


def _share(reference, x, m):
    return times(exponential_of(reference, x), m)


@jax.jit
def _expected_cost_value(logits, labels, costs, where, row):
    m = _label_costs(labels, costs, where, row.log_z.dtype)
    return live(where, class_sum(_share, (row.reference,), logits, m) * row.inverse_z)


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
@jax.jit
def _costs_tangent(logits, labels, d_costs, where, largest, row):
    p = _softmax(logits, where, largest, row)
    return live(where, jnp.sum(p * _label_costs(labels, d_costs, where, p.dtype), -1))


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
@jax.jit
def _logits_tangent(logits, labels, costs, where, largest, row, d_logits):
    p = _softmax(logits, where, largest, row)
    m, dx = _label_costs(labels, costs, where, p.dtype), d_logits.astype(p.dtype)
    is_largest = is_class(largest, p)
    m_less_largest = m - jnp.sum(jnp.where(is_largest, m, 0), -1, keepdims=True)
    dx_less_largest = dx - jnp.sum(jnp.where(is_largest, dx, 0), -1, keepdims=True)
    largest_less_mean = -jnp.sum(times(p, m_less_largest), -1, keepdims=True)
    slope = times(p, m_less_largest + largest_less_mean)
    return live(where, jnp.sum(slope * dx_less_largest, -1))
