"""What an argument must look like: static shapes and dtypes, checked while tracing.

chex makes the comparison; the error is ours and names the argument, what came, what was wanted and
the cure. The comparison goes through ``__wrapped__`` because ``chex.disable_asserts()`` must not
turn a wrong shape into a wrong number.
"""

import functools
import math
import operator
from collections.abc import Callable, Hashable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


def holds(assertion: Callable, *args) -> bool:
    """Whether a chex assertion holds, also after ``chex.disable_asserts()``."""
    try:
        assertion.__wrapped__(*args)  # ty: ignore[missing-attribute]
    except AssertionError:
        return False
    return True


def describe(array: jax.Array | np.ndarray) -> str:
    """``float32[8, 10]``."""
    return f"{array.dtype}{list(array.shape)}"


def array(name: str, value: ArrayLike | list) -> jax.Array:
    """Any array-like as an array, or a TypeError that names the argument."""
    if _narrows(value):
        wide = np.asarray(value)
        wrong = wide[wide != wide.astype(np.int32)]
        if wrong.size:
            raise ValueError(
                f"{name} must fit 32-bit integers, into which JAX would wrap them; got "
                f"{describe(wide)} holding {wrong[0]}. Use floats, or turn on jax_enable_x64."
            )
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        came = describe(value) if isinstance(value, np.ndarray) else type(value).__name__
        reason = f" ({error})" if isinstance(value, list | tuple | int) else ""
        raise TypeError(f"{name} must be an array of numbers; got {came}{reason}.") from None


def _narrows(value) -> bool:
    """Whether these are 64-bit integers that ``jnp.asarray`` makes 32-bit, wrapping large ones."""
    is_wide = isinstance(value, np.ndarray | np.generic) and value.dtype in (np.int64, np.uint64)
    return is_wide and jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype


def floats(name: str, value: ArrayLike) -> jax.Array:
    """A floating-point array, or a TypeError that names the argument."""
    x = array(name, value)
    if not is_float(x):
        raise TypeError(
            f"{name} must be floating-point; got {describe(x)}. Cast numbers with "
            f"{name}.astype(jnp.float32)."
        )
    return x


def is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def is_integer(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.integer)


