"""What the arguments of a linear head must look like, and how its rows are dealt into chunks."""

import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent._classes import on_cpu, unsplit

_describe = _checks.describe


def hidden(value: ArrayLike) -> jax.Array:
    """Floating features ``[..., D]``."""
    x = _checks.array("hidden", value)
    if not _checks.is_float(x) or x.ndim == 0:
        raise (ValueError if _checks.is_float(x) else TypeError)(
            f"hidden must be floating-point features [..., D]; got {_describe(x)}. "
            "The order is (hidden, head, labels)."
        )
    return x


def head(hidden: jax.Array, value: ArrayLike, classes_axis: int) -> jax.Array:
    """A matrix of the features' dtype, ``[D, V]``, or ``[V, D]`` for ``classes_axis`` 0."""
    w = _checks.array("head", value)
    wanted = "[D, V]" if classes_axis else "[V, D]"
    came = f"got head {_describe(w)} and hidden {_describe(hidden)}"
    if not _checks.is_float(w):
        raise TypeError(f"head must be floating-point {wanted}; {came}.")
    if w.ndim != 2 or 0 in w.shape[classes_axis : classes_axis + 1]:
        raise ValueError(f"head must be a matrix {wanted} with at least one class; {came}.")
    if w.shape[1 - classes_axis] != hidden.shape[-1]:
        flipped = w.shape[classes_axis] == hidden.shape[-1]
        axis = "0" if classes_axis else "-1"
        cure = (
            f" If its classes are on the other axis, pass classes_axis={axis}." if flipped else ""
        )
        raise ValueError(f"head must be {wanted} with D = {hidden.shape[-1]}; {came}.{cure}")
    if w.dtype != hidden.dtype:
        raise TypeError(
            f"head must have the dtype of hidden; {came}. Cast one: head.astype(hidden.dtype) "
            "multiplies in the features' dtype, and the gradient comes back in the head's."
        )
    return w


def bias(num_classes: int, value: ArrayLike | None) -> jax.Array | None:
    """One floating number a class."""
    if value is None:
        return None
    b = _checks.array("bias", value)
    if not _checks.is_float(b):
        raise TypeError(f"bias must be floating-point [V]; got {_describe(b)}.")
    if b.shape != (num_classes,):
        raise _checks.shape_error("bias", b, (num_classes,), "the head's classes")
    return b


def classes_axis(value: int) -> int:
    """1 for a head ``[D, V]``, 0 for ``[V, D]``."""
    if isinstance(value, bool) or value not in (-1, 0, 1):
        raise ValueError(
            f"classes_axis must be -1 (or 1) for a head [D, V], 0 for [V, D]; got {value!r}."
        )
    return 0 if value == 0 else 1


def result(name: str, avals: list, wanted: tuple[int, ...], meaning: str) -> None:
    """What ``loss`` or ``logit_fn`` returns: one floating array of this shape."""
    if len(avals) != 1:
        raise TypeError(f"{name} must return one array, {meaning}; got {len(avals)} arrays.")
    if not _checks.is_float(avals[0]):
        raise TypeError(f"{name} must return floating-point numbers; got {avals[0].dtype}.")
    if avals[0].shape != wanted:
        raise ValueError(
            f"{name} must return {meaning}, here {list(wanted)} in a chunk of {wanted[0]} rows; "
            f"got {list(avals[0].shape)}."
        )


# --- chunks -------------------------------------------------------------------------------------


