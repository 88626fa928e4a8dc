"""Adaptive softmax: frequent classes in a short head, the rare ones in clusters of fewer features.

With the classes numbered by falling frequency, the head holds the first ``cutoffs[0]`` and one
entry for each cluster; the label's probability is the head's, or the cluster's times the class's
within it. A model of its own, exact for what it is: a source of losses, not an estimate.

Shapes are static: every cluster is computed for every example, with an inert row where the label
is not in it. So the saving is in features (cluster i has ``D / div_value^i``), not in examples.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from jaxent import _checks
from jaxent.sampled._dot import dot
from jaxent.stats import LogitStats, class_indices, live, softmax_stats


class AdaptiveParams(NamedTuple):
    """The weights of an adaptive softmax; their shapes say where the clusters are. A pytree.

    Attributes:
      head: ``[D, shortlist + clusters]``: the frequent classes, then an entry a cluster.
      tails: for each cluster a pair ``[D, d_i]``, ``[d_i, size_i]``.
      head_bias: ``[shortlist + clusters]`` or None.
    """

    head: Float[Array, "features entries"]
    tails: tuple[tuple[Float[Array, "features d"], Float[Array, "d size"]], ...]
    head_bias: Float[Array, " entries"] | None = None

    @property
    def starts(self) -> tuple[int, ...]:
        """The first class of each cluster, and the number of classes at the end."""
        starts = [self.head.shape[-1] - len(self.tails)]
        for _, up in self.tails:
            starts.append(starts[-1] + up.shape[-1])
        return tuple(starts)


def adaptive_softmax_params(
    key: PRNGKeyArray,
    num_features: int,
    num_classes: int,
    *,
    cutoffs: Sequence[int],
    div_value: float = 4.0,
    head_bias: bool = False,
    dtype=jnp.float32,
) -> AdaptiveParams:
    """Initial weights, uniform in ±1/√(inputs), as in PyTorch.

    Args:
      key: a key of ``jax.random``.
      num_features: D, the size of ``hidden``.
      num_classes: a Python integer, above the last cutoff.
      cutoffs: increasing class numbers at which the clusters start; the first is the size of the
        shortlist.
      div_value: cluster i (from 1) has ``D // div_value**i`` features, at least 1.
      head_bias: whether the head has a bias, which starts in the same range.
      dtype: of the weights.

    Returns:
      :class:`AdaptiveParams`.

    Raises:
      ValueError: cutoffs not increasing between 1 and ``num_classes − 1``, or ``div_value`` ≤ 0.

    References:
      ``torch.nn.AdaptiveLogSoftmaxWithLoss``.

    Example:
      >>> p = adaptive_softmax_params(jax.random.key(0), 16, 100, cutoffs=[10, 40])
      >>> jax.tree.map(jnp.shape, p)
      AdaptiveParams(head=(16, 12), tails=(((16, 4), (4, 30)), ((16, 1), (1, 60))), head_bias=None)
    """
    edges = [0, *cutoffs, _checks.num_classes(num_classes)]
    if len(edges) < 3 or any(a >= b for a, b in pairwise(edges)):
        raise ValueError(
            f"cutoffs must increase, between 1 and num_classes - 1 = {num_classes - 1}; "
            f"got {list(cutoffs)}."
        )
    if not div_value > 0:
        raise ValueError(f"div_value must be positive; got {div_value}.")

    def weight(name, shape, inputs=num_features):
        bound = 1 / math.sqrt(inputs)
        return jax.random.uniform(jax.random.fold_in(key, name), shape, dtype, -bound, bound)

    entries = edges[1] + len(edges) - 2
    tails = []
    for i, (start, end) in enumerate(pairwise(edges[1:]), 1):
        d = max(1, int(num_features // div_value**i))
        tails.append((weight(2 * i, (num_features, d)), weight(2 * i + 1, (d, end - start), d)))
    bias = weight(1, (entries,)) if head_bias else None
    return AdaptiveParams(weight(0, (num_features, entries)), tuple(tails), bias)


def adaptive_softmax_stats(
    hidden: Float[Array, "*batch features"],
    params: AdaptiveParams,
    labels: Integer[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> LogitStats:
    r"""The statistics of an adaptive softmax, for every loss of :mod:`jaxent.losses`.

    .. math::
        -\log p_y = -\log p_y^{head} \quad\text{or}\quad
        -\log p_c^{head} - \log p_y^{c} \;\text{ for } y \text{ in cluster } c

    A model of probabilities: its logits are the log-probabilities. So ``log_normalizer`` is 0 (and
    a z-loss nothing), and ``mean_logit`` is the mean log-probability of all classes, which label
    smoothing needs and which costs nothing where no loss asks for it.

    Args:
      hidden: float ``[..., D]``.
      params: of :func:`adaptive_softmax_params`, or of a trained model.
      labels: classes numbered by falling frequency, any integer dtype, ``[...]``.
      where: bool ``[...]``; False makes an example inert, whatever it holds.

    Returns:
      :class:`~jaxent.LogitStats` ``[...]``, float32 (float64 for float64 inputs); NaN, value and
      gradient, where a label is out of range.

    Raises:
      TypeError: hidden not floating-point, labels not integer, ``where`` not bool.
      ValueError: shapes that do not fit.

    References:
      Grave et al., `Efficient softmax approximation for GPUs <https://arxiv.org/abs/1609.04309>`_,
      2017. ``torch.nn.AdaptiveLogSoftmaxWithLoss``, whose ``output`` is ``-nll``.

    Example:
      >>> from jaxent import nll, smoothed_nll
      >>> p = adaptive_softmax_params(jax.random.key(0), 16, 100, cutoffs=[10, 40])
      >>> s = adaptive_softmax_stats(jnp.zeros([2, 16]), p, jnp.array([3, 50]))
      >>> print(nll(s))  # log 12; log 12 + log 60, for 50 is one of 60 in its cluster
      [2.4849 6.5793]
    """
    hidden = _hidden(hidden, params)
    y = _labels(hidden, labels)
    where = _checks.where(where, y.shape, "labels")
    hidden, y = live(where, hidden), live(where, y)
    starts, num_classes = params.starts, params.starts[-1]
    y = class_indices(y, num_classes)

    logits = _head(hidden, params)
    head = jax.nn.log_softmax(logits, -1)
    entry, nll, log_prob = y, 0.0, jnp.sum(head[..., : starts[0]], -1)
    for i, (start, end) in enumerate(pairwise(params.starts)):
        tail, inside = _tail(hidden, params.tails[i]), (y >= start) & (y < end)
        entry, place = jnp.where(inside, starts[0] + i, entry), jnp.where(inside, y - start, 0)
        nll += softmax_stats(tail, place, where=inside).nll
        log_prob += (end - start) * (head[..., starts[0] + i] - softmax_stats(tail, place).mean_nll)
    nll += softmax_stats(logits, entry, where=where).nll
    return LogitStats(nll, jnp.zeros_like(nll), live(where, log_prob / num_classes))


def adaptive_softmax_log_prob(
    hidden: Float[Array, "*batch features"], params: AdaptiveParams
) -> Float[Array, "*batch classes"]:
    """The log-probabilities of all classes.

    Args:
      hidden: float ``[..., D]``.
      params: the weights.

    Returns:
      ``[..., num_classes]``, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`adaptive_softmax_stats`.

    References:
      ``torch.nn.AdaptiveLogSoftmaxWithLoss.log_prob``.

    Example:
      >>> p = adaptive_softmax_params(jax.random.key(0), 8, 5, cutoffs=[2])
      >>> print(jnp.exp(adaptive_softmax_log_prob(jnp.zeros(8), p)))
      [0.3333 0.3333 0.1111 0.1111 0.1111]
    """
    hidden = _hidden(hidden, params)
    shortlist = params.starts[0]
    head = jax.nn.log_softmax(_head(hidden, params), -1)
    parts = [head[..., :shortlist]]
    for i, tail in enumerate(params.tails):
        cluster = head[..., shortlist + i, None]
        parts.append(cluster + jax.nn.log_softmax(_tail(hidden, tail), -1))
    return jnp.concatenate(parts, -1)


def adaptive_softmax_predict(
    hidden: Float[Array, "*batch features"], params: AdaptiveParams
) -> Integer[Array, "*batch"]:
    """The most probable class of all, the first of equals.

    Args:
      hidden: float ``[..., D]``.
      params: the weights.

    Returns:
      int32 ``[...]``.

    Raises:
      TypeError, ValueError: as :func:`adaptive_softmax_stats`.

    References:
      ``torch.nn.AdaptiveLogSoftmaxWithLoss.predict``.

    Example:
      >>> head = jnp.array([[0.0, 1.0, 5.0]])  # two classes and a cluster of two
      >>> p = AdaptiveParams(head, ((jnp.array([[1.0]]), jnp.array([[0.0, 3.0]])),))
      >>> print(adaptive_softmax_predict(jnp.array([[1.0], [-1.0]]), p))
      [3 0]
    """
    hidden = _hidden(hidden, params)
    shortlist = params.starts[0]
    head = jax.nn.log_softmax(_head(hidden, params), -1)
    best, winner = _largest(head[..., :shortlist])
    for i, start in enumerate(params.starts[:-1]):
        inside, place = _largest(jax.nn.log_softmax(_tail(hidden, params.tails[i]), -1))
        log_prob = head[..., shortlist + i] + inside
        winner = jnp.where(log_prob > best, start + place, winner)
        best = jnp.maximum(best, log_prob)
    return winner


def _largest(x):
    return jnp.max(x, -1), jnp.argmax(x, -1).astype(jnp.int32)


# --- the parts ------------------------------------------------------------------------------------


def _head(hidden, params):
    logits = dot("...d,de->...e", hidden, params.head)
    if params.head_bias is None:
        return logits
    bias = params.head_bias.astype(logits.dtype)
    return logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)


def _tail(hidden, tail):
    down, up = tail
    narrow = dot("...d,de->...e", hidden, down)
    return dot("...d,de->...e", narrow.astype(down.dtype), up)


# --- arguments ------------------------------------------------------------------------------------


def _hidden(value: ArrayLike, params: AdaptiveParams) -> jax.Array:
    x = _checks.floats("hidden", value)
    features = params.head.shape[0]
    if x.shape[-1:] != (features,):
        raise ValueError(
            f"hidden must have shape [..., {features}], the head's features; "
            f"got {_checks.describe(x)}."
        )
    return x


def _labels(hidden, value):
    y = _checks.indices("labels", value)
    if y.shape != hidden.shape[:-1]:
        raise _checks.shape_error("labels", y, hidden.shape[:-1], "hidden without the features")
    return y
