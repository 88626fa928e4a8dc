"""Losses: functions of :class:`~jaxent.stats.LogitStats`, elementwise, one number per example.

They may not know of weights, masks, axes or reductions. Terms add: ``nll(s) + 1e-4 * z_loss(s)``.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jaxent import _checks
from jaxent._numerics import along, elementwise, one_minus_exp, polynomial, times
from jaxent.stats import LogitStats, softmax_nll


@_checks.statistics
def nll(s: LogitStats) -> Float[Array, "*batch"]:
    r"""Cross-entropy, the negative log-likelihood of the label: :math:`-\log p_y`, in nats.

    Args:
      s: statistics ``[...]`` from any source.

    Returns:
      losses ``[...]``, at least float32.

    Example:
      >>> from jaxent import softmax_stats
      >>> s = softmax_stats(jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.array(1))
      >>> print(f"{nll(s):.4f}")  # -log 0.3
      1.2040
    """
    return s.nll


def cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Softmax cross-entropy of integer labels, one loss an example.

    Shorthand for ``nll(softmax_stats(logits, labels, where=where))``. Weights and reductions are
    not options here: ``weighted_mean(cross_entropy(logits, labels), weights)``.

    Args:
      logits: unnormalised log-probabilities, float ``[..., num_classes]``.
      labels: class indices in ``[0, num_classes)``, any integer dtype, ``[...]``.
      where: bool ``[...]``; a False example has loss 0 and no gradient, whatever it holds.

    Returns:
      losses ``[...]`` in nats, float32 (float64 for float64 logits); NaN, with a NaN gradient,
      where a label is out of range.

    Raises:
      TypeError: logits not floating-point, labels not integer, ``where`` not bool.
      ValueError: ``labels`` or ``where`` not of shape ``logits.shape[:-1]``, or no classes.

    References:
      ``tf.nn.sparse_softmax_cross_entropy_with_logits``,
      ``optax.softmax_cross_entropy_with_integer_labels``.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
      >>> labels = jnp.array([0, 2])
      >>> print(cross_entropy(logits, labels))  # -log 0.5, -log 0.7
      [0.6931 0.3567]
      >>> print(jax.grad(lambda x: cross_entropy(x, labels).sum())(logits))
      [[-0.5  0.3  0.2]
       [ 0.1  0.2 -0.3]]
    """
    return softmax_nll(logits, labels, where)


@_checks.statistics
def smoothed_nll(s: LogitStats, *, label_smoothing: ArrayLike) -> Float[Array, "*batch"]:
    r"""Cross-entropy with label smoothing, uniform over all classes, the true one included.

    .. math::
        (1 - \varepsilon) (-\log p_y) + \frac{\varepsilon}{C} \sum_c -\log p_c

    Classes ruled out by a −inf logit take no share of the smoothing.

    Args:
      s: statistics ``[...]``.
      label_smoothing: ε, a scalar in [0, 1]. May be traced; differentiable.

    Returns:
      losses ``[...]``.

    Raises:
      ValueError: ``label_smoothing`` outside [0, 1] (NaN losses where it is traced).

    References:
      Szegedy et al., `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_,
      2016. The ε/C convention is that of PyTorch, Keras, TF1 and Optax; T5X, fairseq and Megatron
      spread ε over the other classes: use ``label_smoothing=ε·C/(C−1)`` for theirs.

    Example:
      >>> from jaxent import softmax_stats
      >>> s = softmax_stats(jnp.array([4.0, 0.0, 0.0, 0.0]), jnp.array(0))
      >>> print(f"{nll(s):.4f} {smoothed_nll(s, label_smoothing=0.1):.4f}")
      0.0535 0.3535
    """
    epsilon = _checks.option("label_smoothing", label_smoothing, 0, 1, s.nll.dtype)
    return times(epsilon, s.mean_nll) + times(1 - epsilon, s.nll)


