"""Losses of target distributions: any non-negative row of targets, one loss an example."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from jaxent import _checks
from jaxent._classes import (
    MANY,
    class_sum,
    finite_or,
    is_class,
    live,
    of_rows,
    once,
    pick,
)
from jaxent.stats import (
    folded_sum,
    largest_class_stats,
    probabilities,
    written_sum,
)

_SymbolicZero = jax.custom_derivatives.SymbolicZero


def soft_cross_entropy(
    logits: Float[Array, "*batch classes"],
    targets: Real[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Softmax cross-entropy of target distributions: :math:`-\sum_j q_j \log p_j`.

    Rows need not sum to 1: the gradient is :math:`(\sum_k q_k)\, p_j - q_j` for any row, 0 for a
    row of zeros. A target of 0 on a class ruled out by a −inf logit adds nothing.

    Args:
      logits: unnormalised log-probabilities, float ``[..., num_classes]``.
      targets: non-negative, exactly the logits' shape.
      where: bool ``[...]``; a False example has loss 0 and no gradient, whatever it holds.

    Returns:
      losses ``[...]`` in nats, float32 (float64 for float64 logits).

    Raises:
      TypeError: logits not floating-point, targets not real, ``where`` not bool.
      ValueError: shapes differ; nothing is broadcast.

    References:
      ``tf.nn.softmax_cross_entropy_with_logits`` (whose gradient is wrong where a row does not sum
      to 1; here it is right), ``optax.softmax_cross_entropy``.

    Example:
      >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
      >>> targets = jnp.array([0.0, 0.5, 0.5])
      >>> print(f"{soft_cross_entropy(logits, targets):.4f}")  # -(log 0.3 + log 0.2) / 2
      1.4067
      >>> print(jax.grad(soft_cross_entropy)(logits, 2 * targets))
      [ 1.  -0.4 -0.6]
    """
    logits = _checks.logits(logits)
    targets = _checks.targets(logits, targets)
    where = _checks.where(where, logits.shape[:-1], "logits without the class axis")
    return of_rows(_soft)(logits, targets, where)


