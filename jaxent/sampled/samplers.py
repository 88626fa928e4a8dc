"""Samplers of classes: which ones, and how often each was to be expected among them.

A sampled loss stands in for a sum over all classes, and needs the expected counts to weigh what it
sees. All are those of TensorFlow's candidate samplers, with the random key in the open. A sampler
is a distribution with two methods, ``draw`` and ``prob``; everything else is common to all.
"""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray, Real

from jaxent import _checks
from jaxent.stats import class_indices, live


class Samples(NamedTuple):
    """Sampled classes and expected counts, by which a loss corrects its logits.

    Attributes:
      ids: classes, int32 ``[num_sampled]``, one sample for all examples; ``[..., num_sampled]``
        gives each example its own (``jax.vmap`` a sampler over keys and labels).
      expected_true: how often each label was to be expected among the ids, the labels' shape; NaN
        where a label is out of range.
      expected_sampled: how often each of the ids was, the shape of ``ids``.
    """

    ids: Integer[Array, "*ids"]
    expected_true: Float[Array, "*labels"]
    expected_sampled: Float[Array, "*ids"]


def uniform(
    key: PRNGKeyArray,
    labels: Integer[Array, "*labels"],
    *,
    num_sampled: int,
    num_classes: int,
    unique: bool = True,
) -> Samples:
    """Samples all classes alike: p = 1 / num_classes.

    Args:
      key: a key of ``jax.random``.
      labels: class indices, any shape; they are what expected counts are asked for, and have no
        influence on the sample.
      num_sampled: how many ids, a Python integer ≥ 1.
      num_classes: ids are in ``[0, num_classes)``, a Python integer ≥ 1.
      unique: True samples without replacement (see :func:`log_uniform`).

    Returns:
      :class:`Samples`.

    Raises:
      TypeError: labels not integer, a number not a Python integer, no key.
      ValueError: ``num_sampled > num_classes`` without replacement.

    References:
      ``tf.random.uniform_candidate_sampler``.

    Example:
      >>> labels = jnp.array([3, 7])
      >>> s = uniform(jax.random.key(0), labels, num_sampled=2, num_classes=10, unique=False)
      >>> print(s.expected_true, s.expected_sampled)
      [0.2 0.2] [0.2 0.2]
    """
    return _sample(key, labels, _Uniform(_checks.num_classes(num_classes)), num_sampled, unique)


# Static: two classes of one field, given to jax.tree_util.register_dataclass, are one structure to
# JAX, and about one call in a hundred found the other's compilation.
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Uniform:
    num_classes: int

    def draw(self, key, shape):
        return jax.random.randint(key, shape, 0, self.num_classes, jnp.int32)

    def prob(self, ids):
        return jnp.full_like(ids, 1 / self.num_classes, dtype=float)


def log_uniform(
    key: PRNGKeyArray,
    labels: Integer[Array, "*labels"],
    *,
    num_sampled: int,
    num_classes: int,
    unique: bool = True,
) -> Samples:
    r"""Samples by Zipf's law: :math:`p_k = \log\frac{k+2}{k+1} / \log(\mathrm{num\_classes} + 1)`.

    For classes numbered by falling frequency, as the words of a vocabulary mostly are. It needs no
    table, and its cost does not depend on ``num_classes``.

    The expected count of a class of probability p is :math:`p \cdot \mathrm{num\_sampled}` with
    replacement. Without, it is TensorFlow's :math:`1 - (1 - p)^{\mathrm{tries}}`: tries is the
    number of draws it took to find ``num_sampled`` different classes, and so random itself.

    Args:
      key: a key of ``jax.random``.
      labels: class indices, any shape; they are what expected counts are asked for, and have no
        influence on the sample.
      num_sampled: how many ids, a Python integer ≥ 1.
      num_classes: ids are in ``[0, num_classes)``, a Python integer ≥ 1.
      unique: True samples without replacement, the ids in the order in which they were found; also
        where ``num_sampled`` is close, or equal, to ``num_classes``.

    Returns:
      :class:`Samples`.

    Raises:
      TypeError: labels not integer, a number not a Python integer, no key.
      ValueError: ``num_sampled > num_classes`` without replacement.

    References:
      ``tf.random.log_uniform_candidate_sampler``. Jean et al., `On Using Very Large Target
      Vocabulary <https://arxiv.org/abs/1412.2007>`_, 2015.

    Example:
      >>> labels = jnp.array([0, 5])
      >>> s = log_uniform(jax.random.key(0), labels, num_sampled=1, num_classes=100, unique=False)
      >>> print(s.expected_true)  # log(2/1) / log(101), log(7/6) / log(101)
      [0.1502 0.0334]
    """
    return _sample(key, labels, _LogUniform(_checks.num_classes(num_classes)), num_sampled, unique)