def chunk_size(
    value: int | None, num_features: int, num_classes: int, dtype, backend: str | None = None
) -> int:
    """How many rows a chunk may have.

    A chunk reads the head and adds to its gradient once, 12·D·V bytes or so beside 6·n·D·V
    floating-point operations, so n must be several times what the device computes in the time of a
    byte: 512 on a CPU; elsewhere 4096, or 2048 where numbers of 4 bytes make matmuls slower. It is
    cut to 2·D, where a chunk's logits are twice the head's float32 gradient, and raised to where
    they take 32 MiB, which is little for any device.
    """
    if value is None:
        backend = backend or jax.default_backend()
        enough = 512 if backend == "cpu" else 4096 if jnp.dtype(dtype).itemsize == 2 else 2048
        return max(min(enough, 2 * num_features), 2**23 // num_classes, 1)
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(
            f"chunk_size must be a whole number known while tracing, or None; got {value!r}."
        ) from None
    if size < 1:
        raise ValueError(f"chunk_size must be at least 1 row; got {size}.")
    return size


def is_halved(hidden: jax.Array) -> bool:
    """Whether chunks ``[chunks, n, D]`` can be cut in two."""
    n = hidden.shape[1]
    return unsplit(hidden) and isinstance(n, int) and n % 2 == 0


def class_block(hidden, d_logits) -> int:
    """How many classes to take at a time where a chunk adds to the head's gradient.

    On a CPU as many as leave the block's product and its part of ``d_logits`` in the cache: that is
    faster than to write the product out and read it again, by up to a quarter. Other devices add
    within the matmul. All, where a mesh may split the classes: a block would be one device's.
    """
    num_rows, num_classes = d_logits.shape
    if not (on_cpu() and unsplit(d_logits) and isinstance(num_rows, int)):
        return num_classes
    in_cache = BLOCK_BYTES // (d_logits.dtype.itemsize * (num_rows + hidden.shape[1]))
    blocks = -(-num_classes // max(in_cache, 64))
    return min(64 * -(-num_classes // (64 * blocks)), num_classes)


BLOCK_BYTES = 2**24


def num_chunks(rows: int, size: int, shards: int) -> int:
    """How many chunks of at most ``size`` rows.

    If possible a divisor of the number of rows, up to twice as many as needed, that leaves chunks
    which a mesh axis can divide; then nothing is padded. Rows that an explicit mesh splits into
    shards are never padded: there it is the divisor that is nearest.
    """
    if not isinstance(rows, int):  # symbolic, in jax.export
        return 1
    needed = max(1, -(-rows // size))
    if rows == 0 or needed == 1:
        return 1
    own = rows // shards
    divisors = [k for k in range(1, own + 1) if own % k == 0] if shards > 1 else []
    if shards == 1:
        divisors = [k for k in range(needed, 2 * needed + 1) if rows % k == 0]
    near = [k for k in divisors if needed <= k <= 2 * needed]
    if near:
        return max(near, key=lambda k: (min(rows // k & -(rows // k), 128), -k))
    return min(divisors, key=lambda k: abs(math.log(k / needed)), default=needed)


def row_shards(x: jax.Array, num_axes: int) -> int:
    """Into how many shards an explicit mesh splits the leading axes of x."""
    sharding = jax.typeof(x).sharding
    spec = tuple(sharding.spec)[:num_axes]
    names = [n for part in spec if part for n in ((part,) if isinstance(part, str) else part)]
    return math.prod(sharding.mesh.shape[n] for n in names)


def dealer(batch: tuple[int, ...], chunks: int) -> tuple[Callable, Callable, bool]:
    """``[*batch, ...]`` to ``[chunks, n, ...]``, the way back, and whether rows were added.

    Row i goes to chunk i modulo ``chunks``, so that an axis sharded over a mesh stays where it is.
    """
    rows = math.prod(batch)
    added = -rows % chunks if chunks > 1 else 0

    def deal(x):
        rest = x.shape[len(batch) :]
        x = x.reshape(rows, *rest)
        if added:
            x = jnp.concatenate([x, jnp.zeros((added, *rest), x.dtype)])
        return jnp.moveaxis(x.reshape((rows + added) // chunks, chunks, *rest), 1, 0)

    def gather(x):
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(rows + added)[:rows].reshape(batch)

    return deal, gather, bool(added)
