"""What an argument must look like: static shapes and dtypes, checked while tracing.

chex makes the comparison; the error is ours and names the argument, what came, what was wanted and
the cure. The comparison goes through ``__wrapped__`` because ``chex.disable_asserts()`` must not
turn a wrong shape into a wrong number.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def holds(assertion: Callable, *args) -> bool:
    """Whether a chex assertion holds, also after ``chex.disable_asserts()``."""
    try:
        assertion.__wrapped__(*args)
    except AssertionError:
        return False
    return True


def describe(array: jax.Array) -> str:
    """``float32[8, 10]``."""
    return f"{array.dtype}{list(array.shape)}"


def array(name: str, value: ArrayLike | list) -> jax.Array:
    """Any array-like as an array, or a TypeError that names the argument."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be an array; got {type(value).__name__}, which jnp.asarray refuses: {error}"
        ) from None


def is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def is_integer(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.integer)


def accumulator(x: jax.Array) -> np.dtype:
    """The dtype losses are computed in: float64 for float64, float32 for everything narrower."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def concrete(*values) -> bool:
    """Whether every value can be looked at now, outside any transformation."""
    return not any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves(values))


def logits(value: ArrayLike) -> jax.Array:
    """Real floating logits with at least one class on the last axis."""
    x = array("logits", value)
    if not is_float(x):
        raise TypeError(
            f"logits must be floating-point scores before any softmax; got {describe(x)}. "
            "If these are the labels, the order is (logits, labels); otherwise cast them with "
            "logits.astype(jnp.float32)."
        )
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"logits must have shape [..., num_classes] with at least one class; got {describe(x)}."
        )
    return x


def _label_shape_cure(logits: jax.Array, labels: jax.Array) -> str:
    if labels.shape == logits.shape:
        return (
            "These look one-hot: use jnp.argmax(labels, -1), or "
            "soft_cross_entropy(logits, targets) for distributions."
        )
    if labels.shape == (*logits.shape[:-1], 1):
        return "Drop the trailing axis of size 1: labels[..., 0]."
    for axis in range(logits.ndim - 1):
        if labels.shape == logits.shape[:axis] + logits.shape[axis + 1 :]:
            return f"If axis {axis} holds the classes, use jnp.moveaxis(logits, {axis}, -1)."
    return "Nothing is broadcast: give every example its label (jnp.broadcast_to does it openly)."


def labels(logits: jax.Array, value: ArrayLike, name: str = "labels") -> jax.Array:
    """Integer class indices, one an example: the shape of the logits without the class axis."""
    y = array(name, value)
    if not is_integer(y):
        cure = {
            "bool": f"Use {name}.astype(jnp.int32) for two classes, or sigmoid_cross_entropy for "
            "independent ones.",
        }.get(
            str(y.dtype),
            f"Cast whole numbers with {name}.astype(jnp.int32); probabilities go to "
            "soft_cross_entropy(logits, targets).",
        )
        raise TypeError(f"{name} must be integer class indices; got {describe(y)}. {cure}")
    if not holds(chex.assert_shape, y, logits.shape[:-1]):
        raise ValueError(
            f"{name} must have the shape of logits without the class axis, "
            f"{list(logits.shape[:-1])}; got {describe(y)} for logits {describe(logits)}. "
            + _label_shape_cure(logits, y)
        )
    return y


def targets(logits: jax.Array, value: ArrayLike) -> jax.Array:
    """One number per logit: a distribution over the classes, or independent probabilities."""
    q = array("targets", value)
    if not (is_float(q) or is_integer(q) or q.dtype == bool):
        raise TypeError(f"targets must be real; got {describe(q)}.")
    if not holds(chex.assert_shape, q, logits.shape):
        cure = "Nothing is broadcast: jnp.broadcast_to(targets, logits.shape) does it openly."
        if q.shape == logits.shape[:-1] and is_integer(q):
            cure = "For integer labels use cross_entropy(logits, labels)."
        raise ValueError(
            f"targets must have the shape of logits, {list(logits.shape)}; "
            f"got {describe(q)} for logits {describe(logits)}. {cure}"
        )
    return q.astype(accumulator(logits)) if not is_float(q) else q


def where(value: ArrayLike | None, shape: tuple[int, ...], like: str) -> jax.Array | None:
    """A boolean mask of exactly ``shape``; ``like`` says whose shape that is."""
    if value is None:
        return None
    mask = array("where", value)
    if mask.dtype != bool:
        raise TypeError(
            f"where must be boolean; got {describe(mask)}. Use where != 0 for a mask; how much an "
            "example counts goes to the weights of a reduction."
        )
    if not holds(chex.assert_shape, mask, shape):
        cure = ""
        if mask.ndim and mask.shape[:-1] == shape:
            cure = " To rule out classes, set their logits: jnp.where(mask, logits, -jnp.inf)."
        raise ValueError(
            f"where must have the shape of {like}, {list(shape)}; got {describe(mask)}.{cure}"
        )
    return mask


def table(num_classes: int, value: ArrayLike, name: str = "table") -> jax.Array:
    """One real number a class (per axis, for a square matrix)."""
    t = array(name, value)
    if not (is_float(t) or is_integer(t)):
        raise TypeError(f"{name} must be real numbers; got {describe(t)}.")
    if not holds(chex.assert_shape, t, (num_classes,) * t.ndim):
        raise ValueError(f"{name} must have {num_classes} entries per axis; got {describe(t)}.")
    return t if is_float(t) else t.astype(np.float32)


def weights(losses: ArrayLike, value: ArrayLike | None) -> tuple[jax.Array, jax.Array | None]:
    """Losses and weights of one shape. Weights may be float, integer or a bool mask."""
    loss = array("losses", losses)
    if not is_float(loss):
        raise TypeError(f"losses must be floating-point; got {describe(loss)}.")
    if value is None:
        return loss, None
    w = array("weights", value)
    if not (is_float(w) or is_integer(w) or w.dtype == bool):
        raise TypeError(f"weights must be real numbers or a bool mask; got {describe(w)}.")
    if not holds(chex.assert_shape, w, loss.shape):
        raise ValueError(
            f"weights must have the shape of losses, {list(loss.shape)}; got {describe(w)}. "
            "Nothing is broadcast: jnp.broadcast_to(weights, losses.shape) does it openly; "
            "class weights are looked up first, class_weights(labels, table)."
        )
    return loss, w


def option(name: str, value: ArrayLike, low: float, high: float, dtype) -> jax.Array:
    """A scalar option as a traced array: out of range it raises, or is NaN where it is traced."""
    x = array(name, value)
    if not holds(chex.assert_shape, x, ()):
        raise ValueError(f"{name} must be a scalar; got {describe(x)}. Use jax.vmap to map over it.")
    if not (is_float(x) or is_integer(x)):
        raise TypeError(f"{name} must be a real number; got {describe(x)}.")
    x = x.astype(dtype)
    inside = (low <= x) & (x <= high)
    if not concrete(x):
        return jnp.where(inside, x, jnp.nan)
    if not inside:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}]; got {value}.")
    return x