# With u uniform in [0, 1), ⌊(V + 1)^u⌋ − 1 has the wanted distribution. In float32 that power has
# neither the resolution nor the accuracy for single classes beyond some 10^5. So u = (i + f) / n:
# (V + 1)^(i/n) is a constant, split into its whole number and the rest, and what f adds to it, by
# expm1, is smaller by a factor of n. At V = 10^6 every class has its probability to about 10^−3.


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _LogUniform:
    num_classes: int

    def draw(self, key, shape):
        steps, log_end = 4096, math.log(self.num_classes + 1)
        start = np.exp(log_end * (np.arange(steps) / steps))
        whole = np.floor(start)
        in_step, within = jax.random.split(key)
        i = jax.random.randint(in_step, shape, 0, steps, jnp.int32)
        f = jax.random.uniform(within, shape, jnp.float32)
        added = jnp.asarray(start, jnp.float32)[i] * jnp.expm1(f * (log_end / steps))
        place = jnp.floor(jnp.asarray(start - whole, jnp.float32)[i] + added).astype(jnp.int32)
        return jnp.minimum(jnp.asarray(whole, jnp.int32)[i] + place - 1, self.num_classes - 1)

    def prob(self, ids):
        return jnp.log1p(1 / (ids.astype(float) + 1)) / math.log(self.num_classes + 1)


def all_classes(labels: Integer[Array, "*labels"], *, num_classes: int) -> Samples:
    """Every class once, expected count 1: a sampled loss becomes the loss over all classes.

    Args:
      labels: class indices, any shape.
      num_classes: a Python integer ≥ 1.

    Returns:
      :class:`Samples`.

    Raises:
      TypeError: labels not integer, ``num_classes`` not a Python integer.

    References:
      ``tf.random.all_candidate_sampler``.

    Example:
      >>> print(*all_classes(jnp.array([1, 9]), num_classes=3))
      [0 1 2] [ 1. nan] [1. 1. 1.]
    """
    num_classes = _checks.num_classes(num_classes)
    ids = jnp.arange(num_classes, dtype=jnp.int32)
    y = class_ids("labels", labels, num_classes)
    one = jnp.ones_like(y, float)
    return Samples(ids, jnp.where(y < 0, jnp.nan, one), jnp.ones_like(ids, float))


# --- unigram --------------------------------------------------------------------------------------


@partial(jax.tree_util.register_dataclass, data_fields=["tree"], meta_fields=["num_classes"])
@dataclasses.dataclass(frozen=True)
class UnigramTable:
    """How often to sample each class, as a tree of sums. A pytree.

    ``tree[1]`` is the sum over all classes, nodes 2i and 2i + 1 are the two parts of node i, and
    the last half are the classes. A draw walks down it, an observation adds along one path.
    """

    tree: Real[Array, " nodes"]
    num_classes: int

    @property
    def first(self) -> int:
        """The node of class 0."""
        return self.tree.size // 2

    @property
    def depth(self) -> int:
        """How many steps a class is below the root."""
        return self.first.bit_length() - 1

    def probabilities(self) -> Float[Array, " classes"]:
        """The probability of each class, ``[num_classes]``."""
        return self.prob(jnp.arange(self.num_classes, dtype=jnp.int32))

    def prob(self, ids: Integer[Array, "*ids"]) -> Float[Array, "*ids"]:
        """The probability of these classes, which must be in range."""
        spec = jax.typeof(ids).sharding.spec
        sharded = {} if all(axis is None for axis in spec) else {"out_sharding": spec}
        mass = self.tree.at[self.first + ids].get(**sharded)
        return mass.astype(float) / self.tree[1].astype(float)

    # The walk goes to a part with the part's share of the node. The smaller part is compared, with
    # a uniform number fine near 0: rare classes are not rounded away (or up to 2^−23), and a part
    # of mass 0 is never entered.

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Integer[Array, "*shape"]:
        """Classes by their probability, int32, with replacement."""

        def down(node, key):
            left = self.tree[2 * node].astype(jnp.float32)
            right = self.tree[2 * node + 1].astype(jnp.float32)
            to_smaller = _fine_uniform(key, shape) * (left + right) < jnp.minimum(left, right)
            to_left = to_smaller == (left <= right)
            return 2 * node + jnp.where(to_left, 0, 1), None

        root = _checks.spread(jnp.ones(shape, jnp.int32), _checks.varying((key, self.tree)))
        node, _ = lax.scan(down, root, jax.random.split(key, self.depth))
        return node - self.first