def accumulator(x: jax.Array) -> np.dtype:
    """The dtype losses are computed in: float64 for float64, float32 for everything narrower."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def concrete(*values) -> bool:
    """Whether every value can be looked at now, outside any transformation."""
    return not any(isinstance(v, Tracer) for v in jax.tree.leaves(values))


def known(value: ArrayLike) -> np.ndarray | None:
    """A value that can be looked at now, in NumPy; None where it is traced.

    Under jit a constant is known, but what jnp makes of it is traced: compare it in NumPy.
    """
    return np.asarray(value) if concrete(value) else None


def shape_error(
    name: str, x: jax.Array, wanted: tuple[int, ...], like: str, cure: str = ""
) -> ValueError:
    """What to raise if x has another shape than the wanted one; ``like`` says whose that is."""
    return ValueError(
        f"{name} must have the shape of {like}, {list(wanted)}; got {describe(x)}. "
        + (cure or _shape_cure(name, x.shape, wanted))
    )


def _shape_cure(name: str, came: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if came == (*wanted, 1):
        return f"Drop the trailing axis of size 1: {name}[..., 0]."
    if came == (1, *wanted):
        return f"Drop the leading axis of size 1: {name}[0]."
    if wanted == (*came, 1):
        return f"Add the trailing axis of size 1: {name}[..., None]."
    if len(came) > 1 and came == wanted[::-1]:
        return f"If its axes are in reverse order, use {name}.T."
    if math.prod(came) == math.prod(wanted):
        return f"If only the axes differ, use jnp.reshape({name}, {list(wanted)})."
    if _broadcasts(came, wanted):
        return f"Nothing is broadcast; jnp.broadcast_to({name}, {list(wanted)}) does it openly."
    if _broadcasts((*came, 1), wanted):
        return (
            "Nothing is broadcast; "
            f"jnp.broadcast_to({name}[..., None], {list(wanted)}) does it openly."
        )
    return _NO_CURE


_NO_CURE = "Nothing is broadcast."


def _broadcasts(came: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(came, wanted) == wanted
    except ValueError:
        return False


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
            "logits must have shape [..., num_classes] with at least one class; "
            f"got {describe(x)}. A single logit, for or against, goes to sigmoid_cross_entropy."
        )
    return x


def statistics(loss: Callable) -> Callable:
    """A loss of statistics that says so when it is called with something else."""
    name = getattr(loss, "__name__", "a loss")

    @functools.wraps(loss)
    def checked(s, *args, **options):
        if not hasattr(s, "nll"):
            came = describe(s) if hasattr(s, "dtype") else type(s).__name__
            raise TypeError(
                f"{name} takes the statistics of logits and labels; got {came}. "
                f"Use {name}(softmax_stats(logits, labels), ...)."
            )
        return loss(s, *args, **options)

    return checked


def axes(axis_name: Hashable) -> frozenset:
    """The names of none, one or several mesh axes."""
    if axis_name is None:
        return frozenset()
    return frozenset(axis_name if isinstance(axis_name, tuple) else (axis_name,))


def varying(tree) -> frozenset:
    """The mesh axes of a ``shard_map`` along which any of these arrays may differ."""
    leaves = jax.tree.leaves(tree)
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in leaves))


def spread(tree, over: frozenset):
    """The arrays, as ones that may differ along these axes too."""

    def cast(x):
        missing = tuple(over - varying(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def class_shards(name: str, x: jax.Array, axis_name: Hashable) -> int:
    """Over how many devices of a ``shard_map`` the classes of x are split."""
    if axis_name is None:
        return 1
    try:
        size = jax.lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"axis_name {axis_name!r} is not bound here. It is for calls inside jax.shard_map over "
            "a mesh with an axis of that name; under jit leave it out."
        ) from None
    if not axes(axis_name) <= varying(x):
        raise ValueError(
            f"{name} must be split over axis_name {axis_name!r}; got {describe(x)}, the same on "
            f"all its devices. Give {name} a spec that splits its classes, and leave shard_map's "
            "check_vma on: the derivative needs it."
        )
    return size


def scores(name: str, value: ArrayLike, order: str) -> jax.Array:
    """A floating-point array, or a TypeError that says the ``order`` of the arguments."""
    x = array(name, value)
    if not is_float(x):
        raise TypeError(
            f"{name} must be floating-point; got {describe(x)}. The order is {order}; cast numbers "
            f"with {name}.astype(jnp.float32)."
        )
    return x


def indices(name: str, value: ArrayLike) -> jax.Array:
    """Integer class indices, of any shape and any integer dtype."""
    y = _index_array(name, value)
    rows = "" if y.dtype == bool else f", one-hot rows with jnp.argmax({name}, -1)"
    _integers(name, y, f"Cast whole numbers with {name}.astype(jnp.int32){rows}.")
    return y


def _index_array(name, value):
    """An array in which a 64-bit index out of range stays out of range: saturated, not wrapped."""
    if _narrows(value):
        low = max(np.iinfo(np.int32).min, np.iinfo(value.dtype).min)
        value = np.clip(value, low, np.iinfo(np.int32).max).astype(np.int32)
    return array(name, value)


def _integers(name, y, cure=""):
    if not is_integer(y):
        cast = f"Cast whole numbers with {name}.astype(jnp.int32); "
        cure = cure or cast + (
            "independent classes go to sigmoid_cross_entropy(logits, targets)."
            if y.dtype == bool
            else "probabilities go to soft_cross_entropy(logits, targets)."
        )
        raise TypeError(f"{name} must be integer class indices; got {describe(y)}. {cure}")


def labels(logits: jax.Array, value: ArrayLike) -> jax.Array:
    """Integer class indices, one an example: the shape of the logits without the class axis."""
    y = _index_array("labels", value)
    wanted = logits.shape[:-1]
    if not (is_integer(y) and holds(chex.assert_shape, y, wanted)):
        cure = _label_cure("labels", y.shape, logits.shape)
        _integers("labels", y, cure if y.shape == logits.shape else "")
        like = f"logits {describe(logits)} without the class axis"
        raise shape_error("labels", y, wanted, like, cure)
    return y


def _label_cure(name: str, came: tuple[int, ...], logits: tuple[int, ...]) -> str:
    if came == logits:
        return (
            f"If these are one-hot, use jnp.argmax({name}, -1); distributions go to "
            "soft_cross_entropy(logits, targets)."
        )
    for axis in range(len(logits) - 1):
        if came == logits[:axis] + logits[axis + 1 :]:
            return f"If axis {axis} holds the classes, use jnp.moveaxis(logits, {axis}, -1)."
    return ""


def label_fault(
    labels: ArrayLike,
    num_classes: int,
    where: ArrayLike | None = None,
    name: str = "labels",
    padding: str = "where=labels != {}",
) -> str:
    """What is wrong with labels out of range: how many, the first one's place, the cure; or "".

    ``padding`` says how the caller leaves a label out; it may have no way.
    """
    if not concrete(labels, where):
        return ""
    y = np.asarray(labels)
    live = np.ones(y.shape, bool) if where is None else np.asarray(where)
    wrong = live & ((y < 0) | (y >= num_classes))
    if not wrong.any():
        return ""
    first = tuple(np.argwhere(wrong)[0].tolist())
    top, leave_out = y[live].max(), padding and padding.format(y[first])
    if y[live].min() == 1 and top == num_classes:
        cure = f" If classes are counted from 1, use {name} - 1."
    elif num_classes <= y[first] <= top < 2**31 - 1:
        cure = f" Label {top} needs {int(top) + 1} classes."
        if leave_out and (y[wrong] == top).all():
            cure += f" If it marks padding, leave it out with {leave_out}."
    else:
        cure = leave_out and f" Leave padding out with {leave_out}."
    return (
        f"{name} must be in [0, {num_classes}); {wrong.sum()} of {live.sum()} are not, the first "
        f"is {name}{list(first) if first else ''} = {y[first]}.{cure}"
    )


def binary_labels(logits: jax.Array, value: ArrayLike) -> jax.Array:
    """0 or 1, integer or bool, one per logit."""
    y = _index_array("labels", value)
    if not (is_integer(y) or y.dtype == bool):
        raise TypeError(
            f"labels must be 0 or 1, integer or bool; got {describe(y)}. Cast whole numbers with "
            "labels.astype(jnp.int32); probabilities go to sigmoid_cross_entropy(logits, targets)."
        )
    if not holds(chex.assert_shape, y, logits.shape):
        raise shape_error("labels", y, logits.shape, "logits")
    return y.astype(jnp.int32) if y.dtype == bool else y


def predictions(labels: jax.Array, value: ArrayLike) -> jax.Array:
    """Predicted classes, one per label."""
    y = _index_array("predictions", value)
    _integers("predictions", y, "Scores become decisions by jnp.argmax(scores, -1).")
    if not holds(chex.assert_shape, y, labels.shape):
        raise shape_error("predictions", y, labels.shape, "labels")
    return y


def count(name: str, value: int, at_least: int = 1) -> int:
    """A static whole number that int32 holds."""
    try:
        number = operator.index(value)
    except TypeError:
        came = type(value).__name__ if concrete(value) else "a traced value: mark it static"
        raise TypeError(f"{name} must be a Python int; got {came}.") from None
    if not at_least <= number < 2**31:
        span = f"at least {at_least}" if number < at_least else "less than 2^31"
        raise ValueError(f"{name} must be {span}; got {number}.")
    return number


def num_classes(value: int) -> int:
    """A static number of classes, at least 1."""
    return count("num_classes", value)


def targets(
    logits: jax.Array,
    value: ArrayLike,
    name: str = "targets",
    of_labels: str = "cross_entropy(logits, labels)",
) -> jax.Array:
    """One number per logit: a distribution over the classes, or independent probabilities.

    ``of_labels`` is where integer labels belong.
    """
    q = elements(name, value, "logits", logits.shape, of_labels)
    return q if is_float(q) else q.astype(accumulator(logits))


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
        has_classes = mask.shape[:-1] == shape and mask.shape[-1:] != (1,)
        cure = "To rule out classes, set their logits: jnp.where(mask, logits, -jnp.inf)."
        raise shape_error("where", mask, shape, like, cure if has_classes else "")
    return mask


def table(num_classes: int, value: ArrayLike, name: str = "table") -> jax.Array:
    """One real number a class (per axis, for a square matrix)."""
    t = array(name, value)
    if not (is_float(t) or is_integer(t)):
        raise TypeError(f"{name} must be real numbers; got {describe(t)}.")
    wanted = (num_classes,) * t.ndim
    if not num_classes or not holds(chex.assert_shape, t, wanted):
        raise ValueError(
            f"{name} must have one entry a class along each axis, {list(wanted)}, and at least one "
            f"class; got {describe(t)}."
        )
    return t if is_float(t) else t.astype(np.float32)


def weights(losses: ArrayLike, value: ArrayLike | None) -> tuple[jax.Array, jax.Array | None]:
    """Losses and weights of one shape. Weights may be float, integer or a bool mask."""
    loss = array("losses", losses)
    if not is_float(loss):
        raise TypeError(
            f"losses must be floating-point; got {describe(loss)}. The order is (losses, weights)."
        )
    if value is None:
        return loss, None
    w = array("weights", value)
    if not (is_float(w) or is_integer(w) or w.dtype == bool):
        raise TypeError(f"weights must be real numbers or a bool mask; got {describe(w)}.")
    if not holds(chex.assert_shape, w, loss.shape):
        is_table = w.ndim == 1 and _shape_cure("weights", w.shape, loss.shape) == _NO_CURE
        cure = "If these are weights of classes, look them up: class_weights(labels, table)."
        raise shape_error("weights", w, loss.shape, "losses", cure if is_table else "")
    return loss, w


def numbers(name: str, value: ArrayLike) -> jax.Array:
    """Real numbers as float32 or wider; a count that int32 cannot hold is rounded, not wrapped."""
    if isinstance(value, int | list | tuple) and concrete(value):
        value = np.asarray(value)
    if _narrows(value):
        value = np.asarray(value, np.float32)
    x = array(name, value)
    if not (is_float(x) or is_integer(x)):
        raise TypeError(f"{name} must be real numbers; got {describe(x)}.")
    return x.astype(accumulator(x))


def scalar(name: str, value: ArrayLike, dtype) -> jax.Array:
    """One real number, NaN and infinities included."""
    x = array(name, value)
    if not holds(chex.assert_shape, x, ()):
        raise ValueError(
            f"{name} must be a scalar; got {describe(x)}. To try several values, map over it with "
            "jax.vmap."
        )
    if not (is_float(x) or is_integer(x)):
        raise TypeError(f"{name} must be a real number; got {describe(x)}.")
    return x.astype(dtype)


def option(
    name: str, value: ArrayLike, low: float, high: float, dtype, error: str = ""
) -> jax.Array:
    """A scalar option as an array: out of range it raises, or is NaN where it is traced.

    ``error`` is what to raise instead of naming the range.
    """
    x = scalar(name, value, dtype)
    number = known(value)
    if number is None:
        return jnp.where((low <= x) & (x <= high), x, jnp.nan)
    with np.errstate(over="ignore"):
        inside = low <= number.astype(dtype) <= high
    if not inside:
        unbounded = high >= float(jnp.finfo(dtype).max)
        span = f"finite and at least {low:g}" if unbounded else f"in [{low:g}, {high:g}]"
        span = "finite" if low <= -high and unbounded else span
        raise ValueError(error or f"{name} must be {span}; got {value}.")
    return x


def rows(name: str, value: ArrayLike) -> jax.Array:
    """Floating-point rows with at least one class on the last axis, called ``name``."""
    x = array(name, value)
    if not is_float(x) or x.ndim == 0 or x.shape[-1] == 0:
        error = ValueError if is_float(x) else TypeError
        raise error(
            f"{name} must be floating-point of shape [..., num_classes] with at least one class; "
            f"got {describe(x)}."
        )
    return x


def elements(
    name: str, value: ArrayLike, like: str, shape: tuple[int, ...], of_labels: str = ""
) -> jax.Array:
    """Real numbers or bools of exactly ``shape``; ``like`` says whose that is.

    ``of_labels`` is where integer labels belong, one for all classes of the last axis.
    """
    x = array(name, value)
    if not (is_float(x) or is_integer(x) or x.dtype == bool):
        raise TypeError(f"{name} must be real numbers; got {describe(x)}.")
    if not holds(chex.assert_shape, x, shape):
        is_label = of_labels and is_integer(x) and x.shape == shape[:-1]
        cure = f"Integer labels go to {of_labels}." if is_label else ""
        raise shape_error(name, x, shape, like, cure)
    return x