@_checks.statistics
def z_loss(s: LogitStats) -> Float[Array, "*batch"]:
    r"""The square of the log-normaliser, :math:`(\log \sum_c e^{x_c})^2`.

    Added with a small factor it keeps logits from drifting: ``nll(s) + 1e-4 * z_loss(s)``.

    Args:
      s: statistics ``[...]``.

    Returns:
      losses ``[...]``, in nats squared.

    References:
      Chowdhery et al., `PaLM <https://arxiv.org/abs/2204.02311>`_, 2022, section 5.

    Example:
      >>> from jaxent import softmax_stats
      >>> s = softmax_stats(jnp.array([0.0, 0.0]), jnp.array(0))
      >>> print(f"{z_loss(s):.4f}")  # (log 2) ** 2
      0.4805
    """
    return jnp.square(s.log_normalizer)


@_checks.statistics
def focal(s: LogitStats, *, gamma: ArrayLike) -> Float[Array, "*batch"]:
    r"""Focal loss: :math:`(1 - p_y)^\gamma \, (-\log p_y)`. Down-weights easy examples.

    The probability is the plain one: class weights multiply the result (the published ``alpha``),
    they do not enter p.

    Args:
      s: statistics ``[...]``; of :func:`~jaxent.softmax_stats` for the multi-class loss, of
        :func:`~jaxent.sigmoid_stats` for the binary one.
      gamma: the exponent, a scalar ≥ 0; 0 is cross-entropy. May be traced; differentiable.

    Returns:
      losses ``[...]``.

    Raises:
      ValueError: ``gamma`` negative or not finite (NaN losses where it is traced).

    References:
      Lin et al., `Focal Loss for Dense Object Detection <https://arxiv.org/abs/1708.02002>`_, 2017.

    Example:
      >>> from jaxent import softmax_stats
      >>> s = softmax_stats(jnp.log(jnp.array([0.6, 0.4])), jnp.array(0))
      >>> print(f"{focal(s, gamma=2.0):.5f}")  # 0.4 ** 2 * -log 0.6
      0.08173
    """
    gamma = _checks.option("gamma", gamma, 0, float(jnp.finfo(s.nll.dtype).max), s.nll.dtype)
    return elementwise(_focal)(s.nll, gamma)


# With u = −log p_y and q = 1 − e^(−u): f = u q^γ and, as dq/du = e^(−u),
#     ∂f/∂u = q^γ (1 + γ r),   r = u e^(−u) / q = u / (e^u − 1) → 1 as u → 0
#     ∂f/∂γ = u q^γ log q
# Plain autodiff divides by q and meets 0 · inf at p_y = 1 where γ < 1; r is smooth.


@jax.custom_jvp
def _focal(u, gamma):
    return u * _other_prob_power(u, gamma)


@_focal.defjvp
def _focal_jvp(primals, tangents):
    (u, gamma), (du, dgamma) = primals, tangents
    slope = _other_prob_power(u, gamma) * (1 + gamma * _bernoulli(u))
    return _focal(u, gamma), slope * du + _focal_by_gamma(u, gamma) * dgamma


@jax.custom_jvp
def _focal_by_gamma(u, gamma):
    """u q^γ log q."""
    return times(_other_prob_power(u, gamma) * _log_other_prob(u), u)


@_focal_by_gamma.defjvp
def _focal_by_gamma_jvp(primals, tangents):
    # As u d(log q)/du = r: a normal number where u q^γ is none. log q is taken as 0 at u = 0.
    (u, gamma), (du, dgamma) = primals, tangents
    power, r, log = _other_prob_power(u, gamma), _bernoulli(u), _log_other_prob(u)
    slope = power * (jnp.where(u == 0, 0, log) * (1 + gamma * r) + r)
    by_gamma = times(power * jnp.square(log), u)
    return _focal_by_gamma(u, gamma), slope * du + by_gamma * dgamma


@jax.custom_jvp
def _other_prob_power(u, gamma):
    """q^γ."""
    return one_minus_exp(u) ** gamma