def unigram_table(
    counts: Real[Array, " counted"], *, distortion: ArrayLike = 1.0, num_reserved_ids: int = 0
) -> UnigramTable:
    """A table of fixed frequencies for :func:`unigram`. Build it once.

    Args:
      counts: how often each class occurs, non-negative, ``[num_classes − num_reserved_ids]``.
      distortion: the counts' exponent: 0 makes them all alike, 1 leaves them, word2vec has 0.75.
      num_reserved_ids: so many ids in front of the counted classes have probability 0.

    Returns:
      :class:`UnigramTable`.

    Raises:
      TypeError: counts not real.
      ValueError: counts not one-dimensional, negative, not finite or all 0 (where they are traced,
        probabilities are NaN); a negative ``num_reserved_ids``.

    References:
      ``tf.random.fixed_unigram_candidate_sampler``. Mikolov et al., `Distributed Representations of
      Words and Phrases <https://arxiv.org/abs/1310.4546>`_, 2013.

    Example:
      >>> table = unigram_table(jnp.array([1.0, 16.0]), distortion=0.75, num_reserved_ids=1)
      >>> print(table.probabilities())
      [0.     0.1111 0.8889]
    """
    n = _checks.numbers("counts", counts)
    if n.ndim != 1 or not n.size:
        raise ValueError(
            f"counts must have shape [classes], a number a class; got {_checks.describe(n)}."
        )
    reserved = _checks.count("num_reserved_ids", num_reserved_ids, at_least=0)
    numbers = _checks.known(counts)
    if numbers is not None and not ((numbers >= 0).all() and 0 < numbers.sum() < np.inf):
        raise ValueError("counts must be non-negative and finite, and one of them positive.")
    n = jnp.where((n >= 0) & (n < jnp.inf), n, jnp.nan)
    masses = n ** _checks.option("distortion", distortion, -1e3, 1e3, n.dtype)
    return _summed(jnp.pad(masses, (reserved, 0)))


def learned_unigram(num_classes: int) -> UnigramTable:
    """A table that learns the frequencies from the stream of labels: every count starts at 1.

    Sample with :func:`unigram`, then add the batch with :func:`observe`; carry the table through
    the training loop and save it with the model. (The state TensorFlow hides in an op, and loses in
    a checkpoint.)

    Args:
      num_classes: a Python integer ≥ 1.

    Returns:
      :class:`UnigramTable` of int32 counts: exact, up to 2³¹ observations.

    References:
      ``tf.random.learned_unigram_candidate_sampler``.

    Example:
      >>> table = observe(learned_unigram(4), jnp.array([2, 2, 3]))
      >>> print(table.probabilities())  # (1, 1, 3, 2) / 7
      [0.1429 0.1429 0.4286 0.2857]
    """
    return _summed(jnp.ones(_checks.num_classes(num_classes), jnp.int32))


