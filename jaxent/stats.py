"""The few numbers through which a softmax loss sees its logits, and their dense source.

Every loss of :mod:`jaxent.losses` is a function of a :class:`LogitStats`; whatever can make one (dense
logits here, two-class logits in :mod:`jaxent.sigmoid`) works with all of them. This is the only
dense code of integer labels that touches a class axis.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from jaxent import _checks
from jaxent._numerics import one_minus_exp, two_diff


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
      mean_nll: ``log_normalizer − mean_logit``, the mean of −log p_c over the possible classes, from
        shifted logits so that it survives a large offset. Sources that cannot do better leave it
        out and get the difference.

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
      where: bool ``[...]``; False makes an example inert: its statistics are 0, and whatever its row
        and label hold adds exactly nothing to any value or gradient.

    Returns:
      :class:`LogitStats` of shape ``[...]``, float32 (float64 for float64 logits).

    Raises:
      TypeError: logits not floating-point, labels not integer, ``where`` not bool.
      ValueError: ``labels`` or ``where`` not of shape ``logits.shape[:-1]``, or no classes.

    References:
      Goodfellow, Bengio, Courville, *Deep Learning*, 2016, section 6.2.2.3.

    Example:
      >>> logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 30.0, 0.0]])
      >>> s = softmax_stats(logits, jnp.array([0, 1]))
      >>> print(s.nll)  # the second is 2 e^-30, not 0
      [2.3954484e-01 1.8715246e-13]
    """
    logits = _checks.logits(logits)
    labels = _checks.labels(logits, labels)
    where = _checks.where(where, labels.shape, "labels")
    nll, log_z, top = label_stats(logits, labels, where)
    gap = _mean_gap(logits, where, top)
    return LogitStats(
        nll=nll, log_normalizer=top + log_z, mean_logit=top - gap, mean_nll=log_z + gap
    )


# --- the class axis -----------------------------------------------------------------------------


def class_indices(labels: jax.Array, num_classes: int) -> jax.Array:
    """Labels as int32, −1 where out of range.

    Widened before they are compared: int8 against 300 classes wraps.
    """
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    valid = (labels >= 0) & (labels < num_classes)
    return jnp.where(valid, labels, jnp.zeros_like(labels)).astype(jnp.int32) - (~valid).astype(
        jnp.int32
    )


def is_class(indices: jax.Array, num_classes: int) -> jax.Array:
    """Bool ``[..., num_classes]``: the place of each index on a class axis."""
    shape = (1,) * indices.ndim + (num_classes,)
    return lax.broadcasted_iota(jnp.int32, shape, indices.ndim) == indices[..., None]


def pick(x: jax.Array, indices: jax.Array) -> jax.Array:
    """``x[..., index]``, NaN where the index is −1."""
    num_classes = x.shape[-1]
    if _class_axis_sharding(x) is not None:  # a gather along a sharded axis is ambiguous there
        picked = jnp.sum(jnp.where(is_class(indices, num_classes), x, 0), -1, dtype=x.dtype)
        return jnp.where(indices < 0, jnp.nan, picked)
    indices = jnp.where(indices < 0, num_classes, indices)  # "fill" would still wrap a −1
    return jnp.take_along_axis(x, indices[..., None], -1, mode="fill", fill_value=jnp.nan)[..., 0]


def _class_axis_sharding(x: jax.Array):
    """The mesh axes an explicit sharding gives the class axis, or None."""
    spec = getattr(getattr(jax.typeof(x), "sharding", None), "spec", None)
    return spec[-1] if spec and len(spec) == x.ndim else None


def shifted(x: jax.Array, top: jax.Array) -> jax.Array:
    """x − top along the class axis, 0 where both are +inf (their limit) and never NaN for ±inf."""
    big = jnp.finfo(x.dtype).max
    return jnp.minimum(x, big) - jnp.clip(top, -big, big)[..., None]


