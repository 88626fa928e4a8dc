"""What the dialects share: axes put last, shapes made equal, dtypes of results."""

import math
import operator
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks

Axes = int | tuple[int, ...] | None


def axes_of(axis: Axes, ndim: int) -> tuple[int, ...]:
    """The axes as non-negative numbers; None is all of them."""
    axes = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(operator.index(a) for a in axes)
    if not all(-ndim <= a < ndim for a in axes):
        raise ValueError(f"axis {axis} is out of bounds for an array of {ndim} dimensions.")
    axes = tuple(a % ndim for a in axes)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis {axis} names an axis twice.")
    return axes


def one_axis(axis: int, ndim: int) -> int:
    """One axis as a non-negative number."""
    if isinstance(axis, bool | tuple) or axis is None:
        raise ValueError(f"axis must be an integer; got {axis}.")
    return axes_of(axis, ndim)[0]


def classes_last(x: jax.Array, axis: Axes) -> jax.Array:
    """x with these axes flattened, in their order, into one last axis."""
    axes = axes_of(axis, x.ndim)
    batch = tuple(a for a in range(x.ndim) if a not in axes)
    if axes == (x.ndim - 1,):
        return x
    shape = tuple(x.shape[a] for a in batch)
    return x.transpose(batch + axes).reshape(*shape, math.prod(x.shape[a] for a in axes))


def broadcast_shape(**arrays: jax.Array) -> tuple[int, ...]:
    """The shape that the named arrays broadcast to, or a ValueError that names them."""
    try:
        return jnp.broadcast_shapes(*(x.shape for x in arrays.values()))
    except ValueError:
        came = ", ".join(f"{name} {_checks.describe(x)}" for name, x in arrays.items())
        raise ValueError(f"shapes must broadcast against each other; got {came}.") from None


def stretch(name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x broadcast to ``shape``, or a ValueError that names it. Openly, under any rank promotion."""
    if x.shape == shape:
        return x
    if x.ndim > len(shape) or any(
        a not in (1, b) for a, b in zip(x.shape[::-1], shape[::-1], strict=False)
    ):
        raise ValueError(f"{name} must broadcast to {list(shape)}; got {_checks.describe(x)}.")
    return jnp.broadcast_to(x.reshape((1,) * (len(shape) - x.ndim) + x.shape), shape)


def wider(*arrays: jax.Array):
    """The dtype arithmetic on these gives under JAX's standard promotion; numbers yield."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*arrays)


def each_option(name: str, loss: Callable, arrays, option: ArrayLike) -> jax.Array:
    """``loss(arrays, option)``, elementwise, where an option may be an array as well.

    The core's options are scalars, so elements are mapped over. Those at the ends of its range are
    tried alone: what raises of a scalar, raises of an array.
    """
    if not jnp.ndim(option):
        return loss(arrays, option)
    values = _checks.known(option)
    for end in () if values is None or not values.size else (values.min(), values.max()):
        jax.eval_shape(partial(loss, option=end), arrays)
    option = _checks.array(name, option)
    shape = broadcast_shape(losses=jax.tree.leaves(arrays)[0], **{name: option})
    arrays = jax.tree.map(lambda x: stretch("losses", x, shape), arrays)
    for _ in shape:
        loss = jax.vmap(loss)
    return loss(arrays, stretch(name, option, shape))


def balance(targets: jax.Array, alpha: ArrayLike) -> jax.Array:
    """The weight alpha of target 1 and 1 − alpha of target 0, elementwise."""
    alpha = _checks.numbers("alpha", alpha).astype(targets.dtype)
    alpha = stretch("alpha", alpha, targets.shape)
    return alpha * targets + (1 - alpha) * (1 - targets)


def smooth(targets: jax.Array, label_smoothing: ArrayLike, towards: float) -> jax.Array:
    """(1 − ε) · targets + ε · towards; ε in [0, 1]."""
    if is_zero(label_smoothing):
        return targets
    epsilon = _checks.option("label_smoothing", label_smoothing, 0, 1, targets.dtype)
    return (1 - epsilon) * targets + epsilon * towards


def is_zero(option: ArrayLike) -> bool:
    """Whether an option is a plain 0, so that what it is a factor of need not be computed."""
    return isinstance(option, int | float) and option == 0
