"""The class axis, the last one: masks, picks, and sums and maxima over it."""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType


def on_cpu() -> bool:
    """Whether loops are arranged for XLA:CPU; elsewhere XLA's own arrangement is best."""
    return jax.default_backend() == "cpu"


def class_indices(labels: jax.Array, num_classes: int) -> jax.Array:
    """Labels as int32, −1 where out of range.

    Widened before they are compared: int8 against 300 classes wraps.
    """
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    invalid = (labels < 0) | (labels >= num_classes)
    return select(invalid, -1, labels.astype(jnp.int32))


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
    mask = lax.eq(place, lax.expand_dims(indices, (indices.ndim,)))
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


def at_most(num_classes: int, x: jax.Array) -> bool:
    """Whether the class axis is known to be that short: an exported one may have no number."""
    return isinstance(x.shape[-1], int) and x.shape[-1] <= num_classes


def unsplit(x: jax.Array) -> bool:
    """Whether it is certain that no mesh splits x: a trace does not see ``in_shardings``."""
    mesh = jax.typeof(x).sharding.mesh
    return jax.device_count() == 1 if mesh.empty else mesh.are_all_axes_manual


def of_rows(f: Callable) -> Callable:
    """``f(x, *others)`` of arrays with the same leading axes, all of these made one."""
    return functools.wraps(f)(lambda x, *others: on_one_axis(x.shape[:-1], f, x, *others))


def on_one_axis(batch: tuple, f: Callable, *args):
    """``f(*args)`` of arrays that begin with the axes ``batch``, and scalars, with these made one.

    XLA:CPU's loops over many axes, the last of them short, are up to four times slower.
    """
    flat = on_cpu() and len(batch) > 1 and all(isinstance(n, int) for n in batch)
    if not flat or not all(map(unsplit, jax.tree.leaves(args))):
        return f(*args)
    rows, n = math.prod(batch), len(batch)
    flattened = jax.tree.map(lambda a: a.reshape(rows, *a.shape[n:]) if a.ndim else a, args)
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), f(*flattened))


def pick(x: jax.Array, indices: jax.Array) -> jax.Array:
    """``x[..., index]``, NaN where the index is −1."""
    if class_axis_is_sharded(x):  # a gather along a sharded axis is ambiguous
        picked = jnp.sum(jnp.where(is_class(indices, x), x, 0), -1, dtype=x.dtype)
        return jnp.where(indices < 0, jnp.nan, picked)
    n, zero = indices.ndim, indices.dtype.type(0)
    rows = tuple(range(n))
    place = lax.expand_dims(lax.max(indices, zero), (n,))
    # jnp.take_along_axis, traced in half of the time
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(n,),
        start_index_map=(n,),
        operand_batching_dims=rows,
        start_indices_batching_dims=rows,
    )
    picked = lax.gather(x, place, numbers, (1,) * (n + 1), mode="promise_in_bounds")
    return select(lax.lt(indices, zero), jnp.nan, picked)


def select(mask: jax.Array, x: jax.Array | float, y: jax.Array) -> jax.Array:
    """``jnp.where`` without promotion, which takes ten times as long to trace.

    ``x`` is a number, one a row, or one an entry of y.
    """
    if not isinstance(x, jax.Array):
        x = lax.full_like(y, x)
    elif x.ndim < y.ndim:
        sharding = jax.typeof(y).sharding
        x = lax.broadcast_in_dim(x, y.shape, tuple(range(x.ndim)), out_sharding=sharding)
    return lax.select(mask, x, y)


def beside(row: jax.Array, x: jax.Array) -> jax.Array:
    """One number a row, ready to meet x: ``row`` has the leading axes of x."""
    return row.reshape(row.shape + (1,) * (x.ndim - row.ndim))


def once(row: jax.Array, other: jax.Array | None = None) -> jax.Array:
    """The same; XLA:CPU computes a row's number again for each class, unless a division ends it.

    By 1, which XLA does not see; if ``row`` is a tangent, of an ``other`` number that is none.
    """
    other = row if other is None else other
    return lax.div(row, lax.stop_gradient(jnp.clip(other, 1, 1))) if on_cpu() else row


