"""The class axis, the last one: masks, picks, and sums and maxima over it."""

import functools
import math
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType


def class_indices(labels: jax.Array, num_classes: int) -> jax.Array:
    """Labels as int32, −1 where out of range.

    Widened before they are compared: int8 against 300 classes wraps.
    """
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    valid = (labels >= 0) & (labels < num_classes)
    return jnp.where(valid, labels.astype(jnp.int32), -1)


def local_indices(indices: jax.Array, num_local: int, axis_name: Hashable) -> jax.Array:
    """Of indices over all devices of a mapped axis, those in this one's share; −1 elsewhere."""
    if axis_name is None:
        return indices
    indices -= lax.axis_index(axis_name) * num_local
    return jnp.where((indices >= 0) & (indices < num_local), indices, -1)


def whole(part: jax.Array, axis_name: Hashable) -> jax.Array:
    """A sum over all classes, of one over this device's share."""
    return part if axis_name is None else lax.psum(part, axis_name)


def is_class(indices: jax.Array, like: jax.Array) -> jax.Array:
    """Bool ``[..., num_classes]``: where on the class axis of ``like`` each index is."""
    place = lax.broadcasted_iota(jnp.int32, (1,) * indices.ndim + like.shape[-1:], indices.ndim)
    mask = place == indices[..., None]
    sharding = jax.typeof(like).sharding
    if class_axis_is_sharded(like):
        mask = jax.sharding.reshard(mask, sharding)
    return mask


def class_axis_is_sharded(x: jax.Array) -> bool:
    """Whether an explicit mesh splits the class axis (an automatic one never shows)."""
    spec = jax.typeof(x).sharding.spec
    return len(spec) == x.ndim and spec[-1] is not None


def class_axis_may_be_split(x: jax.Array) -> bool:
    """Whether an explicit mesh splits the class axis, or an automatic one may."""
    mesh = jax.typeof(x).sharding.mesh
    return class_axis_is_sharded(x) or (AxisType.Auto in mesh.axis_types and mesh.size > 1)


def pick(x: jax.Array, indices: jax.Array) -> jax.Array:
    """``x[..., index]``, NaN where the index is −1."""
    if class_axis_is_sharded(x):  # a gather along a sharded axis is ambiguous
        picked = jnp.sum(jnp.where(is_class(indices, x), x, 0), -1, dtype=x.dtype)
        return jnp.where(indices < 0, jnp.nan, picked)
    indices = jnp.where(indices < 0, x.shape[-1], indices)  # "fill" would still wrap a −1
    return jnp.take_along_axis(x, indices[..., None], -1, mode="fill", fill_value=jnp.nan)[..., 0]


def beside(row: jax.Array, x: jax.Array) -> jax.Array:
    """One number a row, ready to meet x: ``row`` has the leading axes of x."""
    return row.reshape(row.shape + (1,) * (x.ndim - row.ndim))


def live(where: jax.Array | None, x: jax.Array) -> jax.Array:
    """x, exactly 0 where an example is inert; ``where`` has the leading axes of x."""
    return x if where is None else jnp.where(beside(where, x), x, jnp.zeros((), x.dtype))


# Sums over classes, and over all but one. XLA:CPU's fast sums take arithmetic and nothing else. A
# compare or a select in front of one is written out first, as an array of the logits' size, and so
# is a constant that two of them share: constants come as rows here (see `constants`). A sum of very
# many terms is slow. So a long class axis is seen as [blocks, classes a block]: whole blocks are
# summed without any mask, and the block that holds the excluded class once more with one. Where
# devices may share the classes, that block would have to travel: there it is one mask over all.


def class_sum(f: Callable, rows: Sequence[jax.Array], *xs: jax.Array) -> jax.Array:
    """Σ_j f(rows, xs_j), ``[...]``, of ``rows [...]`` and ``xs [..., num_classes]``.

    ``f`` is elementwise, and arithmetic only if it is to be fast.
    """
    blocks = _num_blocks(xs[0])
    if blocks == 1:
        return jnp.sum(f(*_beside(rows, xs), *xs), -1)
    xs = tuple(_split(x, blocks) for x in xs)
    sums = jnp.sum(f(*_beside(rows, xs), *xs), -1)
    return jnp.sum(jnp.where(jnp.isnan(sums), jnp.nan, sums), -1)  # nested in one fusion: slow