def kl_divergence(
    logits: Float[Array, "*batch classes"],
    targets: Real[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Kullback–Leibler divergence from targets to softmax: :math:`\sum_j q_j \log (q_j / p_j)`.

    Cross-entropy less the targets' entropy: the same gradient in the logits. 0 · log 0 = 0, and a
    target of 0 has no gradient of its own (the true one is −inf, which no training survives).

    Args:
      logits: unnormalised log-probabilities, float ``[..., num_classes]``.
      targets: non-negative, exactly the logits' shape; a negative one makes its row NaN.
      where: bool ``[...]``; a False example has loss 0 and no gradient, whatever it holds.

    Returns:
      losses ``[...]`` in nats, float32 (float64 for float64 logits).

    Raises:
      TypeError, ValueError: as :func:`soft_cross_entropy`.

    References:
      Kullback and Leibler, *On Information and Sufficiency*, 1951. ``torch.nn.functional.kl_div``
      and ``optax.losses.kl_divergence`` take log-probabilities: those are logits, pass them as they
      are.

    Example:
      >>> logits = jnp.log(jnp.array([0.25, 0.25, 0.5]))
      >>> print(f"{kl_divergence(logits, jnp.array([0.0, 0.5, 0.5])):.4f}")  # log(2) / 2
      0.3466
    """
    logits = _checks.logits(logits)
    targets = _checks.targets(logits, targets)
    where = _checks.where(where, logits.shape[:-1], "logits without the class axis")
    q = targets.astype(_checks.accumulator(logits))
    q = q if where is None else jnp.where(where[..., None], q, 0)
    q = jnp.where(q < 0, jnp.nan, q)
    return of_rows(_soft)(logits, q, where) + jnp.sum(q * jnp.log(jnp.where(q == 0, 1, q)), -1)


# Value. With a the largest class, −log p_j = (top − x_j) + log_z, two terms that are never
# negative, and log_z = −log p_a without cancellation (see stats.py): a one-hot row is as exact as
# its label.
#
# Derivative. ∂/∂x_j = Q p_j − q_j with Q = Σ q. At a, where p_a may be all but 1, it is written
#     Σ_{k≠a} q_k p_a − q_a (1 − p_a)
# with 1 − p_a from the statistics of a, without cancellation; elsewhere p_j ≤ 1/2.
# ∂/∂q_j = −log p_j, taken as 0 where q_j = 0 on a class that is ruled out (loss and limit are 0).


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _soft(logits, targets, where, sum_of_others=folded_sum):
    _, row = largest_class_stats(logits, where, sum_of_others)
    return _soft_value(logits, targets, where, row.log_z, row.top)


@partial(_soft.defjvp, symbolic_zeros=True)
def _soft_jvp(_, primals, tangents):
    logits, targets, where = primals
    d_logits, d_targets, _ = tangents
    losses = _soft(*primals, written_sum)  # not its formula: top's tangent is not in that
    largest, row = largest_class_stats(logits, where, written_sum)
    d_losses = jnp.zeros_like(losses)
    if not isinstance(d_logits, _SymbolicZero):
        d_losses += _soft_tangent(logits, targets, where, largest, row, d_logits)
    if not isinstance(d_targets, _SymbolicZero):
        d_losses += _soft_target_tangent(logits, targets, where, row.log_z, row.top, d_targets)
    return losses, d_losses


def _half_gap(x, top):
    """(top − x_j) / 2, in halves: top − x_j may overflow where q_j (top − x_j) does not."""
    top = top[..., None]
    # elsewhere 0 too at the largest class, but with the tangent of x_j
    return jnp.where((x == top) & jnp.isinf(x), 0, top / 2 - x / 2)


def _rows(logits, targets, where):
    """Both in the logits' accumulation dtype, inert rows zeroed before anything reads them."""
    x = live(where, logits.astype(_checks.accumulator(logits)))
    return x, live(where, targets).astype(x.dtype)


@jax.jit
def _soft_value(logits, targets, where, log_z, top):
    def share(top, log_z, x, q):  # −q_j log p_j
        return q.astype(log_z.dtype) * ((top - x) + log_z)

    def guarded(quarter, log_z, x, q):  # with 0 · inf = 0; quarters as in _half_gap
        x, q = x.astype(log_z.dtype) / 4, q.astype(log_z.dtype)
        gap = jnp.where(x == quarter, 0, quarter - x)
        return jnp.where(q == 0, 0, 4 * (q * gap) + q * log_z)

    def quick():
        return class_sum(share, (top, log_z), logits, targets, parts=MANY)

    def exact(total):
        return total(guarded, (top / 4, log_z), logits, targets)

    return live(where, finite_or(quick, exact, logits, where))


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
@jax.jit
def _soft_tangent(logits, targets, where, largest, row, d_logits):
    p, _ = probabilities(logits, largest, row, where)
    rest = once(class_sum(lambda q: q.astype(p.dtype), (), targets, but=largest, parts=MANY))
    rest, of_largest = live(where, rest), live(where, pick(targets, largest)).astype(p.dtype)
    q = live(where, targets).astype(p.dtype)
    at_largest = (rest * row.label_prob)[..., None] - q * row.other_prob[..., None]
    slope = jnp.where(is_class(largest, p), at_largest, (rest + of_largest)[..., None] * p - q)
    # the same but for rounding: its derivative does without the sum that leaves a out
    slope = _tangent_of(jnp.sum(q, -1, keepdims=True) * p - q, slope)
    return live(where, jnp.sum(slope * d_logits.astype(p.dtype), -1))


@jax.custom_jvp
def _tangent_of(plain, slope):
    """``slope``, whose derivative is that of ``plain``."""
    return slope


@_tangent_of.defjvp
def _tangent_of_jvp(primals, tangents):
    return primals[1], tangents[0]


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
@jax.jit
def _soft_target_tangent(logits, targets, where, log_z, top, d_targets):
    x, q = _rows(logits, targets, where)
    ruled_out = (q == 0) & (x == -jnp.inf)
    slope = jnp.where(ruled_out, 0, 2 * _half_gap(x, top) + log_z[..., None])
    return live(where, jnp.sum(slope * d_targets.astype(x.dtype), -1))