def live(where: jax.Array | None, x: jax.Array) -> jax.Array:
    """x, exactly 0 where an example is inert; ``where`` has the leading axes of x."""
    return x if where is None else jnp.where(beside(where, x), x, jnp.zeros((), x.dtype))


# Sums over classes. XLA:CPU's own sums take arithmetic and nothing else: a compare or a select in
# front of one is written out first, as an array of the logits' size. A loop over elements takes
# everything, at the speed of the exponential. So the class axis is folded: cut into parts of one
# width, whose terms are added up in such a loop, element by element; what is left, a 16th of the
# logits or less, is summed by XLA. Few classes are folded into one, and nothing is written.
# Elsewhere than on a CPU, and where devices may share the classes, XLA's sum is best.

ROWS = 16  # of which few classes are folded: as many threads have shares of one size
FEW = 32  # classes that are folded into one
SOME = 32  # parts: 3 % of the logits is left
MANY = 128  # parts: less than 1 % is left, and they take longer to compile
STORED = 1024  # classes, at most, of which more than 1 % is stored beside a gradient
CUTS = 224  # in one loop: 250 take up to ten times as long
LANES = 16  # what a width is a multiple of


def class_sum(
    f: Callable,
    rows: Sequence[jax.Array],
    *xs: jax.Array,
    but: jax.Array | None = None,
    parts: int = 16,
) -> jax.Array:
    """Σ_j f(rows, xs_j), ``[...]``, of ``rows [...]`` and ``xs [..., num_classes]``.

    ``f`` is elementwise. ``but [...]`` leaves a class out; −1 leaves out none.
    """

    @partial(jax.jit, inline=True)  # traced once for all parts
    def terms(rows, but, *xs):
        term = f(*(beside(row, xs[0]) for row in rows), *xs)
        return term if but is None else jnp.where(is_class(but, term), 0, term)

    parts = _parts(parts, *xs)
    if _width(xs[0], parts) == xs[0].shape[-1]:
        return jnp.sum(terms(rows, but, *xs), -1)

    def part(start, stop):
        share = (_cut(x, start, stop) for x in xs)
        return terms(rows, None if but is None else but - start, *share)

    folded = _fold(jnp.add, part, xs[0], 0, parts)
    if folded.shape[-1] == 1:
        return lax.squeeze(folded, (folded.ndim - 1,))
    # a select: XLA's sum would take the additions into itself, and leave their terms outside
    return jnp.sum(jnp.where(jnp.isnan(folded), jnp.nan, folded), -1)