def sum_but(index: jax.Array, f: Callable, rows: Sequence[jax.Array], *xs: jax.Array) -> jax.Array:
    """Σ_{j ≠ index} f(rows, xs_j), as :func:`class_sum`; an index of −1 excludes nothing."""
    blocks = _num_blocks_to_pick_from(xs[0])
    if blocks == 1:
        return jnp.sum(jnp.where(is_class(index, xs[0]), 0, f(*_beside(rows, xs), *xs)), -1)
    xs = tuple(_split(x, blocks) for x in xs)
    size = xs[0].shape[-1]
    block, place = jnp.maximum(index, 0) // size, jnp.where(index < 0, -1, index % size)
    own = tuple(jnp.take_along_axis(x, block[..., None, None], -2) for x in xs)
    own_terms = jnp.where(is_class(place[..., None], own[0]), 0, f(*_beside(rows, own), *own))
    sums = jnp.sum(f(*_beside(rows, xs), *xs), -1)
    return jnp.sum(own_terms, (-2, -1)) + jnp.sum(jnp.where(is_class(block, sums), 0, sums), -1)


def _beside(rows, xs):
    return (beside(row, xs[0]) for row in rows)


def largest_class(x: jax.Array) -> jax.Array:
    """The index of each row's largest class; the first of several."""
    blocks = _num_blocks_to_pick_from(x)
    if blocks == 1:  # XLA:CPU's argmax would take three times this
        is_top, last = x == jnp.max(x, -1, keepdims=True), x.shape[-1] - 1
        place = lax.broadcasted_iota(jnp.int32, (1,) * (x.ndim - 1) + (last + 1,), x.ndim - 1)
        return jnp.min(jnp.where(is_top, place, last), -1)
    x = _split(x, blocks)
    block = lax.argmax(jnp.max(x, -1), x.ndim - 2, jnp.int32)
    own = jnp.take_along_axis(x, block[..., None, None], -2)[..., 0, :]
    return block * x.shape[-1] + lax.argmax(own, own.ndim - 1, jnp.int32)


def clipped(low: jax.Array, x: jax.Array, high: jax.Array) -> jax.Array:
    """x within bounds, NaN for NaN.

    XLA:CPU's fast sums lose a NaN in min(x, bound) and in min(bound, max(bound, x)), not in this.
    """
    return jnp.maximum(low, jnp.minimum(high, x))


def constants(row: jax.Array, *numbers: float) -> tuple[jax.Array, ...]:
    """Numbers repeated along a row (NaN where it is NaN), so that XLA sees no constant."""
    return tuple(jnp.where(jnp.isnan(row), jnp.nan, number).astype(row.dtype) for number in numbers)


def _split(x, blocks):
    return x.reshape(*x.shape[:-1], blocks, x.shape[-1] // blocks)


def _num_blocks(x):
    if class_axis_is_sharded(x) or not isinstance(x.shape[-1], int):  # symbolic, in jax.export
        return 1
    return _blocks_of(x.shape[-1])


def _num_blocks_to_pick_from(x):
    """One, where a block that is picked from the others might have to travel."""
    return 1 if class_axis_may_be_split(x) else _num_blocks(x)


@functools.cache
def _blocks_of(num_classes):
    """About √num_classes blocks of at least 128, so many that up to 64 devices can share them."""
    root = math.isqrt(num_classes)
    near = range(max(2, root // 8), min(8 * root, num_classes // 128) + 1)
    divisors = [n for n in near if num_classes % n == 0] if num_classes >= 2048 else []
    return max(divisors, key=lambda n: (math.gcd(n, 64), -abs(n - root)), default=1)