def observe(
    table: UnigramTable,
    labels: Integer[Array, "*labels"],
    *,
    where: Bool[Array, "*labels"] | None = None,
) -> UnigramTable:
    """The table of :func:`learned_unigram` with a batch of labels counted.

    Args:
      table: donate it, and the cost does not depend on ``num_classes`` but for its logarithm.
      labels: class indices in ``[0, num_classes)``, any shape.
      where: bool, the labels' shape; False labels are not counted.

    Returns:
      :class:`UnigramTable`. A traced label out of range is not counted (a sampler answers NaN for
      it).

    Raises:
      TypeError: labels not integer, ``where`` not bool, a table of fixed frequencies.
      ValueError: a label out of range (outside a trace).

    Example:
      >>> table = observe(learned_unigram(2), jnp.array([0, -100]), where=jnp.array([True, False]))
      >>> print(table.probabilities())
      [0.6667 0.3333]
    """
    if not _checks.is_integer(table.tree):
        raise TypeError(
            "observe needs a table of learned_unigram; this one's frequencies are fixed."
        )
    y = _checks.indices("labels", labels)
    where = _checks.where(where, y.shape, "labels")
    y = class_indices(live(where, y), table.num_classes)
    if fault := _checks.label_fault(labels, table.num_classes, where):
        raise ValueError(fault)
    counts = (y >= 0) if where is None else where & (y >= 0)
    leaf = jnp.where(counts, table.first + y, 0).ravel()  # node 0 is no part of the tree
    above = jnp.arange(table.depth + 1, dtype=jnp.int32)
    path = lax.shift_right_logical(*jnp.broadcast_arrays(leaf[:, None], above[None, :]))
    tree = table.tree.at[path].add(1).at[0].set(0)
    return UnigramTable(tree, table.num_classes)


def unigram(
    key: PRNGKeyArray,
    labels: Integer[Array, "*labels"],
    table: UnigramTable | Real[Array, " classes"],
    *,
    num_sampled: int,
    unique: bool = True,
) -> Samples:
    """Samples classes by their frequency.

    Args:
      key: a key of ``jax.random``.
      labels: class indices, any shape; they are what expected counts are asked for, and have no
        influence on the sample.
      table: of :func:`unigram_table` or :func:`learned_unigram`; or the counts themselves, of which
        every call then makes the table.
      num_sampled: how many ids, a Python integer ≥ 1.
      unique: True samples without replacement (see :func:`log_uniform`). It needs ``num_sampled``
        classes of positive frequency; where that cannot be seen, expected counts are NaN.

    Returns:
      :class:`Samples`. A label of frequency 0 has an expected count of 0, and a loss that corrects
      for it is NaN.

    Raises:
      TypeError: labels not integer, a number not a Python integer, no key.
      ValueError: more unique samples than classes, or than classes of positive frequency.

    References:
      ``tf.random.fixed_unigram_candidate_sampler``, ``learned_unigram_candidate_sampler``.

    Example:
      >>> table = unigram_table(jnp.array([1.0, 0.0, 3.0]))
      >>> s = unigram(jax.random.key(0), jnp.array([0, 1]), table, num_sampled=2)
      >>> print(jnp.sort(s.ids), s.expected_true[1])
      [0 2] 0.0
    """
    table = table if isinstance(table, UnigramTable) else unigram_table(table)
    table = jax.tree.map(lax.stop_gradient, table)
    leaves = table.tree[table.first : table.first + table.num_classes]
    positive = int((leaves > 0).sum()) if _checks.concrete(table) else table.num_classes
    if unique and positive < _checks.count("num_sampled", num_sampled) <= table.num_classes:
        raise ValueError(
            f"num_sampled without replacement must be at most {positive}, the number of classes of "
            f"positive frequency; got {num_sampled}."
        )
    return _sample(key, labels, table, num_sampled, unique)


def _summed(masses):
    """The tree over these leaves, filled up with zeros to a power of two."""
    num_classes = masses.size
    levels = [jnp.pad(masses, (0, (1 << (num_classes - 1).bit_length()) - num_classes))]
    while levels[0].size > 1:
        levels.insert(0, levels[0].reshape(-1, 2).sum(-1, dtype=masses.dtype))
    return UnigramTable(jnp.concatenate([jnp.zeros(1, masses.dtype), *levels]), num_classes)


