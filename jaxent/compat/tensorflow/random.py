"""The candidate samplers of ``tf.random``: classes, and how often each was to be expected.

They feed the sampled losses of :mod:`jaxent.compat.tensorflow.nn`, where their names are too. They
take a ``key``, a new one each step, and have no seed and no hidden state. What differs, because it
is wrong there:

- Shards of ``fixed_unigram_candidate_sampler`` part the ids between them also where some are
  reserved. (There ids are counted from the number of reserved ids *of the shard*: 3 reserved ids
  and 2 shards give both shards the same half of the words, and the other half to none.)

A true class out of range raises where it can be seen, and has the expected count NaN under ``jit``.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent import sampled as _sampled
from jaxent.compat._names import only as _only

__all__ = [
    "all_candidate_sampler",
    "fixed_unigram_candidate_sampler",
    "learned_unigram_candidate_sampler",
    "log_uniform_candidate_sampler",
    "uniform_candidate_sampler",
]
__getattr__ = _only(__name__, "tf.random")


def uniform_candidate_sampler(
    true_classes: ArrayLike,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: None = None,
    name: str | None = None,
    *,
    key: jax.Array | None = None,
) -> _sampled.Samples:
    """``tf.random.uniform_candidate_sampler``: all classes alike.

    Args:
      true_classes: class indices ``[batch, num_true]``.
      num_true: how many each example has.
      num_sampled: how many classes to sample; a Python integer.
      unique: without replacement, from how many tries being part of the expected counts.
      range_max: how many classes there are; a Python integer.
      seed: None; there is no hidden state to seed. Give ``key``.
      name: ignored.
      key: a key of ``jax.random``.

    Returns:
      the tuple (ids ``[num_sampled]``, true_expected_count ``[batch, num_true]``,
      sampled_expected_count ``[num_sampled]``).

    Raises:
      TypeError: no ``key``, or a ``seed``; classes not integer.
      ValueError: ``true_classes`` not ``[batch, num_true]`` or out of range; more unique samples
        than classes.

    Example:
      >>> ids, true, _ = uniform_candidate_sampler(
      ...     jnp.array([[3]]), 1, 4, False, 8, key=jax.random.key(0))
      >>> print(ids.shape, true)
      (4,) [[0.5]]
    """
    y = _true_classes("true_classes", true_classes, num_true, range_max)
    key = _key(key, seed)
    return _sampled.uniform(key, y, num_sampled=num_sampled, num_classes=range_max, unique=unique)


def log_uniform_candidate_sampler(
    true_classes: ArrayLike,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: None = None,
    name: str | None = None,
    *,
    key: jax.Array | None = None,
) -> _sampled.Samples:
    """``tf.random.log_uniform_candidate_sampler``: for classes numbered by falling frequency.

    Args:
      true_classes: as of :func:`uniform_candidate_sampler`, and so all that follow.
      num_true: how many each example has.
      num_sampled: how many classes to sample.
      unique: without replacement.
      range_max: how many classes there are.
      seed: None.
      name: ignored.
      key: a key of ``jax.random``.

    Returns:
      as :func:`uniform_candidate_sampler`.

    Raises:
      TypeError, ValueError: as :func:`uniform_candidate_sampler`.

    Example:
      >>> _, true, _ = log_uniform_candidate_sampler(
      ...     jnp.array([[0, 5]]), 2, 1, False, 100, key=jax.random.key(0))
      >>> print(true)
      [[0.1502 0.0334]]
    """
    y = _true_classes("true_classes", true_classes, num_true, range_max)
    key = _key(key, seed)
    return _sampled.log_uniform(
        key, y, num_sampled=num_sampled, num_classes=range_max, unique=unique
    )


def fixed_unigram_candidate_sampler(
    true_classes: ArrayLike,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    vocab_file: str = "",
    distortion: float = 1.0,
    num_reserved_ids: int = 0,
    num_shards: int = 1,
    shard: int = 0,
    unigrams: jax.Array | np.ndarray | Sequence[float] = (),
    seed: None = None,
    name: str | None = None,
    *,
    key: jax.Array | None = None,
) -> _sampled.Samples:
    """``tf.random.fixed_unigram_candidate_sampler``: by given counts.

    Args:
      true_classes: as of :func:`uniform_candidate_sampler`, and so all that follow.
      num_true: how many each example has.
      num_sampled: how many classes to sample.
      unique: without replacement.
      range_max: how many classes there are, the reserved ones included.
      vocab_file: a file whose lines are those of the counted classes, in order, the last entry
        after a comma being the count; blank lines are left out. It is read at each call, under
        ``jit`` while tracing.
      distortion: the counts' exponent.
      num_reserved_ids: so many ids in front of the counted classes are never sampled.
      num_shards: the classes are those ``c`` with ``c % num_shards == shard``, and ids count them
        from 0, in ``true_classes`` too: id i is class ``i * num_shards + shard``.
      shard: in [0, num_shards).
      unigrams: counts, as an alternative to ``vocab_file``; of all shards.
      seed: None.
      name: ignored.
      key: a key of ``jax.random``.

    Returns:
      as :func:`uniform_candidate_sampler`.

    Raises:
      TypeError: as :func:`uniform_candidate_sampler`.
      ValueError: as there; not one of ``vocab_file`` and ``unigrams``; a line without a count; not
        one count a class.
      OSError: ``vocab_file`` cannot be read.

    Example:
      >>> _, true, _ = fixed_unigram_candidate_sampler(
      ...     jnp.array([[0]]), 1, 1, False, 3, unigrams=[3.0, 4.0, 1.0], key=jax.random.key(0))
      >>> print(true)
      [[0.375]]
    """
    if not 0 <= shard < num_shards:
        raise ValueError(f"shard must be in [0, num_shards={num_shards}); got {shard}.")
    if bool(vocab_file) == bool(len(unigrams)):
        raise ValueError("one of vocab_file and unigrams must be given, and not both.")
    mine = slice((shard - num_reserved_ids) % num_shards, None, num_shards)
    counts = _last_entries(vocab_file, mine) if vocab_file else unigrams[mine]
    counts = _checks.numbers("unigrams", jnp.asarray(counts, jnp.float32))
    reserved = len(range(shard, num_reserved_ids, num_shards))
    if counts.shape != (range_max - reserved,):
        raise ValueError(
            f"{vocab_file or 'unigrams'} must hold a count for each of the {range_max - reserved} "
            f"classes of range_max that are not reserved; this shard's are "
            f"{_checks.describe(counts)}."
        )
    y = _true_classes("true_classes", true_classes, num_true, range_max)
    table = _sampled.unigram_table(counts, distortion=distortion, num_reserved_ids=reserved)
    return _sampled.unigram(_key(key, seed), y, table, num_sampled=num_sampled, unique=unique)


def learned_unigram_candidate_sampler(
    true_classes: ArrayLike,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: None = None,
    name: str | None = None,
    *,
    key: jax.Array | None = None,
    table: _sampled.UnigramTable | None = None,
) -> _sampled.Samples:
    """``tf.random.learned_unigram_candidate_sampler``: by the counts of the labels seen so far.

    The counts are yours to keep: sample with ``table``, then add the batch with
    ``jaxent.sampled.observe(table, true_classes)``. (There they hide in the op, and a checkpoint
    loses them.)

    Args:
      true_classes: as of :func:`uniform_candidate_sampler`, and so all that follow.
      num_true: how many each example has.
      num_sampled: how many classes to sample.
      unique: without replacement.
      range_max: how many classes there are.
      seed: None.
      name: ignored.
      key: a key of ``jax.random``.
      table: the counts; None is ``jaxent.sampled.learned_unigram(range_max)``, nothing seen yet.

    Returns:
      as :func:`uniform_candidate_sampler`.

    Raises:
      TypeError, ValueError: as :func:`uniform_candidate_sampler`.

    Example:
      >>> _, true, _ = learned_unigram_candidate_sampler(
      ...     jnp.array([[1]]), 1, 2, False, 4, key=jax.random.key(0))
      >>> print(true)
      [[0.5]]
    """
    y = _true_classes("true_classes", true_classes, num_true, range_max)
    table = _sampled.learned_unigram(range_max) if table is None else table
    return _sampled.unigram(_key(key, seed), y, table, num_sampled=num_sampled, unique=unique)


def all_candidate_sampler(
    true_classes: ArrayLike,
    num_true: int,
    num_sampled: int,
    unique: bool,
    seed: None = None,
    name: str | None = None,
) -> _sampled.Samples:
    """``tf.random.all_candidate_sampler``: every class once, for tests.

    Args:
      true_classes: class indices ``[batch, num_true]``.
      num_true: how many each example has.
      num_sampled: how many classes there are.
      unique: ignored.
      seed: ignored.
      name: ignored.

    Returns:
      as :func:`uniform_candidate_sampler`; all expected counts are 1.

    Raises:
      TypeError, ValueError: as :func:`uniform_candidate_sampler`.

    Example:
      >>> print(all_candidate_sampler(jnp.array([[1]]), 1, 3, True).ids)
      [0 1 2]
    """
    y = _true_classes("true_classes", true_classes, num_true, num_sampled)
    return _sampled.all_classes(y, num_classes=num_sampled)


def _last_entries(path, mine):
    lines = [line for line in Path(path).read_bytes().replace(b"\r", b"").split(b"\n") if line]
    return [_last_entry(line) for line in lines[mine]]


def _last_entry(line):
    try:
        return float(line.rpartition(b",")[-1])
    except ValueError:
        raise ValueError(
            f"Wrong vocabulary format at line: {line.decode(errors='replace')}"
        ) from None


def _true_classes(name, value, num_true, num_classes):
    y = _checks.indices(name, value)
    if y.ndim != 2 or y.shape[1] != num_true:
        raise ValueError(
            f"{name} must have shape [batch, num_true={num_true}]; got {_checks.describe(y)}."
        )
    if fault := _checks.label_fault(y, num_classes, name=name, padding=""):
        raise ValueError(fault)
    return y


def _key(key, seed):
    if key is None or seed is not None:
        raise TypeError(
            "sampling needs key=, a key of jax.random and a new one each step; a seed has no state "
            "to start here."
        )
    return key
