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
    class_indices,
    class_sum,
    clipped,
    constants,
    is_class,
    largest_class,
    live,
    local_indices,
    pick,
    sum_but,
    whole,
)
from jaxent._numerics import one_minus_exp


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
    logits = _checks.logits(logits)
    labels = _checks.labels(logits, labels)
    where = _checks.where(where, labels.shape, "labels")
    _checks.class_shards("logits", logits, axis_name)
    row = label_stats(logits, labels, where, axis_name)
    gap, _ = _mean_gap(logits, where, row.top, axis_name)
    return LogitStats(
        nll=row.nll,
        log_normalizer=row.top + row.log_z,
        mean_logit=row.top - gap,
        mean_nll=row.log_z + gap,
    )


def shifted(x: jax.Array, top: jax.Array) -> jax.Array:
    """x − top along the class axis, never NaN for ±inf: 0 where both are +inf, their limit.

    A quarter of it in rows of huge logits, where it is 0, or −inf to any purpose.
    """
    info, scale = jnp.finfo(x.dtype), _scale(top)
    top = jnp.clip(top * scale, info.min, info.max)[..., None]
    return jnp.minimum(x * scale[..., None], top) - top


def _scale(top):
    """1/4 for rows of huge logits, for the clipping of infinities to leave them apart."""
    return jnp.where(jnp.abs(top) > jnp.finfo(top.dtype).max / 2, 0.25, 1).astype(top.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def probabilities(
    x: jax.Array, inverse_z: jax.Array, top: jax.Array, axis_name: Hashable = None
) -> jax.Array:
    """The softmax of the rows, each entry to full relative precision."""
    return jnp.exp(shifted(x, top)) * inverse_z[..., None]


@probabilities.defjvp
def _probabilities_jvp(axis_name, primals, tangents):
    # dp_j = p_j (dx_j − Σ_k p_k dx_k), inverse_z and top being functions of x. Where a class a has
    # more than half of the probability, 1 − p_a must not come from a difference: r, its dx, may be
    # subtracted from every dx, and its own entry is then p_a Σ_{k≠a} p_k (dx_a − dx_k).
    p, dx = probabilities(*primals, axis_name), tangents[0]
    r = whole(jnp.sum(jnp.where(p > 0.5, dx, 0), -1, keepdims=True), axis_name)
    return p, p * ((dx - r) + whole(jnp.sum(p * (r - dx), -1, keepdims=True), axis_name))


# --- −log p_y and log Σ e^x ---------------------------------------------------------------------
#
# Value. Relative to the largest logit, top, with S the sum of e^(x_j − top) over the classes
# *other* than the label and gap = top − x_y ≥ 0,
#     log_z = log Σ_j e^(x_j − top) = log1p(S + expm1(−gap)),      nll = gap + log_z.
# Where the label is the largest, gap is 0 and log1p(S) keeps a confident label's tiny loss; where
# it is not, S ≥ 1. Nothing cancels, and an offset common to all logits is gone from gap and S.
#
# S needs care in its far tail: x_j − top is rounded by up to 64 ulp of its exponential, and
# e^(x_j − top) underflows where the sum of 100,000 of them is a normal number. See scaled_exp.
#
# Derivative. With Z = S + e^(−gap) and p_j = e^(x_j − top) / Z,
#     d nll   = Σ_{j≠y} p_j dx_j − (1 − p_y) dx_y,   1 − p_y = S / Z, never p_y − 1
#     d log_z = Σ_j p_j dx_j                         (top is a constant: it cancels in top + log_z)
# The rule is linear in dx and sits in jax.checkpoint, so reverse mode transposes it and recomputes
# p from the logits: no [..., num_classes] residual. 1 − p_y and 1/Z come out of the value with
# derivatives of their own, p_y d nll and −d log_z / Z, and p has its rule above, so every higher
# order follows. (From nll and log_z they would take two transcendental functions, which XLA:CPU
# computes anew for each class.)


class LabelStats(NamedTuple):
    """Of a row and its label, relative to the largest logit, ``top``; each ``[...]``."""

    nll: jax.Array
    log_z: jax.Array  # log Z = log Σ e^(x − top)
    top: jax.Array
    other_prob: jax.Array  # 1 − p_y
    inverse_z: jax.Array  # 1 / Z


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def label_stats(logits, labels, where, axis_name=None) -> LabelStats:
    """What a row's losses and their derivatives need."""
    return _label_stats_value(logits, labels, where, axis_name)


def largest_class_stats(logits, where):
    """The index of each row's largest class, and ``label_stats`` with it as the label."""
    largest = largest_class(logits)
    return largest, label_stats(logits, largest, where)


@partial(jax.jit, static_argnames="axis_name")
def _label_stats_value(logits, labels, where, axis_name):
    x = logits.astype(_checks.accumulator(logits))
    y, own = _label(live(where, labels), x, axis_name)
    label_logit = pick(logits, own).astype(x.dtype)
    top = jnp.max(logits, -1).astype(x.dtype)
    if axis_name is not None:
        label_logit = lax.psum(jnp.where((own < 0) & (y >= 0), 0, label_logit), axis_name)
        top = lax.pmax(top, axis_name)

    gap = jnp.where(label_logit == top, 0, top - label_logit)
    rows = scaled_exp_rows(top)
    rest = whole(sum_but(own, scaled_exp, rows, x), axis_name) / scaled_exp(*rows, top)
    of_label = jnp.exp(-gap)
    two_infinite = (top == jnp.inf) & (rest + of_label > 1)
    rest = jnp.where((top == -jnp.inf) | two_infinite, jnp.nan, rest)
    log_z, z = jnp.log1p(rest + jnp.expm1(-gap)), rest + of_label
    top = jnp.where(y < 0, jnp.nan, top)
    row = LabelStats(gap + log_z, log_z, top, other_prob=rest / z, inverse_z=1 / z)
    return jax.tree.map(partial(live, where), row)


def _label(labels, x, axis_name):
    """Labels over all classes, and over this device's; −1 where there is none."""
    num_classes = x.shape[-1] if axis_name is None else x.shape[-1] * lax.axis_size(axis_name)
    y = class_indices(labels, num_classes)
    return y, local_indices(y, x.shape[-1], axis_name)


def scaled_exp(scale, bottom, top, rounder, reference, one, x):
    """e^(x − top), times a power of e that is the same for the whole row; arithmetic only.

    The reference lies below top, so that a sum does not underflow before its logarithm is tiny. x
    is split into a multiple h of 2^−12 (in f32) and a remainder l ≤ 2^−13: h − reference is exact,
    and e^l is 1 + l. Where logits are so large that they differ by nothing or by more than matters,
    they are scaled down, for the clipping not to make unequal ones equal.
    """
    x = clipped(bottom, x * scale, top)
    h = (x + rounder) - rounder
    return jnp.exp(h - reference) * (one + (x - h))


def scaled_exp_rows(top):
    """The arguments of :func:`scaled_exp` that are one a row."""
    info = jnp.finfo(top.dtype)
    scale = _scale(top)
    # adding and subtracting it rounds to 2^−12
    rounder = jnp.where(scale < 1, 0, 1.5 * 2.0 ** (info.nmant - info.nmant // 2 - 1)).astype(
        top.dtype
    )
    (one,) = constants(top, 1)
    top = jnp.clip(top * scale, info.min, info.max)
    reference = (top - info.maxexp // 3 + rounder) - rounder
    bottom = reference - jnp.maximum(2 * info.maxexp, jnp.abs(reference) * 2.0**-20)
    return scale, bottom, top, rounder, reference, one


@label_stats.defjvp
def _label_stats_jvp(axis_name, primals, tangents):
    row = label_stats(*primals, axis_name)
    d_nll, d_log_z = _label_stats_tangent(*primals, row, tangents[0], axis_name)
    return row, LabelStats(
        nll=d_nll,
        log_z=d_log_z,
        top=jnp.zeros_like(row.top),
        other_prob=jnp.exp(-row.nll) * d_nll,
        inverse_z=-row.inverse_z * d_log_z,
    )


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, static_argnums=(5,))
@partial(jax.jit, static_argnums=(5,))
def _label_stats_tangent(logits, labels, where, row, d_logits, axis_name):
    x = live(where, logits).astype(_checks.accumulator(logits))
    dx = d_logits.astype(x.dtype)
    is_label = is_class(_label(live(where, labels), x, axis_name)[1], x)
    p = probabilities(x, row.inverse_z, row.top, axis_name)
    d_nll = jnp.sum(jnp.where(is_label, -row.other_prob[..., None], p) * dx, -1)
    d_log_z = jnp.sum(p * dx, -1)
    return live(where, whole(d_nll, axis_name)), live(where, whole(d_log_z, axis_name))


# --- the mean logit -----------------------------------------------------------------------------
#
# gap = mean of top − x_j over the n possible classes; d gap = −mean dx_j, top being a constant.
# Formed in quarters and scaled before the sum: it overflows only where the mean itself does.


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _mean_gap(logits, where, top, axis_name):
    """top − mean logit over the classes whose logit is not −inf, and their number; ``[...]``."""
    return _mean_gap_value(logits, where, top, axis_name)


@partial(jax.jit, static_argnames="axis_name")
def _mean_gap_value(logits, where, top, axis_name):
    x = logits.astype(_checks.accumulator(logits))
    low = float(jnp.finfo(x.dtype).min)

    def count(eighth, low, two, x):  # 2, or 0 for −inf; arithmetic only
        return jnp.minimum(two, jnp.maximum(low, x * eighth) - low)

    def share(quarter, low, four, part, top, x):
        x = clipped(low, x * quarter, top)
        return jnp.minimum(four, x - low) * ((top - x) * part)

    # the rows of two sums are different: XLA would write out what they share
    n = whole(class_sum(count, constants(top, 1 / 8, low / 4, 2), x) / 2, axis_name)
    rows = *constants(top, 1 / 4, low / 2, 4), 1 / n, jnp.minimum(top / 4, -low / 2)
    gap = whole(class_sum(share, rows, x), axis_name)
    gap = jnp.where(top == jnp.inf, jnp.where(n > 1, jnp.inf, 0), gap)
    return live(where, gap), live(where, n)


@_mean_gap.defjvp
def _mean_gap_jvp(axis_name, primals, tangents):
    logits, where, _ = primals
    gap, n = _mean_gap(*primals, axis_name)
    d_gap = _mean_gap_tangent(logits, where, n, tangents[0], axis_name)
    return (gap, n), (d_gap, jnp.zeros_like(n))


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, static_argnums=(4,))
@partial(jax.jit, static_argnums=(4,))
def _mean_gap_tangent(logits, where, n, d_logits, axis_name):
    possible = live(where, logits != -jnp.inf)
    dx = d_logits.astype(_checks.accumulator(logits))
    total = whole(jnp.sum(jnp.where(possible, dx, 0), -1), axis_name)
    return live(where, -total / jnp.maximum(n, 1))
