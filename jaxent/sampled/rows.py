"""Rows of a table of classes: out by id, and their gradients back by id.

A sampled loss sees a few rows of a table ``[num_classes, D]``. Differentiated with respect to these
*rows* it costs the same whatever the size of the table; differentiated with respect to the table it
costs a table of zeros. So the rows are an argument of the loss::

    rows = gather_rows(table, labels, samples)  # outside of what is differentiated
    gradient = row_gradient(labels, samples, jax.grad(loss)(rows))  # ids and rows
    table = table.at[gradient.ids].add(-rate * gradient.rows, mode="drop")  # touches these alone
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Integer

from jaxent import _checks
from jaxent.sampled.samplers import Samples, class_ids
from jaxent.stats import live


class Rows(NamedTuple):
    """The rows a sampled loss reads, ``labels [...]`` or ``[..., num_true]`` being its labels.

    Attributes:
      true: rows of the labels, ``[*labels.shape, D]``.
      sampled: rows of the sampled classes, ``[num_sampled, D]``, or ``[..., num_sampled, D]`` where
        each example has negatives of its own.
      true_bias: biases of the labels, ``labels.shape``; or None.
      sampled_bias: biases of the sampled classes, ``samples.ids.shape``; or None.
    """

    true: Float[Array, "*labels features"]
    sampled: Float[Array, "*ids features"]
    true_bias: Float[Array, "*labels"] | None = None
    sampled_bias: Float[Array, "*ids"] | None = None


def gather_rows(
    table: Float[Array, "classes features"],
    labels: Integer[Array, "*labels"],
    samples: Samples,
    *,
    bias: Float[Array, " classes"] | None = None,
) -> Rows:
    """The rows of a table that a sampled loss reads.

    Args:
      table: one row a class, float ``[num_classes, D]``. (A head ``[D, num_classes]`` is better
        kept transposed: ``head.T`` in every step reads all of it.)
      labels: class indices in ``[0, num_classes)``, ``[...]`` or ``[..., num_true]``.
      samples: of a sampler of this package, or any ids and expected counts.
      bias: one number a class, ``[num_classes]``.

    Returns:
      :class:`Rows` in the table's dtype; NaN where an id is out of range.

    Raises:
      TypeError: table or bias not floating-point, labels or ids not integer.
      ValueError: table not of rank 2, bias not ``[num_classes]``.

    Example:
      >>> from jaxent.sampled import all_classes
      >>> table = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
      >>> labels = jnp.array([2, 0])
      >>> rows = gather_rows(table, labels, all_classes(labels, num_classes=3))
      >>> print(rows.true)
      [[5. 6.]
       [1. 2.]]
    """
    table, bias = _table(table, bias)
    num_classes = table.shape[0]
    true, drawn = (class_ids(n, y, num_classes) for n, y in _named(labels, samples))
    if bias is None:
        return Rows(_take(table, true), _take(table, drawn))
    return Rows(_take(table, true), _take(table, drawn), _take(bias, true), _take(bias, drawn))


def _named(labels, samples):
    return ("labels", labels), ("samples.ids", samples.ids)


def _table(table, bias):
    table = _checks.floats("table", table)
    if table.ndim != 2:
        raise ValueError(
            "table must have shape [num_classes, D], one row a class; "
            f"got {_checks.describe(table)}."
        )
    if bias is None:
        return table, None
    bias = _checks.floats("bias", bias)
    if bias.shape != table.shape[:1]:
        raise _checks.shape_error("bias", bias, table.shape[:1], "one number a row of the table")
    return table, bias


def _take(table, ids):
    """``table[id]``, NaN where the id is −1; under an explicit mesh sharded as the ids are."""
    ids = jnp.where(ids < 0, table.shape[0], ids)  # "fill" would still wrap a −1
    ids_spec, spec = (jax.typeof(x).sharding.spec for x in (ids, table))
    if all(axis is None for axis in (*ids_spec, *spec)):
        return table.at[ids].get(mode="fill", fill_value=jnp.nan)
    out = PartitionSpec(*ids_spec, *spec[1:])
    return table.at[ids].get(mode="fill", fill_value=jnp.nan, out_sharding=out)


class RowGradient(NamedTuple):
    """The gradient of a table, of which all rows but these are 0. Equal ids add up.

    Attributes:
      ids: int32 ``[rows]``; the largest int32, which ``mode="drop"`` drops, where there is no row.
      rows: ``[rows, D]``, 0 where there is no row.
      bias: ``[rows]``, or None.
    """

    ids: Integer[Array, " rows"]
    rows: Float[Array, "rows features"]
    bias: Float[Array, " rows"] | None = None


_NO_ROW = 2**31 - 1


def row_gradient(
    labels: Integer[Array, "*labels"],
    samples: Samples,
    gradient: Rows,
    *,
    where: Bool[Array, "*labels"] | None = None,
) -> RowGradient:
    """The gradient of the gathered rows as one list of ids and rows, true ones first.

    Args:
      labels: ``[...]`` or ``[..., num_true]``, as given to the loss.
      samples: as given to the loss.
      gradient: of the loss with respect to its :class:`Rows`.
      where: bool, the labels' shape, as given to the loss; a False label has no row.

    Returns:
      :class:`RowGradient` of ``labels.size + samples.ids.size`` rows.

    Raises:
      TypeError: labels or ids not integer, ``where`` not bool.
      ValueError: ``where`` not of the labels' shape.

    Example:
      A step of gradient descent that touches the rows in use and no others. Donate the table, and
      its cost is that of the rows. Class 1 is a label *and* a negative here, and both count.

      >>> import functools
      >>> import jaxent
      >>> from jaxent import sampled
      >>> @functools.partial(jax.jit, donate_argnames="table")
      ... def step(table, hidden, labels, samples):
      ...     def loss(rows):
      ...         s = sampled.sampled_softmax_stats(hidden, labels, samples, rows)
      ...         return jaxent.weighted_mean(jaxent.nll(s))
      ...     rows = sampled.gather_rows(table, labels, samples)
      ...     g = sampled.row_gradient(labels, samples, jax.grad(loss)(rows))
      ...     return table.at[g.ids].add(-0.1 * g.rows, mode="drop"), g.ids
      >>> labels = jnp.array([0, 1])
      >>> samples = Samples(jnp.array([1, 3]), jnp.full(2, 0.5), jnp.full(2, 0.5))
      >>> table, ids = step(jnp.ones([5, 2]), jnp.ones([2, 2]), labels, samples)
      >>> print(ids)
      [0 1 1 3]
      >>> print(table)
      [[1.0333 1.0333]
       [1.0083 1.0083]
       [1.     1.    ]
       [0.9583 0.9583]
       [1.     1.    ]]
    """
    true, drawn = (class_ids(n, y) for n, y in _named(labels, samples))
    where = _checks.where(where, true.shape, "labels")
    if where is not None:
        true = jnp.where(where, true, -1)
    features = gradient.true.shape[-1]
    ids = jnp.concatenate([true.ravel(), drawn.ravel()])
    rows = [x.reshape(-1, features) for x in (gradient.true, gradient.sampled)]
    exists = ids >= 0
    ids, rows = jnp.where(exists, ids, _NO_ROW), live(exists, jnp.concatenate(rows))
    if gradient.true_bias is None or gradient.sampled_bias is None:
        return RowGradient(ids, rows)
    bias = jnp.concatenate([gradient.true_bias.ravel(), gradient.sampled_bias.ravel()])
    return RowGradient(ids, rows, live(exists, bias))


def sum_duplicates(gradient: RowGradient) -> RowGradient:
    """The same gradient with every id once, its rows added up.

    A plain ``.at[ids].add`` needs none of this. An optimiser with a state a row (momentum, Adagrad,
    Adam) does: it must see the whole gradient of a row at once.

    Args:
      gradient: of :func:`row_gradient`.

    Returns:
      :class:`RowGradient` of the same number of rows, ids ascending, "no row" last.

    Example:
      >>> g = sum_duplicates(RowGradient(jnp.array([7, 2, 7]), jnp.array([[1.0], [2.0], [3.0]])))
      >>> print(g.ids, g.rows.ravel())
      [         2          7 2147483647] [2. 4. 0.]
    """
    ids, slots = jnp.unique(
        gradient.ids, size=gradient.ids.size, fill_value=_NO_ROW, return_inverse=True
    )
    add = jax.tree.map(lambda x: jnp.zeros_like(x).at[slots.ravel()].add(x), gradient)
    return add._replace(ids=ids)