def rows(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """The logits in the accumulation dtype, inert rows zeroed before anything can read them."""
    x = logits.astype(_checks.accumulator(logits))
    return x if where is None else jnp.where(where[..., None], x, 0)


def live(where: jax.Array | None, x: jax.Array) -> jax.Array:
    """x, exactly 0 where an example is inert."""
    return x if where is None else jnp.where(where, x, 0)


# --- −log p_y and log Σ e^x ---------------------------------------------------------------------
#
# Value. With m and S the maximum and Σ e^(x_j − m) over the classes *other* than the label, and
# d = x_y − m the label's lead,
#     nll = log(1 + S e^(−d)) if d ≥ 0,   −d + log(S + e^d) if d < 0,
# in which nothing cancels: a confident label (large d) keeps its tiny loss, and an offset common to
# all logits is gone from d and S. The rounding of d is |d| ulp/2 absolute, that is up to 64 ulp of
# e^(−d), so the exact remainder of the subtraction is carried into the product.
#
# Shift. All is held relative to top = max(m, x_y): log_z = log Σ e^(x_j − top).
#
# Derivative. With p_j = e^(x_j − top − log_z),
#     d nll   = Σ_{j≠y} p_j dx_j − (1 − p_y) dx_y,   1 − p_y from nll, never as p_y − 1
#     d log_z = Σ_{j≠y} p_j dx_j + p_y dx_y           (top is a constant: it cancels in top + log_z)
# The rule is linear in dx and sits in jax.checkpoint, so reverse mode transposes it and recomputes p
# from the logits: no [..., num_classes] residual. p depends on the logits through log_z and nll
# alone, whose own rule this is, so every higher order follows.


@jax.custom_jvp
def label_stats(logits, labels, where):
    """(nll, log_z, top), each ``[...]``."""
    return _label_stats_value(logits, labels, where)


def largest_class_stats(logits, where):
    """The index of each row's largest class, and ``label_stats`` with it as the label."""
    largest = jnp.argmax(rows(logits, where), -1).astype(jnp.int32)
    return largest, label_stats(logits, largest, where)


@jax.jit
def _label_stats_value(logits, labels, where):
    x = rows(logits, where)
    y = class_indices(live(where, labels), x.shape[-1])
    is_label = is_class(y, x.shape[-1])

    label_logit = live(where, pick(logits, y).astype(x.dtype))
    rest_max = jnp.max(jnp.where(is_label, -jnp.inf, x), -1)
    rest_sum = jnp.sum(jnp.where(is_label, 0, jnp.exp(shifted(x, rest_max))), -1)

    lead, lead_error = two_diff(label_logit, rest_max)
    root = jnp.exp(-jnp.abs(lead) / 2)  # halved: e^(−lead) may be subnormal where S e^(−lead) is not
    log_z = jnp.where(
        lead >= 0,
        jnp.log1p(rest_sum * root * root * (1 - lead_error)),
        jnp.log(rest_sum + root * root),
    )
    nll = jnp.maximum(-lead, 0) + log_z
    top = jnp.maximum(label_logit, rest_max)
    return live(where, nll), live(where, log_z), live(where, top)


@label_stats.defjvp
def _label_stats_jvp(primals, tangents):
    nll, log_z, top = label_stats(*primals)
    d_nll, d_log_z = _label_stats_tangent(*primals, nll, log_z, top, tangents[0])
    return (nll, log_z, top), (d_nll, d_log_z, jnp.zeros_like(top))


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
@jax.jit
def _label_stats_tangent(logits, labels, where, nll, log_z, top, d_logits):
    x = rows(logits, where)
    dx = d_logits.astype(x.dtype)
    is_label = is_class(class_indices(live(where, labels), x.shape[-1]), x.shape[-1])
    p = jnp.exp(shifted(x, top) - log_z[..., None])
    d_nll = jnp.where(is_label, -one_minus_exp(nll)[..., None], p) * dx
    d_log_z = jnp.where(is_label, jnp.exp(-nll)[..., None], p) * dx
    return live(where, jnp.sum(d_nll, -1)), live(where, jnp.sum(d_log_z, -1))


# --- the mean logit -----------------------------------------------------------------------------
#
# gap = mean of top − x_j over the possible classes; d gap = −mean dx_j, top being a constant.
# Formed in halves: top − x_j overflows for ±3e38 where the mean need not.


@jax.custom_jvp
def _mean_gap(logits, where, top):
    """top − mean logit, ``[...]``, over the classes whose logit is not −inf."""
    return _mean_gap_value(logits, where, top)


@jax.jit
def _mean_gap_value(logits, where, top):
    x = rows(logits, where)
    scale = 2 / _num_possible(x)
    halves = jnp.where(x == top[..., None], 0, top[..., None] / 2 - x / 2)
    return live(where, jnp.sum(jnp.where(x == -jnp.inf, 0, halves * scale), -1))


def _num_possible(x):
    return jnp.sum(x != -jnp.inf, -1, keepdims=True).astype(x.dtype)


@_mean_gap.defjvp
def _mean_gap_jvp(primals, tangents):
    logits, where, top = primals
    return _mean_gap(*primals), _mean_gap_tangent(logits, where, tangents[0])


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
@jax.jit
def _mean_gap_tangent(logits, where, d_logits):
    x = rows(logits, where)
    share = jnp.where(x == -jnp.inf, 0, 1 / _num_possible(x))
    return live(where, -jnp.sum(share * d_logits.astype(x.dtype), -1))
