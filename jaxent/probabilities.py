"""Losses of models that end in probabilities or log-probabilities, and losses of every class.

Logits are better where there is a choice: a probability has already rounded away a confident
example. These take what the model hands over: a probability of 0 stays 0, nothing is clipped.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from jaxent import _checks
from jaxent._classes import class_indices, is_class, largest_class, live
from jaxent._numerics import log1p_exp_pair, sigmoid_pair, times
from jaxent.losses import focal
from jaxent.stats import LogitStats, largest_class_stats

_Mask = Bool[Array, "*batch"] | None


# --- statistics with every class as the label ---------------------------------------------------


def class_stats(logits: Float[Array, "*batch classes"], *, where: _Mask = None) -> LogitStats:
    r"""The statistics of softmax logits with each class in turn as the label.

    With them a loss of labels is a loss of target distributions as well:
    ``(targets * focal(class_stats(logits), gamma=2.0)).sum(-1)``.

    Args:
      logits: float ``[..., num_classes]``.
      where: bool ``[...]``; a False example is 0 in every class, whatever it holds.

    Returns:
      :class:`~jaxent.LogitStats` of shape ``[..., num_classes]``, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`~jaxent.softmax_stats`.

    Example:
      >>> print(class_stats(jnp.array([0.0, 30.0, 0.0])).nll)
      [3.0000e+01 1.8715e-13 3.0000e+01]
    """
    logits = _checks.logits(logits)
    where = _checks.where(where, logits.shape[:-1], "logits without the class axis")
    largest, row = largest_class_stats(logits, where)
    nll, log_z, top = row.nll, row.log_z, row.top
    x = live(where, logits).astype(nll.dtype)
    infinite = jnp.isinf(x) & (x == top[..., None])
    gap = jnp.where(infinite, 0, top[..., None] - jnp.where(infinite, 0, x))
    each = jnp.where(is_class(largest, x), nll[..., None], gap + log_z[..., None])
    return _every_class(live(where, each), top + log_z, live(where, x != -jnp.inf))


def expected_loss(
    losses: Float[Array, "*batch classes"],
    targets: Real[Array, "*batch classes"],
    *,
    where: _Mask = None,
) -> Float[Array, "*batch"]:
    r"""The loss of target distributions, from the loss of each class: :math:`\sum_j q_j \ell_j`.

    Args:
      losses: any loss of :func:`class_stats`, ``[..., num_classes]``.
      targets: real, the same shape. A target of 0 drops an infinite loss.
      where: bool ``[...]``; a False example has loss 0, whatever its targets hold.

    Returns:
      losses ``[...]``.

    Raises:
      TypeError: losses not floating-point, targets not real.
      ValueError: shapes differ.

    Example:
      >>> from jaxent import poly1
      >>> each = poly1(class_stats(jnp.log(jnp.array([0.6, 0.4]))), epsilon=2.0)
      >>> print(f"{expected_loss(each, jnp.array([1.0, 0.0])):.4f}")
      1.3108
    """
    losses, q, _ = _pair("losses", losses, "targets", targets, None)
    where = _checks.where(where, losses.shape[:-1], "losses without the class axis")
    return jnp.sum(times(live(where, q), losses), -1)


def _every_class(each, log_normalizer, possible):
    """Statistics of −log p of every class; the means are over the possible ones."""
    log_normalizer = log_normalizer[..., None]
    mean_nll = _mean(each, possible)[..., None]
    return LogitStats(
        nll=each,
        log_normalizer=jnp.broadcast_to(log_normalizer, each.shape),
        mean_logit=jnp.broadcast_to(log_normalizer - mean_nll, each.shape),
        mean_nll=jnp.broadcast_to(mean_nll, each.shape),
    )


def _mean(x, mask):
    count = jnp.sum(mask, -1, dtype=jnp.int32).astype(x.dtype)
    return jnp.sum(jnp.where(mask, x, 0), -1) / jnp.maximum(count, 1)


# --- probabilities ------------------------------------------------------------------------------


def prob_class_stats(
    probs: Float[Array, "*batch classes"],
    *,
    needed: Bool[Array, "*batch classes"] | None = None,
    where: _Mask = None,
) -> LogitStats:
    """The statistics of probabilities with each class in turn as the label.

    Args:
      probs: non-negative, float ``[..., num_classes]``; a row is divided by its sum, and one with
        a negative number is NaN.
      needed: bool ``[..., num_classes]``; a False class is 0 and has no gradient. (That of a
        probability of 0 is infinite, and no later factor of 0 takes it back.)
      where: bool ``[...]``; a False example is 0 in every class, whatever it holds.

    Returns:
      :class:`~jaxent.LogitStats` of shape ``[..., num_classes]``, the logits being log p.

    Raises:
      TypeError: ``probs`` not floating-point, a mask not bool.
      ValueError: shapes differ, or no classes.

    Example:
      >>> print(prob_class_stats(jnp.array([0.5, 0.25, 0.25])).nll)
      [0.6931 1.3863 1.3863]
    """
    p, where = _probs(probs, where)
    possible = live(where, p != 0)
    mask = _checks.where(needed, p.shape, "probs")
    mask = live(where, jnp.ones_like(p, bool) if mask is None else mask)
    log_normalizer = live(where, jnp.log(jnp.sum(p, -1)))
    return _every_class(_prob_nll(p, mask), log_normalizer, possible & mask)


def prob_stats(
    probs: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], *, where: _Mask = None
) -> LogitStats:
    r"""The statistics of probabilities and integer labels: nll is :math:`-\log (p_y / \sum_j p_j)`.

    Args:
      probs: non-negative, float ``[..., num_classes]``; a row is divided by its sum, and one with
        a negative number is NaN.
      labels: class indices in ``[0, num_classes)``, any integer dtype, ``[...]``; one out of range
        makes its row NaN, value and gradient alike.
      where: bool ``[...]``; a False example is inert.

    Returns:
      :class:`~jaxent.LogitStats` of shape ``[...]``, float32 or wider, the logits being log p.

    Raises:
      TypeError, ValueError: as :func:`~jaxent.softmax_stats`.

    Example:
      >>> from jaxent import nll
      >>> p = jnp.array([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
      >>> print(nll(prob_stats(p, jnp.array([0, 1]))))
      [1.3863    inf]
    """
    p, where = _probs(probs, where)
    p, label = _label_mask(p, labels, where)
    nll = jnp.sum(jnp.where(label, _prob_nll(p, label), 0), -1)
    possible = live(where, p != 0)
    return LogitStats(
        nll=nll,
        log_normalizer=live(where, jnp.log(jnp.sum(p, -1))),
        mean_logit=_mean(jnp.log(jnp.where(possible, p, 1)), possible),
    )


def prob_cross_entropy(
    probs: Float[Array, "*batch classes"],
    targets: Real[Array, "*batch classes"],
    *,
    where: _Mask = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of probabilities and targets: :math:`-\sum_j q_j \log (p_j / \sum_k p_k)`.

    Args:
      probs: non-negative, float ``[..., num_classes]``; a row is divided by its sum, and one with
        a negative number is NaN.
      targets: non-negative, exactly the shape of ``probs``. 0 · log 0 is 0.
      where: bool ``[...]``; a False example has loss 0 and no gradient, whatever it holds.

    Returns:
      losses ``[...]`` in nats, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`~jaxent.soft_cross_entropy`.

    Example:
      >>> p, q = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.0, 1.0, 0.0])
      >>> print(f"{prob_cross_entropy(p, q):.4f}", jax.grad(prob_cross_entropy)(p, q))
      0.6931 [ 1. -1.  1.]
    """
    p = _checks.rows("probs", probs)
    where = _checks.where(where, p.shape[:-1], "probs without the class axis")
    q = live(where, _checks.targets(p, targets).astype(_checks.accumulator(p)))
    s = prob_class_stats(p, needed=(q != 0) | (p != 0), where=where)
    return jnp.sum(times(q, s.nll), -1)


# Value. With S = Σ p, a the largest class and R = S − p_a summed over the others: −log (p_a / S) is
# log1p(R / p_a), which keeps a confident example's tiny loss; elsewhere p_j ≤ S / 2 and
# log S − log p_j does not cancel.
#
# Derivative. d(log S − log p_j) = dS/S − dp_j/p_j, at a with the same sums: (dR − (R/p_a) dp_a)/S.


@jax.custom_jvp
def _prob_nll(p, needed):
    is_largest, rest, total = _largest_prob(p)
    p = jnp.where(needed, p, 1)
    odds = jnp.where(is_largest, rest, 0) / jnp.where(is_largest, p, 1)
    return jnp.where(needed, jnp.where(is_largest, jnp.log1p(odds), jnp.log(total) - jnp.log(p)), 0)


@_prob_nll.defjvp
def _prob_nll_jvp(primals, tangents):
    return _prob_nll(*primals), _prob_nll_tangent(*primals, tangents[0])


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
def _prob_nll_tangent(p, needed, dp):
    is_largest, rest, total = _largest_prob(p)
    p = jnp.where(needed, p, 1)
    d_total = jnp.sum(dp, -1, keepdims=True)
    d_rest = jnp.sum(jnp.where(is_largest, 0, dp), -1, keepdims=True)
    at_largest = (d_rest - rest / jnp.where(is_largest, p, 1) * dp) / total
    return jnp.where(needed, jnp.where(is_largest, at_largest, d_total / total - dp / p), 0)


def _largest_prob(p):
    is_largest = is_class(largest_class(p), p)
    rest = jnp.sum(jnp.where(is_largest, 0, p), -1, keepdims=True)
    return is_largest, rest, jnp.sum(p, -1, keepdims=True)


def _probs(value, where):
    """Probabilities, 1 where an example is inert (any logarithm may read it), and the mask.

    A negative one makes its row NaN, value and gradient alike.
    """
    p = _checks.rows("probs", value)
    where = _checks.where(where, p.shape[:-1], "probs without the class axis")
    p = p.astype(_checks.accumulator(p))
    p = p if where is None else jnp.where(where[..., None], p, 1)
    return p * jnp.where(p < 0, jnp.nan, 1).astype(p.dtype), where


def _label_mask(x, labels, where):
    """x, and where its label is; a bad label makes its row NaN and takes all of it."""
    y = class_indices(live(where, _checks.labels(x, labels)), x.shape[-1])
    x = x * jnp.where(y < 0, jnp.nan, 1).astype(x.dtype)[..., None]
    return x, live(where, is_class(y, x) | (y < 0)[..., None])


# --- log-probabilities --------------------------------------------------------------------------


def log_prob_stats(
    log_probs: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    where: _Mask = None,
) -> LogitStats:
    """The statistics of log-probabilities, taken at their word: nll is −log_probs[label].

    Nothing is normalised, so the log-normaliser is 0 and the gradient touches the label alone;
    where the rows do come out of a log-softmax, what reaches its input is the same.

    Args:
      log_probs: log-probabilities, float ``[..., num_classes]``.
      labels: class indices in ``[0, num_classes)``, any integer dtype, ``[...]``; one out of range
        makes its row NaN, value and gradient alike.
      where: bool ``[...]``; a False example is inert.

    Returns:
      :class:`~jaxent.LogitStats` of shape ``[...]``, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`~jaxent.softmax_stats`.

    Example:
      >>> print(f"{log_prob_stats(jnp.log(jnp.array([0.25, 0.75])), jnp.array(0)).nll:.4f}")
      1.3863
    """
    x = _checks.rows("log_probs", log_probs)
    where = _checks.where(where, x.shape[:-1], "log_probs without the class axis")
    x = live(where, x.astype(_checks.accumulator(x)))
    x, label = _label_mask(x, labels, where)
    nll = jnp.sum(jnp.where(label, -x, 0), -1)
    mean = _mean(x, live(where, x != -jnp.inf))
    return LogitStats(nll=nll, log_normalizer=jnp.zeros_like(nll), mean_logit=mean, mean_nll=-mean)


def pointwise_kl(
    log_probs: Float[Array, "*shape"],
    targets: Real[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """The terms of the Kullback–Leibler divergence, q (log q − log p), elementwise.

    ``pointwise_kl(log_probs, targets).sum(-1)`` is the divergence of log-probabilities taken at
    their word. For logits use :func:`~jaxent.kl_divergence`, which normalises them.

    Args:
      log_probs: float, any shape.
      targets: non-negative, the same shape; a negative one is NaN. 0 · log 0 is 0, also where
        ``log_probs`` is −inf, and a target of 0 has no gradient of its own.
      where: bool, the same shape; a False element is 0 and has no gradient, whatever it holds.

    Returns:
      terms, the same shape, float32 or wider.

    Raises:
      TypeError: ``log_probs`` not floating-point, ``targets`` not real, ``where`` not bool.
      ValueError: shapes differ.

    Example:
      >>> terms = pointwise_kl(jnp.log(jnp.array([0.0, 0.5, 0.5])), jnp.array([0.0, 1.0, 0.0]))
      >>> print(terms)
      [0.     0.6931 0.    ]
    """
    x, q, where = _pair("log_probs", log_probs, "targets", targets, where)
    q = jnp.where(q < 0, jnp.nan, q)
    return live(where, times(q, jnp.log(jnp.where(q == 0, 1, q)) - x))


def pointwise_kl_of_logs(
    log_probs: Float[Array, "*shape"],
    log_targets: Float[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """As :func:`pointwise_kl`, of the targets' logarithms: e^t (t − log p).

    Args:
      log_probs: float, any shape.
      log_targets: float, the same shape; −inf is a target of 0.
      where: bool, the same shape; a False element is 0 and has no gradient.

    Returns:
      terms, the same shape, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`pointwise_kl`.

    Example:
      >>> print(pointwise_kl_of_logs(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, -jnp.inf])))
      [0.6931 0.    ]
    """
    x, t, where = _pair("log_probs", log_probs, "log_targets", log_targets, where)
    zero = t == -jnp.inf
    t = jnp.where(zero, 0, t)
    return live(where, jnp.where(zero, 0, jnp.exp(t) * (t - jnp.where(zero, 0, x))))


def pointwise_generalized_kl(
    log_probs: Float[Array, "*shape"],
    targets: Real[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """The terms of the divergence of masses that need not sum to 1: q (log q − log p) + p − q.

    Args:
      log_probs: float, any shape.
      targets: non-negative, the same shape; a negative one is NaN.
      where: bool, the same shape; a False element is 0 and has no gradient.

    Returns:
      terms, the same shape, float32 or wider; none is negative.

    Raises:
      TypeError, ValueError: as :func:`pointwise_kl`.

    References:
      Boyd and Vandenberghe, *Convex Optimization*, 2004, page 90.

    Example:
      >>> print(pointwise_generalized_kl(jnp.log(jnp.array([1.0, 2.0])), jnp.array([1.0, 1.0])))
      [0.     0.3069]
    """
    x, q, where = _pair("log_probs", log_probs, "targets", targets, where)
    return live(where, pointwise_kl(x, q) + (jnp.exp(x) - q))


def _pair(first, x, second, y, where):
    """Two arrays of one shape in the first one's accumulation dtype, inert elements zeroed."""
    x = _checks.floats(first, x)
    y = _checks.elements(second, y, first, x.shape)
    where = _checks.where(where, x.shape, first)
    dtype = _checks.accumulator(x)
    return live(where, x.astype(dtype)), live(where, y.astype(dtype)), where


# --- independent classes ------------------------------------------------------------------------


def binary_prob_cross_entropy(
    probs: Float[Array, "*shape"],
    targets: Real[Array, "*shape"] | Bool[Array, "*shape"],
    *,
    where: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    r"""Cross-entropy of independent probabilities: :math:`-z \log p - (1 - z) \log (1 - p)`.

    Args:
      probs: in [0, 1], float, any shape; outside it is NaN.
      targets: in [0, 1], the same shape. 0 · log 0 is 0.
      where: bool, the same shape; a False element has loss 0 and no gradient.

    Returns:
      losses, the same shape, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`~jaxent.sigmoid_cross_entropy`.

    Example:
      >>> print(binary_prob_cross_entropy(jnp.array([0.0, 0.5]), jnp.array([0.0, 1.0])))
      [0.     0.6931]
    """
    p, z, where = _pair("probs", probs, "targets", targets, where)
    return live(where, _binary_prob(p, z))


def _binary_prob(p, z):
    p = p * jnp.where((p < 0) | (p > 1), jnp.nan, 1).astype(p.dtype)  # poisons the gradient too
    p_if, not_p_if = jnp.where((z == 0) & (p == 0), 1, p), jnp.where((z == 1) & (p == 1), 0, p)
    return -times(z, jnp.log(p_if)) - times(1 - z, jnp.log1p(-not_p_if))


def sigmoid_focal(
    logits: Float[Array, "*shape"],
    targets: Real[Array, "*shape"] | Bool[Array, "*shape"],
    *,
    gamma: ArrayLike,
    where: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    r"""Sigmoid focal loss of targets anywhere in [0, 1], elementwise.

    .. math::
        (1 - p_z)^\gamma \, \mathrm{sigmoid\_cross\_entropy}(x, z), \qquad
        1 - p_z = (1 - z)\, \sigma(x) + z\, \sigma(-x)

    For targets that are 0 or 1 this is ``focal(sigmoid_stats(logits, labels), gamma=gamma)``.

    Args:
      logits: float, any shape.
      targets: in [0, 1], the same shape; one that is exactly 0 or 1 has no gradient.
      gamma: a scalar ≥ 0. May be traced; differentiable.
      where: bool, the same shape; a False element has loss 0 and no gradient.

    Returns:
      losses, the same shape, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`~jaxent.sigmoid_cross_entropy` and :func:`~jaxent.focal`.

    References:
      ``optax.losses.sigmoid_focal_loss``, ``keras.losses.binary_focal_crossentropy``.

    Example:
      >>> print(sigmoid_focal(jnp.array([0.0, 3.0]), jnp.array([1.0, 0.25]), gamma=2.0))
      [0.1733 1.2125]
    """
    x, z, where = _pair("logits", logits, "targets", targets, where)
    is_hard, (up, down) = (z == 0) | (z == 1), log1p_exp_pair(x)
    hard = focal(LogitStats(jnp.where(z == 1, down, up), up, x), gamma=gamma)
    x = jnp.where(is_hard, 0, x)  # or 0 · inf would be in its gradient
    (up, down), (p, not_p) = log1p_exp_pair(x), sigmoid_pair(x)
    soft = _power(not_p * z + p * (1 - z), gamma) * (times(z, down) + times(1 - z, up))
    return live(where, jnp.where(is_hard, hard, soft))


def binary_prob_focal(
    probs: Float[Array, "*shape"],
    targets: Real[Array, "*shape"] | Bool[Array, "*shape"],
    *,
    gamma: ArrayLike,
    where: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """As :func:`sigmoid_focal`, of independent probabilities.

    Args:
      probs: in [0, 1], float, any shape; outside it is NaN.
      targets: in [0, 1], the same shape.
      gamma: a scalar ≥ 0. May be traced; differentiable.
      where: bool, the same shape; a False element has loss 0 and no gradient.

    Returns:
      losses, the same shape, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`sigmoid_focal`.

    Example:
      >>> print(binary_prob_focal(jnp.array([0.5, 1.0]), jnp.array([1.0, 1.0]), gamma=2.0))
      [0.1733 0.    ]
    """
    p, z, where = _pair("probs", probs, "targets", targets, where)
    return live(where, _power((1 - p) * z + p * (1 - z), gamma) * _binary_prob(p, z))


def _power(q, gamma):
    """q^γ for q in [0, 1]; at 0, where its slope may be infinite, without a gradient."""
    gamma = _checks.option("gamma", gamma, 0, float(jnp.finfo(q.dtype).max), q.dtype)
    return jnp.where(q == 0, (gamma == 0).astype(q.dtype), jnp.where(q == 0, 1, q) ** gamma)