@_other_prob_power.defjvp
def _other_prob_power_jvp(primals, tangents):
    # d q^γ = γ q^(γ−1) e^(−u) du + q^γ log q dγ, taken as 0 at q = 0, where it may be infinite.
    (u, gamma), (du, dgamma) = primals, tangents
    power = _other_prob_power(u, gamma)
    slope = gamma * one_minus_exp(jnp.where(u == 0, 1, u)) ** (gamma - 1) * jnp.exp(-u)
    by_gamma = power * _log_other_prob(u)
    return power, jnp.where(u == 0, 0, slope) * du + jnp.where(u == 0, 0, by_gamma) * dgamma


def _log_other_prob(u):
    """log q, to full relative precision; any finite number at q = 0."""
    large, small = jnp.maximum(u, 0.5), jnp.where((u == 0) | (u > 0.5), 0.5, u)
    return jnp.where(u > 0.5, jnp.log1p(-jnp.exp(-large)), jnp.log(one_minus_exp(small)))


@jax.custom_jvp
def _bernoulli(u):
    """u / (e^u − 1), which generates the Bernoulli numbers; 1 at 0, 0 at inf."""
    safe = jnp.where(u == 0, 1, u)
    return jnp.where(u == 0, 1, jnp.minimum(safe, 1e3) * jnp.exp(-safe) / one_minus_exp(safe))


@_bernoulli.defjvp
def _bernoulli_jvp(primals, tangents):
    # r' = r (1 − r − u) / u; near 0, where that cancels, r = Σ B_k u^k / k! term by term.
    (u,), (du,) = primals, tangents
    r = _bernoulli(u)
    series = polynomial(_BERNOULLI_SLOPE, jnp.minimum(u, 0.5))
    large = jnp.where(u < 0.5, 0.5, jnp.minimum(u, 1e3))  # no kink at 0.5
    slope = jnp.where(u < 0.5, series, _bernoulli(large) * (1 - _bernoulli(large) - large) / large)
    return r, slope * du


# k B_k / k! for k = 14 … 1
_BERNOULLI_SLOPE = (
    *(14 * (7 / 6) / math.factorial(14), 0.0),
    *(12 * (-691 / 2730) / math.factorial(12), 0.0),
    *(10 * (5 / 66) / math.factorial(10), 0.0),
    *(8 * (-1 / 30) / math.factorial(8), 0.0),
    *(6 * (1 / 42) / math.factorial(6), 0.0),
    *(4 * (-1 / 30) / math.factorial(4), 0.0),
    *(2 * (1 / 6) / math.factorial(2), -1 / 2),
)


@_checks.statistics
def poly1(s: LogitStats, *, epsilon: ArrayLike) -> Float[Array, "*batch"]:
    r"""Poly-1 loss: :math:`-\log p_y + \varepsilon (1 - p_y)`.

    Args:
      s: statistics ``[...]``.
      epsilon: the weight of the first polynomial term, a scalar ≥ −1 (below, confident examples
        would be pushed away). May be traced; differentiable.

    Returns:
      losses ``[...]``.

    Raises:
      ValueError: ``epsilon`` below −1 or not finite (NaN losses where it is traced).

    References:
      Leng et al., `PolyLoss <https://arxiv.org/abs/2204.12511>`_, 2022;
      ``optax.losses.poly_loss_cross_entropy``, whose default is ``epsilon=2.0``.

    Example:
      >>> from jaxent import softmax_stats
      >>> s = softmax_stats(jnp.log(jnp.array([0.6, 0.4])), jnp.array(0))
      >>> print(f"{poly1(s, epsilon=2.0):.4f}")  # -log 0.6 + 2 * 0.4
      1.3108
    """
    epsilon = _checks.option("epsilon", epsilon, -1, float(jnp.finfo(s.nll.dtype).max), s.nll.dtype)
    return _poly1(s.nll, epsilon)


