"""The few numbers through which a softmax loss sees its logits, and their dense source.

Every loss of :mod:`jaxent.losses` is a function of a :class:`LogitStats`; whatever can make one
(dense logits here, two-class logits in :mod:`jaxent.sigmoid`) works with all of them. This is the
only dense code of integer labels that touches a class axis.
"""

import dataclasses
from collections.abc import Hashable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from jaxent import _checks
from jaxent._classes import (
    SOME,
    STORED,
    at_most,
    beside,
    class_indices,
    class_sum,
    finite_or,
    is_class,
    largest_class,
    live,
    local_indices,
    of_rows,
    once,
    parts_with_gradient,
    pick,
    row_sum,
    select,
    whole,
)
from jaxent._numerics import exp_of_sum, one_minus_exp, plain_exp_of_sum


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("nll", "log_normalizer", "mean_logit", "mean_nll"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class LogitStats:
    """What a loss may know of one example's logits ``x`` and its label ``y``; each field ``[...]``.

    A pytree; at least float32 whatever the logits' dtype. An inert example (``where=False``) is 0
    in every field.

    Attributes:
      nll: −log p_y in nats, without cancellation: exact to rounding for a confident example too.
      log_normalizer: log Σ_c e^(x_c).
      mean_logit: the mean logit, over the classes that are possible (not −inf).
      mean_nll: ``log_normalizer − mean_logit``, the mean of −log p_c over the possible classes,
        from shifted logits so that it survives a large offset. Sources that cannot do better leave
        it out and get the difference.

    Example:
      >>> s = softmax_stats(jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.array(0))
      >>> print(s.nll, s.label_prob, s.other_prob)
      0.6931472 0.5 0.5
    """

    nll: Float[Array, "*batch"]
    log_normalizer: Float[Array, "*batch"]
    mean_logit: Float[Array, "*batch"]
    mean_nll: Float[Array, "*batch"] = None  # ty: ignore[invalid-assignment]

    def __post_init__(self):
        if self.mean_nll is None and self.mean_logit is not None:
            object.__setattr__(self, "mean_nll", self.log_normalizer - self.mean_logit)

    @property
    def label_logit(self) -> Float[Array, "*batch"]:
        """The label's logit, x_y."""
        return self.log_normalizer - self.nll

    @property
    def label_prob(self) -> Float[Array, "*batch"]:
        """The label's probability, p_y."""
        return jnp.exp(-self.nll)

    @property
    def other_prob(self) -> Float[Array, "*batch"]:
        """The probability of all other classes, 1 − p_y, to full relative precision."""
        return one_minus_exp(self.nll)


def softmax_stats(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
    axis_name: Hashable = None,
) -> LogitStats:
    r"""The statistics of softmax logits and integer labels.

    .. math::
        \mathrm{nll} = \log\Big(1 + \sum_{j \ne y} e^{x_j - x_y}\Big), \qquad
        \mathrm{log\_normalizer} = \log \sum_j e^{x_j}

    A logit of −inf rules its class out: no probability, no gradient. A label outside
    ``[0, num_classes)`` makes its row NaN, value and gradient alike; it never wraps or clamps.

    Args:
      logits: unnormalised log-probabilities, float ``[..., num_classes]``.
      labels: class indices in ``[0, num_classes)``, any integer dtype, ``[...]``.
      where: bool ``[...]``; False makes an example inert: its statistics are 0, and whatever its
        row and label hold adds exactly nothing to any value or gradient.
      axis_name: inside ``shard_map``, the mesh axis over which the classes are split: ``logits``
        are this device's share of each row, labels count over all shares, and all that crosses the
        wire is a few numbers a row. Under ``jit`` leave it out: sharded arrays are enough.

    Returns:
      :class:`LogitStats` of shape ``[...]``, float32 (float64 for float64 logits).

    Raises:
      TypeError: logits not floating-point, labels not integer, ``where`` not bool.
      ValueError: ``labels`` or ``where`` not of shape ``logits.shape[:-1]``, or no classes;
        ``axis_name`` not bound, or not one that splits the logits.

    References:
      Goodfellow, Bengio, Courville, *Deep Learning*, 2016, section 6.2.2.3.

    Example:
      >>> logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 30.0, 0.0]])
      >>> s = softmax_stats(logits, jnp.array([0, 1]))
      >>> print(s.nll)  # the second is 2 e^-30, not 0
      [2.3954e-01 1.8715e-13]
    """

    @of_rows
    def stats(logits, y, where):
        row = label_stats(logits, y, where, axis_name)
        mean, gap, _ = _mean_logit(logits, where, row.top, axis_name)
        bad = jnp.isnan(row.log_z)  # a label out of range
        return LogitStats(
            nll=row.nll,
            log_normalizer=row.top + row.log_z,
            mean_logit=jnp.where(bad, row.log_z, mean),
            mean_nll=jnp.where(bad, row.log_z, gap + row.log_z),
        )

    return stats(*_checked(logits, labels, where, axis_name))


def softmax_nll(logits: jax.Array, labels: jax.Array, where: jax.Array | None) -> jax.Array:
    """The nll of :func:`softmax_stats`; without the mean logit it is traced in half of the time."""
    return of_rows(lambda *rows: label_stats(*rows).nll)(*_checked(logits, labels, where))


def _checked(logits, labels, where, axis_name=None):
    """The arguments, the labels as indices of all devices' classes."""
    logits = _checks.logits(logits)
    labels = _checks.labels(logits, labels)
    where = _checks.where(where, labels.shape, "labels")
    num_classes = logits.shape[-1] * _checks.class_shards("logits", logits, axis_name)
    return logits, class_indices(live(where, labels), num_classes), where


# --- exponentials of a row ------------------------------------------------------------------------
#
# Σ e^(x_j − top) would do for a loss but for its last digits: x_j − top is rounded, by up to 64 ulp
# of its exponential, and e^(x_j − top) underflows where a sum of 100,000 is a normal number. So the
# reference lies 42 (in f32) below top, and is a multiple of 2^−12, coarser than the last bit of any
# d = x − reference that counts: then d + reference is exact where d is rounded, and so is what the
# rounding took, l = x − (d + reference). The exponential is e^(d + l). An offset that the logits
# hold exactly changes no bit.
#
# Written with lax's operations: jnp's take three to ten times as long to trace.


def reference_of(top: jax.Array) -> jax.Array:
    """What is subtracted from the logits of a row before their exponentials."""
    info, number = jnp.finfo(top.dtype), top.dtype.type
    steps = number(2.0 ** (info.nmant // 2 + 1))
    scale = select(lax.lt(lax.abs(top), steps), steps, lax.full_like(top, 1))
    below = lax.mul(scale, number(info.maxexp // 3))
    # a division last, or XLA:CPU would do all of this again for every class
    return lax.div(lax.sub(lax.floor(lax.mul(top, scale)), below), scale)


@partial(jax.jit, inline=True, static_argnums=2)  # traced once for value and derivative
def exponential_of(reference: jax.Array, x: jax.Array, exp_of_sum=exp_of_sum) -> jax.Array:
    """e^(x − reference): 0 for −inf; 1 for +inf, beside which every other class has 0."""
    x = lax.convert_element_type(x, reference.dtype)
    d = lax.sub(x, reference)
    low = lax.sub(x, lax.add(d, reference))
    return select(lax.eq(x, reference), 1, exp_of_sum(d, low))


def other_exponentials(reference, logits, is_own, where) -> jax.Array:
    """e^(x − reference), ``[..., num_classes]``; 0 for the own class and in inert rows."""
    e = exponential_of(beside(reference, logits), logits)
    return select(is_own if where is None else is_own | ~where[..., None], 0, e)


# --- −log p_y and log Σ e^x ---------------------------------------------------------------------
#
# Value. With S the sum of e^(x_j − reference) over the classes *other* than the label, of_top that
# of the largest logit, top, and gap = top − x_y ≥ 0,
#     log_z = log Σ_j e^(x_j − top) = log1p(S / of_top + (e^(−gap) − 1)),    nll = gap + log_z.
# Where the label is the largest, gap is 0 and log1p keeps a confident label's tiny loss; where it
# is not, S ≥ of_top. Nothing cancels, and an offset common to all logits is gone from both.
#
# Derivative. With Z = S + e^(x_y − reference) and p_j = e^(x_j − reference) / Z,
#     d nll   = Σ_{j≠y} p_j dx_j − (1 − p_y) dx_y,   1 − p_y = S / Z, never p_y − 1
#     d log_z = Σ_j p_j dx_j                         (top is a constant: it cancels in top + log_z)
# The rule is linear in dx and sits in jax.checkpoint, so reverse mode transposes it and computes p
# from the logits: no [..., num_classes] residual. Where value and gradient are one program, XLA
# computes the exponentials once, into the gradient's memory: so S is their plain sum there, and
# prevent_cse is off. p has a rule of its own, from which every higher order follows.


class LabelStats(NamedTuple):
    """Of a row and its label; each ``[...]``."""

    nll: jax.Array
    log_z: jax.Array  # log Σ e^(x − top)
    label_prob: jax.Array  # p_y
    other_prob: jax.Array  # 1 − p_y
    inverse_z: jax.Array  # 1 / Σ e^(x − reference)
    top: jax.Array  # the largest logit
    reference: jax.Array


def folded_sum(reference, logits, own, where):
    """Σ of the other classes' exponentials for a value alone, without writing them."""
    return class_sum(exponential_of, (reference,), logits, but=own)


def written_sum(reference, logits, own, where):
    """The same where a gradient follows, which finds them where it will be written itself.

    They do not fit there if it has 16 bits: cheaper to compute again than to store many of them.
    """
    if logits.dtype == reference.dtype or at_most(STORED, logits):
        is_own = is_class(own, logits)
        return jnp.sum(other_exponentials(reference, logits, is_own, where), -1)
    return folded_sum(reference, logits, own, where)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def label_stats(logits, y, where, axis_name=None, sum_of_others=folded_sum) -> LabelStats:
    """What a row's losses and their derivatives need; ``y`` are class indices, −1 where invalid."""
    return _label_stats(logits, y, where, axis_name, sum_of_others)


def parts_with(sum_of_others, logits) -> int:
    """Of a fold in the same program as that sum."""
    return SOME if sum_of_others is folded_sum else parts_with_gradient(logits)


def largest_class_stats(logits, where, sum_of_others=folded_sum):
    """The index of each row's largest class, and ``label_stats`` with it as the label."""
    largest = largest_class(logits, parts_with(sum_of_others, logits))
    return largest, label_stats(logits, largest, where, None, sum_of_others)


@label_stats.defjvp
def _label_stats_jvp(axis_name, _, primals, tangents):
    row = label_stats(*primals, axis_name, written_sum)
    d_nll, d_log_z = _label_stats_tangent(*primals, row, tangents[0], axis_name)
    return row, LabelStats(
        nll=d_nll,
        log_z=d_log_z,
        label_prob=-row.label_prob * d_nll,
        other_prob=row.label_prob * d_nll,
        inverse_z=-row.inverse_z * d_log_z,
        top=jnp.zeros_like(row.top),
        reference=jnp.zeros_like(row.reference),
    )


@partial(jax.jit, static_argnums=(3, 4))
def _label_stats(logits, y, where, axis_name, sum_of_others):
    dtype, own = _checks.accumulator(logits), local_indices(y, logits.shape[-1], axis_name)
    label_logit, top = pick(logits, own).astype(dtype), jnp.max(logits, -1).astype(dtype)
    if axis_name is not None:
        label_logit = lax.psum(jnp.where((own < 0) & (y >= 0), 0, label_logit), axis_name)
        top = lax.pmax(top, axis_name)

    gap = select(lax.eq(label_logit, top), 0, lax.sub(top, label_logit))
    top, label_logit = live(where, top), live(where, label_logit)
    reference = reference_of(top)
    others = whole(sum_of_others(reference, logits, own, where), axis_name)
    # by way of jnp.exp, which XLA does not compute again for each class
    of_label = exponential_of(reference, label_logit, plain_exp_of_sum)
    of_top = exponential_of(reference, top)  # as in the sum: their quotient is 1
    z, below = lax.add(others, of_label), lax.sub(lax.exp(lax.neg(gap)), dtype.type(1))
    excess = lax.add(lax.div(others, of_top), below)
    inverse_z = lax.div(dtype.type(1), select(_ill_defined(top, z, 1), jnp.nan, z))
    log_z = lax.log1p(select(_ill_defined(top, excess, 0), jnp.nan, excess))
    p, q = lax.mul(of_label, inverse_z), lax.mul(others, inverse_z)
    numbers = lax.add(gap, log_z), log_z, p, q, inverse_z
    return LabelStats(*(live(where, number) for number in numbers), top, reference)


def _ill_defined(top, total, of_one):
    """All logits −inf, or two +inf; a single infinite one has all of the probability."""
    none, infinite = (lax.eq(top, top.dtype.type(c)) for c in (-jnp.inf, jnp.inf))
    return lax.bitwise_or(none, lax.bitwise_and(infinite, lax.gt(total, total.dtype.type(of_one))))


@partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.nothing_saveable,
    prevent_cse=False,
    static_argnums=(5,),
)
@partial(jax.jit, static_argnums=(5,))
def _label_stats_tangent(logits, y, where, row, d_logits, axis_name):
    p, slope = probabilities(logits, y, row, where, axis_name)
    dx = d_logits.astype(p.dtype)
    d_nll, d_log_z = jnp.sum(slope * dx, -1), jnp.sum(p * dx, -1)
    return live(where, whole(d_nll, axis_name)), live(where, whole(d_log_z, axis_name))


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def probabilities(
    logits: jax.Array,
    y: jax.Array,
    row: LabelStats,
    where: jax.Array | None,
    axis_name: Hashable = None,
) -> tuple[jax.Array, jax.Array]:
    """The softmax of the rows, and the same less 1 for the label; 0 in inert rows.

    Each entry to full relative precision.
    """
    is_own = is_class(local_indices(y, logits.shape[-1], axis_name), logits)
    others = other_exponentials(row.reference, logits, is_own, where)
    p = lax.mul(others, beside(row.inverse_z, others))
    return select(is_own, row.label_prob, p), select(is_own, lax.neg(row.other_prob), p)


@probabilities.defjvp
def _probabilities_jvp(axis_name, primals, tangents):
    # dp_j = p_j (dx_j − Σ_k p_k dx_k), row being a function of x. Where a class a has most of the
    # probability, 1 − p_a must not come from a difference: dx_a is subtracted from every dx, which
    # leaves 0 of its own, and dp_a = −p_a Σ_{k≠a} p_k (dx_k − dx_a). a's entry is taken out, not
    # left to cancel: so the transposed rule is as exact. round(p) is 1 at a and else 0.
    _, _, row, where = primals
    p, slope = probabilities(*primals, axis_name)
    dx = live(where, tangents[0].astype(p.dtype))

    def dominant(p):
        return lax.round(p, lax.RoundingMethod.TO_NEAREST_EVEN)

    def beyond(base, p, dx):
        return (1 - dominant(p)) * (dx - base)

    def total(f, *rows):
        return whole(row_sum(f, rows, p, dx, other=row.inverse_z), axis_name)

    base = total(lambda p, dx: dominant(p) * dx)
    mean = total(lambda base, p, dx: p * beyond(base, p, dx), base)
    dp = p * (beyond(beside(base, p), p, dx) - beside(mean, p))
    return (p, slope), (dp, dp)


# --- the mean logit -----------------------------------------------------------------------------
#
# mean = top − gap, gap the mean of top − x_j over the n possible classes; d mean = mean dx_j, and
# d gap = −d mean, top being a constant. Both in quarters, and where a class is ruled out scaled
# before the sum: so each overflows only where it does itself.


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _mean_logit(logits, where, top, axis_name):
    """The mean logit over the classes that are not −inf, top less it, and how many they are."""
    return _mean_logit_value(logits, where, top, axis_name)


@partial(jax.jit, static_argnames="axis_name")
def _mean_logit_value(logits, where, top, axis_name):
    def quarter_gap(quarter, weight, x):
        x = x.astype(top.dtype)
        return jnp.where(x == -jnp.inf, 0, (quarter - x / 4) * weight)

    def possible(total):
        n = total(lambda x: (x != -jnp.inf).astype(top.dtype), (), logits)
        return n, total(quarter_gap, (top / 4, 1 / n), logits)

    def all_possible():
        gap = class_sum(jnp.subtract, (top,), logits, parts=parts_with_gradient(logits))
        return logits.shape[-1] + 0 * gap, gap / (4 * logits.shape[-1])

    n, quarter = finite_or(all_possible, possible, logits, where)
    total = whole(n, axis_name)
    quarter = whole(quarter * (n / total), axis_name)
    quarter = jnp.where(top == jnp.inf, jnp.where(total > 1, jnp.inf, 0), quarter)
    mean = jnp.where(top == jnp.inf, top, 4 * (top / 4 - quarter))
    return tuple(live(where, once(number)) for number in (mean, 4 * quarter, total))


@_mean_logit.defjvp
def _mean_logit_jvp(axis_name, primals, tangents):
    mean, gap, n = _mean_logit(*primals, axis_name)
    d_mean = _mean_logit_tangent(*primals[:2], n, tangents[0], axis_name)
    return (mean, gap, n), (d_mean, -d_mean, jnp.zeros_like(n))


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, static_argnums=(4,))
@partial(jax.jit, static_argnums=(4,))
def _mean_logit_tangent(logits, where, n, d_logits, axis_name):
    possible = logits != -jnp.inf
    num_classes = logits.shape[-1] * _checks.class_shards("logits", logits, axis_name)
    if isinstance(num_classes, int) and num_classes <= 2**24:  # more are not counted exactly
        # says no more, but a loop over a row that rules out none is compiled to read no logits
        possible |= (n == num_classes)[..., None]
    dx = d_logits.astype(_checks.accumulator(logits))
    d_sum = jnp.sum(jnp.where(live(where, possible), dx, 0), -1)
    return whole(d_sum, axis_name) / jnp.maximum(n, 1)