def looped_sum(f: Callable, rows: Sequence[jax.Array], *xs: jax.Array) -> jax.Array:
    """:func:`class_sum` with its parts in a loop: one term to compile, and up to twice as slow.

    Not to be differentiated in reverse: the loop would keep its parts.
    """
    if any(map(_is_short, xs)):  # XLA would cast them all before the loop
        return class_sum(f, rows, *xs)
    num_classes, width = xs[0].shape[-1], _width(xs[0], MANY)

    def part(start):
        share = (lax.dynamic_slice_in_dim(x, start, width, -1) for x in xs)
        return f(*(beside(row, xs[0]) for row in rows), *share)

    def add(i, total):
        start = jnp.minimum(i * width, num_classes - width)  # the last begins in the one before
        lane = lax.broadcasted_iota(jnp.int32, total.shape, total.ndim - 1)
        return total + jnp.where(start + lane < i * width, 0, part(start))

    return jnp.sum(lax.fori_loop(1, -(-num_classes // width), add, part(0)), -1)


def finite_or(quick: Callable, exact: Callable, x: jax.Array, where: jax.Array | None):
    """``quick()``, sums over the classes of x, if finite in every live row; else ``exact(sum)``.

    Arithmetic alone makes NaN or infinity of a −inf that counts for nothing. What takes it out is
    slower, or a second sum: all is summed again only where that is needed. Where classes are few
    there is nothing to gain. ``sum`` is what to sum with.
    """
    if not (_foldable(x) and x.dtype == jnp.float32) or at_most(FEW, x):
        return exact(partial(class_sum, parts=MANY))
    sums = quick()
    infinite = functools.reduce(jnp.logical_or, [~jnp.isfinite(s) for s in jax.tree.leaves(sums)])
    sum_again = partial(class_sum, parts=SOME) if at_most(STORED, x) else looped_sum
    return lax.cond(any_of_all(live(where, infinite)), lambda: exact(sum_again), lambda: sums)


@jax.custom_batching.custom_vmap
def any_of_all(flags: jax.Array) -> jax.Array:
    """Whether any flag is set: one answer for all examples that ``vmap`` maps over, too."""
    return jnp.any(flags)


@any_of_all.def_vmap
def _any_of_all_mapped(axis_size, in_batched, flags):
    return any_of_all(flags), False


def row_sum(f: Callable, rows: Sequence[jax.Array], *xs: jax.Array, other=None) -> jax.Array:
    """Σ_j f(rows, xs_j), ``[...]``, of arrays that are written anyhow: folded where that is all.

    ``other`` as for :func:`once`.
    """
    if at_most(FEW, xs[0]):
        return once(class_sum(f, rows, *xs), other)
    return jnp.sum(f(*(beside(row, xs[0]) for row in rows), *xs), -1)


@partial(jax.jit, static_argnames="parts")
def largest_class(x: jax.Array, parts: int = SOME) -> jax.Array:
    """The index of each row's largest class; the first of several."""
    dtype = jnp.float32 if at_most(FEW, x) else jnp.int32  # integers are not vectorised there
    top, last = jnp.max(x, -1), lax.full((), x.shape[-1] - 1, dtype)

    def place_of_top(start, stop):  # XLA:CPU's argmax takes ten times this
        part = _cut(x, start, stop)
        place = start + lax.broadcasted_iota(dtype, part.shape, x.ndim - 1)
        return jnp.where(part == top[..., None], place, last)

    found = jnp.min(_fold(jnp.minimum, place_of_top, x, last, _parts(parts, x)), -1)
    return found if dtype == jnp.int32 else once(found).astype(jnp.int32)


def parts_with_gradient(x: jax.Array) -> int:
    """Of a fold in a gradient's program, which leaves less than 1 % of many classes."""
    return SOME if at_most(STORED, x) else MANY


def _parts(most, *xs):
    if any(map(_is_short, xs)):
        return min(most, 12)  # of 16 cuts, the bits are written
    return min(most, CUTS // len(xs))


def _is_short(x):
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2


def _cut(x, start, stop):
    cut = _cut_bits if _is_short(x) else partial(lax.slice_in_dim, axis=-1)
    return cut(x, start, stop)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _cut_bits(x, start, stop):
    # XLA:CPU of JAX 0.10 cuts a 16-bit float as a 32-bit one, and writes them all first
    bits = lax.slice_in_dim(lax.bitcast_convert_type(x, jnp.int16), start, stop, axis=-1)
    return lax.bitcast_convert_type(bits, x.dtype)


@_cut_bits.defjvp
def _cut_bits_jvp(start, stop, primals, tangents):
    return _cut_bits(*primals, start, stop), lax.slice_in_dim(*tangents, start, stop, axis=-1)


def _fold(combine, part, x, filler, parts):
    """The class axis of x folded to a width, of ``part(start, stop)``."""
    num_classes, width = x.shape[-1], _width(x, parts)
    if width == num_classes:
        return part(0, num_classes)
    folds = [part(start, start + width) for start in range(0, num_classes - width + 1, width)]
    again = -num_classes % width
    if again:  # the last part overlaps the one before it: to pad it would cost every part
        last = part(num_classes - width, num_classes)
        lane = lax.broadcasted_iota(jnp.int32, last.shape, x.ndim - 1)
        folds.append(jnp.where(lane < again, filler, last))
    return functools.reduce(combine, folds)


def _width(x, parts):
    """How many classes are left when a class axis is folded."""
    num_classes = x.shape[-1]
    if not _foldable(x) or (num_classes <= FEW and not _shares_are_equal(x)):
        return num_classes
    return 1 if num_classes <= FEW else LANES * -(-num_classes // (parts * LANES))


def _shares_are_equal(x):
    # XLA:CPU shares rows out to threads. Where the shares differ a test stands in the loop over
    # rows, which is not vectorised then: few classes folded into one take four times as long
    return x.ndim == 1 or (isinstance(x.shape[-2], int) and x.shape[-2] % ROWS == 0)


def _foldable(x):
    return on_cpu() and isinstance(x.shape[-1], int) and not class_axis_may_be_split(x)
