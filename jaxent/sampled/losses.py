"""Losses over a sample of the classes: the labels' rows, and those of a few negatives.

A sampled loss forms ``num_true + num_sampled`` logits an example in place of ``num_classes``, each
less the logarithm of its expected count. For training only: evaluate with all classes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxent import _checks
from jaxent.sampled._dot import dot
from jaxent.sampled.rows import Rows
from jaxent.sampled.samplers import Samples, class_ids
from jaxent.sigmoid import sigmoid_cross_entropy
from jaxent.stats import LogitStats, live, softmax_stats


def sampled_softmax_stats(
    hidden: Float[Array, "*batch features"],
    labels: Integer[Array, "*labels"],
    samples: Samples,
    rows: Rows,
    *,
    where: Bool[Array, "*labels"] | None = None,
    remove_accidental_hits: bool = True,
    subtract_log_q: bool = True,
) -> LogitStats:
    r"""The statistics of a softmax over the labels and the sampled classes.

    The logit of class c is :math:`h \cdot w_c + b_c - \log Q_c`, with Q its expected count: so the
    sum over the sample estimates the sum over all classes. The normaliser of one label y is

    .. math::
        e^{x_y - \log Q_y} + \sum_{s \in S,\; s \ne y} e^{x_s - \log Q_s}

    and every loss of :mod:`jaxent.losses` applies. The loss tends to be below that of the full
    softmax, and reaches it as a sample without replacement grows. With replacement, expected counts
    above 1 lower the label's own logit: its loss does not converge, and its gradient only with
    ``remove_accidental_hits=False``. What does converge there is a label that is in the sum for
    certain: ``samples._replace(expected_true=jnp.ones_like(samples.expected_true))``.

    Several labels an example, ``labels [..., num_true]``, are all columns of one softmax, and there
    are statistics for each: ``nll(s).mean(-1)`` is TensorFlow's loss (its targets are 1/num_true);
    where their number varies, mask the rest with ``where`` and take the masked mean. The cost of
    the statistics, not of the logits, then grows with num_true.

    Args:
      hidden: inputs of the last layer, float ``[..., D]``.
      labels: class indices, any integer dtype, ``[...]``, or ``[..., num_true]`` for several.
      samples: of a sampler; ids ``[num_sampled]`` for all examples or ``[..., num_sampled]`` for
        each.
      rows: of :func:`gather_rows`. Differentiate with respect to them and not to the table.
      where: bool, the labels' shape; a False label is inert: no column, statistics 0, and whatever
        it and its row hold (and the example's ``hidden``, where it has no other label) adds
        exactly nothing to any value or gradient.
      remove_accidental_hits: leave out sampled classes that are labels of the same example.
      subtract_log_q: correct the logits by log Q. False is the uncorrected "negative sampling".

    Returns:
      :class:`~jaxent.LogitStats` of the labels' shape, float32 (float64 for float64 inputs). NaN,
      with NaN gradients, where a label is out of range or its expected count is 0.

    Raises:
      TypeError: hidden or rows not floating-point, labels or ids not integer, ``where`` not bool.
      ValueError: shapes that do not fit each other; nothing is broadcast.

    References:
      ``tf.nn.sampled_softmax_loss``. Jean et al., `On Using Very Large Target Vocabulary
      <https://arxiv.org/abs/1412.2007>`_, 2015. Bengio and Senécal, *Quick Training of
      Probabilistic Neural Nets by Importance Sampling*, 2003.

    Example:
      >>> from jaxent import nll, weighted_mean
      >>> from jaxent.sampled import gather_rows, log_uniform
      >>> table = jax.random.normal(jax.random.key(0), (1000, 8))
      >>> hidden, labels = table[:2], jnp.array([0, 1])
      >>> samples = log_uniform(jax.random.key(1), labels, num_sampled=50, num_classes=1000)
      >>> def loss(hidden, rows):
      ...     return weighted_mean(nll(sampled_softmax_stats(hidden, labels, samples, rows)))
      >>> d_rows = jax.grad(loss, argnums=1)(hidden, gather_rows(table, labels, samples))
      >>> d_rows.true.shape, d_rows.sampled.shape  # and not [1000, 8]
      ((2, 8), (50, 8))
    """
    arguments = _arguments(hidden, labels, samples, rows, where)
    c = _columns(*arguments, remove_accidental_hits, subtract_log_q)
    logits = jnp.where(c.counts, c.logits, -jnp.inf)
    if arguments.labels.ndim < arguments.hidden.ndim:
        first = jnp.zeros_like(arguments.labels)
        return softmax_stats(logits, first, where=where)
    # each label has the same row of logits, and is its column of that number
    logits = jnp.broadcast_to(logits[..., None, :], (*c.live.shape, logits.shape[-1]))
    column = jnp.cumsum(jnp.ones_like(arguments.labels), -1) - 1
    return softmax_stats(logits, column, where=where)


def nce_loss(
    hidden: Float[Array, "*batch features"],
    labels: Integer[Array, "*labels"],
    samples: Samples,
    rows: Rows,
    *,
    where: Bool[Array, "*labels"] | None = None,
    remove_accidental_hits: bool = False,
    subtract_log_q: bool = True,
) -> Float[Array, "*batch"]:
    r"""Noise-contrastive estimation: tells labels from noise, one sigmoid a class.

    .. math::
        \ell(x_y - \log Q_y) + \sum_{s \in S} \ell(-(x_s - \log Q_s)),
        \qquad \ell(z) = \log(1 + e^{-z})

    Its gradient tends to that of the softmax as the sample grows, and the model learns to be
    normalised. Several labels an example have the target 1/(number of live labels) each, as in
    TensorFlow.

    Args:
      hidden: inputs of the last layer, float ``[..., D]``.
      labels: class indices, any integer dtype, ``[...]``, or ``[..., num_true]`` for several.
      samples: of a sampler; ids ``[num_sampled]`` or ``[..., num_sampled]``.
      rows: of :func:`gather_rows`. Differentiate with respect to them and not to the table.
      where: bool, the labels' shape; a False label has no column, and an example without any has
        loss 0 and no gradient, whatever it holds.
      remove_accidental_hits: leave out sampled classes that are labels of the same example
        ("sampled logistic"; plain NCE keeps them).
      subtract_log_q: correct the logits by log Q; False is word2vec's "negative sampling".

    Returns:
      losses ``[...]``, without the axis of several labels: the sum over labels and samples, in
      nats, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`sampled_softmax_stats`.

    References:
      ``tf.nn.nce_loss``. Gutmann and Hyvärinen, *Noise-contrastive Estimation*, 2010. Mnih and Teh,
      `A Fast and Simple Algorithm for Training Neural Probabilistic Language Models
      <https://arxiv.org/abs/1206.6426>`_, 2012.

    Example:
      >>> samples = Samples(jnp.array([1, 2]), jnp.array([0.5]), jnp.array([0.5, 0.5]))
      >>> rows = Rows(jnp.zeros([1, 4]), jnp.zeros([2, 4]))  # all logits are −log 0.5
      >>> losses = nce_loss(jnp.ones([1, 4]), jnp.array([0]), samples, rows)
      >>> print(losses)  # log(1 + 1/2) + 2 log(1 + 2)
      [2.6027]
    """
    arguments = _arguments(hidden, labels, samples, rows, where)
    c = _columns(*arguments, remove_accidental_hits, subtract_log_q)
    num_live = jnp.maximum(jnp.sum(c.live, -1, dtype=jnp.int32, keepdims=True), 1)
    target = live(c.live, jnp.broadcast_to(1 / num_live.astype(c.logits.dtype), c.live.shape))
    noise = jnp.zeros_like(c.logits[..., c.live.shape[-1] :])
    targets = jnp.concatenate([target, noise], -1)
    return sigmoid_cross_entropy(c.logits, targets, where=c.counts).sum(-1)


def in_batch_softmax_stats(
    hidden: Float[Array, "batch features"],
    candidates: Float[Array, "batch features"],
    ids: Integer[Array, " batch"] | None = None,
    *,
    expected: Float[Array, " batch"] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> LogitStats:
    r"""The statistics of a softmax over the batch: every other example's candidate is a negative.

    Row i has the logits :math:`h_i \cdot c_j - \log Q_j` and the label i. For retrieval, where a
    pair (query, item) brings its own item along. A temperature goes into ``hidden``.

    Args:
      hidden: queries, float ``[batch, D]``.
      candidates: the item of each query, float ``[batch, D]``.
      ids: which item each candidate is, integer ``[batch]``; other places of a query's own item are
        then left out. None: all are taken for different.
      expected: how often each item is to be expected in the batch, or its probability (a common
        factor changes nothing), ``[batch]``; None: no correction, which pushes popular items down.
      where: bool ``[batch]``; a False example is neither a query nor a candidate.

    Returns:
      :class:`~jaxent.LogitStats` ``[batch]``, float32 or wider.

    Raises:
      TypeError: not floating-point, ids not integer, ``where`` not bool.
      ValueError: shapes differ.

    References:
      Yi et al., *Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations*,
      2019. ``tfrs.tasks.Retrieval``.

    Example:
      >>> s = in_batch_softmax_stats(4 * jnp.eye(3), jnp.eye(3), jnp.array([5, 6, 5]))
      >>> print(s.nll)  # log(1 + e^-4), log(1 + 2 e^-4), log(1 + e^-4)
      [0.0181 0.036  0.0181]
    """
    hidden, candidates = _checks.floats("hidden", hidden), _checks.floats("candidates", candidates)
    if hidden.ndim != 2:
        raise ValueError(f"hidden must have shape [batch, D]; got {_checks.describe(hidden)}.")
    _same_shape("candidates", candidates, hidden.shape, "hidden")
    batch = hidden.shape[:1]
    where = _checks.where(where, batch, "hidden without the features")
    hidden, candidates = live(where, hidden), live(where, candidates)
    logits = dot("id,jd->ij", hidden, candidates)
    place = jnp.arange(batch[0], dtype=jnp.int32)
    counts = jnp.ones(logits.shape, bool)
    if ids is not None:
        item = class_ids("ids", ids)
        _same_shape("ids", item, batch, "hidden without the features")
        counts = (item[:, None] != item[None, :]) | (place[:, None] == place[None, :])
    if expected is not None:
        q = _checks.floats("expected", expected)
        _same_shape("expected", q, batch, "hidden without the features")
        logits = logits - _log_q(q, logits.dtype)[None, :]
    if where is not None:
        counts &= where[None, :]
    return softmax_stats(jnp.where(counts, logits, -jnp.inf), place, where=where)


def accidental_hits(
    labels: Integer[Array, "*batch num_true"], ids: Integer[Array, "*ids"]
) -> Bool[Array, "*batch num_sampled"]:
    """Where a sampled class is one of the example's labels.

    Args:
      labels: class indices, ``[..., num_true]``.
      ids: sampled classes, ``[num_sampled]`` or ``[..., num_sampled]``.

    Returns:
      bool ``[..., num_sampled]``.

    References:
      ``tf.nn.compute_accidental_hits``.

    Example:
      >>> print(accidental_hits(jnp.array([[1, 4], [2, 2]]), jnp.array([4, 5, 1])))
      [[ True False  True]
       [False False False]]
    """
    y, drawn = class_ids("labels", labels), class_ids("ids", ids)
    drawn = drawn.reshape((1,) * (y.ndim - drawn.ndim) + drawn.shape)
    return jnp.any(y[..., :, None] == drawn[..., None, :], -2)


# --- the columns that both losses are of ----------------------------------------------------------


class _Columns(NamedTuple):
    logits: jax.Array  # [..., num_true + num_sampled], corrected; the labels first
    counts: jax.Array  # bool, of the same shape: which columns there are
    live: jax.Array  # bool [..., num_true]: which labels there are


@partial(jax.jit, static_argnums=(6, 7))
def _columns(hidden, labels, ids, expected, rows, where, remove_accidental_hits, subtract_log_q):
    y, (q_true, q_sampled) = labels, expected
    where = jnp.full_like(y, True, dtype=bool) if where is None else where
    if y.ndim < hidden.ndim:  # one label an example is an axis of one label
        y, where, q_true = y[..., None], where[..., None], q_true[..., None]
        bias = rows.true_bias
        rows = rows._replace(
            true=rows.true[..., None, :], true_bias=None if bias is None else bias[..., None]
        )
    # What is inert is zeroed where a product would let its NaN through; the rest is masked below.
    example = where.any(-1)
    hidden, true_rows = live(example, hidden), live(where, rows.true)
    own = "...sd" if ids.ndim > 1 else "sd"  # each example may have negatives of its own
    true = dot("...td,...d->...t", true_rows, hidden)
    sampled = dot(f"{own},...d->...s", rows.sampled, hidden)
    if rows.true_bias is not None:
        true += rows.true_bias.astype(true.dtype)
        sampled += _along(rows.sampled_bias, sampled).astype(sampled.dtype)
    known = (y >= 0) & ~jnp.isnan(q_true)  # a sampler says NaN of an unknown label
    true += jnp.where(known, 0, jnp.nan).astype(true.dtype)  # passes the NaN gradient on
    if subtract_log_q:
        true -= _log_q(q_true, true.dtype)
        sampled -= _along(_log_q(q_sampled, sampled.dtype), sampled)

    found = jnp.broadcast_to(example[..., None], sampled.shape)
    if remove_accidental_hits:
        found &= ~accidental_hits(jnp.where(where, y, -1), ids)
    logits = jnp.concatenate([true, sampled], -1)
    return _Columns(logits, jnp.concatenate([where, found], -1), where)


def _log_q(expected, dtype):
    """log of expected counts, NaN where a count is not positive."""
    q = jax.lax.stop_gradient(expected).astype(dtype)
    return jnp.log(jnp.where(q > 0, q, jnp.nan))


def _along(x, like):
    """x with axes of size 1 in front, up to the rank of another."""
    return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)


# --- arguments ------------------------------------------------------------------------------------


class _Arguments(NamedTuple):
    hidden: jax.Array
    labels: jax.Array  # int32, −1 where out of range
    ids: jax.Array  # int32
    expected: tuple[jax.Array, jax.Array]
    rows: Rows
    where: jax.Array | None


def _arguments(hidden, labels, samples, rows, where):
    hidden = _checks.floats("hidden", hidden)
    y = class_ids("labels", labels)
    batch = hidden.shape[:-1]
    if hidden.ndim == 0 or y.shape not in (batch, (*batch, *y.shape[-1:])):
        raise ValueError(
            f"labels must have the shape of hidden without the features, {list(batch)}, or one "
            f"axis more for several labels; got labels {list(y.shape)} and hidden "
            f"{_checks.describe(hidden)}."
        )
    where = _checks.where(where, y.shape, "labels")

    drawn, *expected = samples
    ids = class_ids("samples.ids", drawn)
    if ids.ndim == 0 or ids.shape[:-1] not in ((), batch):
        raise ValueError(
            "samples.ids must have shape [num_sampled], or one list an example, "
            f"{[*batch, 'num_sampled']}; got {list(ids.shape)}."
        )
    q_true, q_sampled = map(
        _checks.floats, ("samples.expected_true", "samples.expected_sampled"), expected
    )
    _same_shape("samples.expected_true", q_true, y.shape, "labels")
    _same_shape("samples.expected_sampled", q_sampled, ids.shape, "samples.ids")

    true, sampled, *biases = rows
    features = hidden.shape[-1:]
    true, sampled = _checks.floats("rows.true", true), _checks.floats("rows.sampled", sampled)
    _same_shape("rows.true", true, y.shape + features, "labels and hidden's features")
    _same_shape("rows.sampled", sampled, ids.shape + features, "samples.ids and hidden's features")
    if (biases[0] is None) != (biases[1] is None):
        raise ValueError("rows must have both true_bias and sampled_bias, or neither.")
    if biases[0] is not None:
        biases = list(map(_checks.floats, ("rows.true_bias", "rows.sampled_bias"), biases))
        _same_shape("rows.true_bias", biases[0], y.shape, "labels")
        _same_shape("rows.sampled_bias", biases[1], ids.shape, "samples.ids")
    return _Arguments(hidden, y, ids, (q_true, q_sampled), Rows(true, sampled, *biases), where)


def _same_shape(name, x, wanted, like):
    if x.shape != tuple(wanted):
        raise _checks.shape_error(name, x, tuple(wanted), like)