# With u = −log p_y and q = 1 − e^(−u): f = u + ε q, ∂f/∂u = 1 + ε e^(−u), ∂f/∂ε = q. Near ε = −1
# both cancel at small u; there f = (1 + ε) u − ε (u − q) and ∂f/∂u = q + (1 + ε) e^(−u), with u − q
# from its series Σ_{k≥2} (−u)^k / k!.


@jax.custom_jvp
def _poly1(u, epsilon):
    small = jnp.minimum(u, 0.5)
    coefficients = [(-1) ** k / math.factorial(k + 2) for k in range(8, -1, -1)]
    series = jnp.square(small) * polynomial(coefficients, small)
    q = one_minus_exp(u)
    excess = jnp.where(u < 0.5, series, u - q)
    return jnp.where(epsilon < -0.5, times(1 + epsilon, u) - epsilon * excess, u + epsilon * q)


@_poly1.defjvp
def _poly1_jvp(primals, tangents):
    (u, epsilon), (du, d_epsilon) = primals, tangents
    p, q = jnp.exp(-u), one_minus_exp(u)
    slope = jnp.where(epsilon < -0.5, q + (1 + epsilon) * p, 1 + epsilon * p)
    return _poly1(u, epsilon), slope * du + q * d_epsilon


@_checks.statistics
def generalized_cross_entropy(s: LogitStats, *, q: ArrayLike) -> Float[Array, "*batch"]:
    r"""Generalised cross-entropy :math:`(1 - p_y^q) / q`, robust to wrong labels.

    From cross-entropy (q = 0, the limit) to the mean absolute error (q = 1).

    Args:
      s: statistics ``[...]``.
      q: a scalar in [0, 1]. May be traced; differentiable.

    Returns:
      losses ``[...]``, at most 1/q.

    Raises:
      ValueError: ``q`` outside [0, 1] (NaN losses where it is traced).

    References:
      Zhang and Sabuncu, `Generalized Cross Entropy Loss <https://arxiv.org/abs/1805.07836>`_, 2018.

    Example:
      >>> from jaxent import softmax_stats
      >>> s = softmax_stats(jnp.log(jnp.array([0.25, 0.75])), jnp.array(0))
      >>> print(f"{generalized_cross_entropy(s, q=0.5):.4f}")  # (1 - 0.25 ** 0.5) / 0.5
      1.0000
    """
    return _generalized(s.nll, _checks.option("q", q, 0, 1, s.nll.dtype))


# With u = −log p_y and t = q u: f = (1 − e^(−t)) / q, u at q = 0, and
#     ∂f/∂u = e^(−t)
#     ∂f/∂q = −(1 − (1 + t) e^(−t)) / q² = −u² Σ_k (k + 1)/(k + 2)! (−t)^k,
# the series where the closed form cancels.


@jax.custom_jvp
def _generalized(u, q):
    t = times(q, u)
    ratio = jnp.where(t == 0, 1, one_minus_exp(t) / jnp.where(t == 0, 1, t))
    return jnp.where(t < 1, u * ratio, one_minus_exp(t) / jnp.where(q == 0, 1, q))


@partial(_generalized.defjvp, symbolic_zeros=True)
def _generalized_jvp(primals, tangents):
    (u, q), (du, dq) = primals, tangents
    t = times(q, u)
    small = t < 0.5
    coefficients = [(k + 1) / math.factorial(k + 2) for k in range(13, -1, -1)]
    u_small = jnp.where(small, u, 0)
    series = jnp.square(u_small) * polynomial(coefficients, times(-q, u_small))
    large = jnp.where(small, 1, jnp.minimum(t, 1e3))
    closed = (1 - (1 + large) * jnp.exp(-large)) / jnp.square(jnp.where(small, 1, q))
    by_q = -jnp.where(small, series, closed)
    return _generalized(u, q), along((jnp.exp(-t), du), (by_q, dq))