def _fine_uniform(key, shape):
    """Uniform in [0, 1], in steps of 2^−46 near 0, where ``jax.random.uniform`` has 2^−23."""
    coarse, fine = jax.random.uniform(key, (2, *shape), jnp.float32)
    return coarse + fine * 2.0**-23


# --- samples of any distribution ------------------------------------------------------------------


def class_ids(name: str, value: ArrayLike, num_classes: int = 2**31 - 1) -> jax.Array:
    """Class indices of any integer dtype as int32, −1 where out of range."""
    return class_indices(_checks.indices(name, value), num_classes)


def _check_key(key):
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_new = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (is_new or dtype == np.uint32) or shape is None:
        came = type(key).__name__ if shape is None else _checks.describe(key)
        raise TypeError(f"key must be a key of jax.random, such as jax.random.key(0); got {came}.")
    if len(shape) != (0 if is_new else 1):  # an old key is its numbers
        raise ValueError(
            f"key must be one key of jax.random; got {_checks.describe(key)}. Map over several "
            "with jax.vmap."
        )


def _sample(key, labels, distribution, num_sampled, unique):
    _check_key(key)
    num_sampled, num_classes = _checks.count("num_sampled", num_sampled), distribution.num_classes
    if unique and num_sampled > num_classes:
        raise ValueError(
            f"num_sampled without replacement must be at most {num_classes}, the number of "
            f"classes; got {num_sampled}. unique=False samples with replacement."
        )
    y = class_ids("labels", labels, num_classes)
    sample = _without_replacement if unique else _with_replacement
    ids, expected_true, expected_sampled = sample(key, jnp.maximum(y, 0), distribution, num_sampled)
    return Samples(ids, jnp.where(y < 0, jnp.nan, expected_true), expected_sampled)


@partial(jax.jit, static_argnums=3)
def _with_replacement(key, labels, distribution, num_sampled):
    ids = distribution.draw(key, (num_sampled,))
    return Samples(ids, *(distribution.prob(x) * num_sampled for x in (labels, ids)))


@partial(jax.jit, static_argnums=3)
def _without_replacement(key, labels, distribution, num_sampled):
    ids, tries = _first_unique(key, distribution, num_sampled)
    probs = (distribution.prob(x) for x in (labels, ids))
    return Samples(ids, *(-jnp.expm1(tries * jnp.log1p(-p)) for p in probs))


# Without replacement: the first num_sampled different classes of a sequence of draws, and how many
# draws they took. Two ways, both of exactly that distribution.
#
# By draws, in blocks: each block's draws that are new, in order, up to the one that completes the
# sample. This costs O(num_sampled) where most draws are new.
#
# By arrival: let class i arrive at a time of rate p_i. The order of arrival is that of first draws,
# and in logarithms it is the falling order of log p_i + Gumbel noise. The draws up to each arrival
# are geometric, with the mass of the classes that were still to come. This costs O(V log V)
# whatever the probabilities, takes up where blocks of draws have stopped, and always ends.
#
# Blocks go first, but where the sample is more than a quarter of all classes. A Zipf or uniform
# distribution completes a quarter in about 5 num_sampled draws; a table may be so skewed that
# nothing new turns up for long, and is left to the second way after some rounds.
#
# Classes arrive in blocks; the first num_sampled of all so far are kept, and the mass of the others
# is summed. So the program needs no memory that grows with V alone. A large temporary costs every
# call, used or not: malloc maps it afresh, and each of its pages that something uses is a fault.

_ROUNDS = 32
_BLOCK = 1 << 16


class _Found(NamedTuple):
    key: jax.Array
    ids: jax.Array  # int32 [num_sampled], num_classes where nothing is yet
    count: jax.Array
    tries: jax.Array  # a float: it may exceed 2^31
    round: jax.Array


def _first_unique(key, distribution, num_sampled):
    num_classes, zero = distribution.num_classes, jnp.zeros((), jnp.int32)
    nothing = jnp.full(num_sampled, num_classes, jnp.int32)
    found = _Found(key, nothing, zero, jnp.zeros((), float), zero)
    found = _checks.spread(found, _checks.varying((key, distribution)))
    by_table = isinstance(distribution, UnigramTable)

    def unfinished(found):
        return found.count < num_sampled

    def patient(found):
        return unfinished(found) & (found.round < _ROUNDS) if by_table else unfinished(found)

    if 4 * num_sampled > num_classes:
        found = _by_arrival(distribution, found)
    else:
        found = lax.while_loop(patient, partial(_draw_block, distribution), found)
        if by_table:
            found = lax.while_loop(unfinished, partial(_by_arrival, distribution), found)
    return found.ids, found.tries


def _draw_block(distribution, found):
    num_sampled = found.ids.size
    key, now = jax.random.split(found.key)
    drawn = distribution.draw(now, (num_sampled,))
    is_new = _is_first(jnp.concatenate([found.ids, drawn]))[num_sampled:]
    count = found.count + jnp.cumsum(is_new, dtype=jnp.int32)  # after each draw
    slot = jnp.where(is_new & (count <= num_sampled), count - 1, num_sampled)
    needed = 1 + jnp.sum(count[:-1] < num_sampled, dtype=jnp.int32)
    return _Found(
        key,
        found.ids.at[slot].set(drawn, mode="drop"),
        jnp.minimum(count[-1], num_sampled),
        found.tries + needed.astype(found.tries.dtype),
        found.round + 1,
    )


def _is_first(x):
    """Where an element is the first of its value."""
    order = jnp.argsort(x, stable=True)
    in_order = x[order]
    first = jnp.concatenate([jnp.ones(1, bool), in_order[1:] != in_order[:-1]])
    return jnp.zeros(x.size, bool).at[order].set(first, unique_indices=True)


def _by_arrival(distribution, found):
    num_sampled, num_classes = found.ids.size, distribution.num_classes
    block = min(num_classes, max(4 * num_sampled, _BLOCK))
    arrivals, waits = jax.random.split(found.key)

    def arrive(start, key):
        """Times of arrival, classes and their masses; NaN, which comes last, after all classes."""
        classes = start + jnp.arange(block, dtype=jnp.int32)
        exists, ids = classes < num_classes, jnp.minimum(classes, num_classes - 1)
        slot = jnp.where(found.ids >= start, found.ids - start, block)
        p = jnp.where(exists, distribution.prob(ids), 0).at[slot].set(0, mode="drop")
        noise = jax.random.gumbel(key, p.shape, jnp.float32, mode="high").astype(p.dtype)
        return jnp.where(exists, -(jnp.log(p) + noise), jnp.nan), ids, p

    def earliest(arrived, later):
        """The first num_sampled in order; the mass of the others is added to ``later``."""
        time, ids, p = lax.sort(arrived, num_keys=1)
        first = time[:num_sampled], ids[:num_sampled], p[:num_sampled]
        return first, later + p[num_sampled:].sum()

    def meet(state, start_and_key):
        first, later = state
        both = jax.tree.map(lambda *x: jnp.concatenate(x), first, arrive(*start_and_key))
        return earliest(both, later), None

    starts = jnp.arange(0, num_classes, block, dtype=jnp.int32)
    keys = jax.random.split(arrivals, starts.size)
    state = earliest(arrive(starts[0], keys[0]), 0.0)
    ((_, ids, p), later), _ = lax.scan(meet, state, (starts[1:], keys[1:]))
    to_come = jnp.cumsum(p[::-1])[::-1] + later
    fresh = jnp.arange(num_sampled, dtype=jnp.int32) < num_sampled - found.count
    u = 1 - jax.random.uniform(waits, (num_sampled,), jnp.float32).astype(p.dtype)
    wait = 1 + jnp.floor(jnp.log(u) / jnp.log1p(-jnp.minimum(to_come, 1)))
    wait = jnp.where(to_come > 0, wait, jnp.nan)  # no class of positive probability is left
    slot = jnp.where(fresh, found.count + jnp.arange(num_sampled, dtype=jnp.int32), num_sampled)
    return _Found(
        arrivals,
        found.ids.at[slot].set(ids, mode="drop"),
        jnp.full_like(found.count, num_sampled),
        found.tries + jnp.sum(jnp.where(fresh, wait, 0)),
        found.round,
    )
