"""What is wrong with these inputs? The mistakes that a loss cannot report, named.

Shapes and dtypes raise wherever a loss is called. Values do not, as under ``jax.jit`` nobody sees
them: a label out of range is a NaN, and probabilities passed as logits a model that hardly learns.
Look at a batch once, before training::

    jaxent.debug.check_inputs(logits, labels, weights)

or at every step, inside the compiled function::

    def loss(params, batch):
        logits = model(params, batch["x"])
        jaxent.debug.checkify_inputs(logits, batch["y"])
        ...

    step = jaxent.debug.checked(step)  # in place of jax.jit(step)
"""

import dataclasses
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import checkify
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Integer

from jaxent import _checks
from jaxent.reductions import Weights
from jaxent.stats import class_indices, pick


class JaxentInputWarning(UserWarning):
    """Inputs that have a loss, but hardly the one that was meant."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the inputs; prints as its message.

    Attributes:
      severity: ``"error"`` where a loss is NaN or infinite, ``"warning"`` where it is hardly the
        one that was meant.
      argument: ``"logits"``, ``"labels"``, ``"weights"`` or ``"where"``.
      message: what is wrong, where, and the cure.
    """

    severity: Literal["error", "warning"]
    argument: str
    message: str

    def __str__(self) -> str:
        return self.message


def check_inputs(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    weights: Weights = None,
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> None:
    """Raises what is certainly wrong with a batch and warns of what looks wrong.

    Args:
      logits: float ``[..., num_classes]``.
      labels: class indices, any integer dtype, ``[...]``.
      weights: real or bool ``[...]``: what the reduction is going to get.
      where: bool ``[...]``: what the loss is going to get.

    Raises:
      TypeError, ValueError: shapes and dtypes, as every loss does.
      ValueError: whatever makes a loss NaN or infinite: a label out of range; logits that are NaN,
        that hold several +inf, or that rule out every class or the label's own; weights that are
        not finite.
      TypeError: called on traced values, in ``jit``, ``vmap`` or ``grad``: see
        :func:`checkify_inputs`.

    Warns:
      JaxentInputWarning: for each warning of :func:`diagnose`.

    Example:
      >>> logits, labels = jnp.zeros((4, 3)), jnp.array([0, 2, -100, -100])
      >>> check_inputs(logits, labels, where=labels != -100)
      >>> check_inputs(logits, labels)
      Traceback (most recent call last):
      ...
      ValueError: labels must be in [0, 3); 2 of 4 are not, the first is labels[2] = -100. Leave
      padding out with where=labels != -100.
    """
    findings = diagnose(logits, labels, weights, where=where)
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors:
        raise ValueError("\n".join(errors))
    for finding in findings:
        warnings.warn(str(finding), JaxentInputWarning, stacklevel=2)


def diagnose(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    weights: Weights = None,
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> tuple[Finding, ...]:
    """What :func:`check_inputs` has to say, as values.

    The warnings: logits that are probabilities, one-hot or +inf, that have a single class, or whose
    softmax is 0 or 1 to float32; a batch of which nothing counts; weights that are negative, that
    count what ``where`` leaves out, or that weigh the majority class up.

    Args:
      logits: float ``[..., num_classes]``.
      labels: class indices, any integer dtype, ``[...]``.
      weights: real or bool ``[...]``: what the reduction is going to get.
      where: bool ``[...]``: what the loss is going to get.

    Returns:
      the errors; if there are none, the warnings; if there are none, ``()``.

    Raises:
      TypeError, ValueError: shapes and dtypes, as every loss does; TypeError for traced values.

    Example:
      >>> p = jax.nn.softmax(jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
      >>> for finding in diagnose(p, jnp.array([0, 1])):
      ...     print(finding.severity, finding.argument, finding, sep=": ")
      warning: logits: logits are probabilities, every row sums to 1: pass the scores before the
      softmax, or jnp.log(p).
      >>> diagnose(jnp.log(p), jnp.array([0, 1]))
      ()
    """
    if not _checks.concrete(logits, labels, weights, where):
        raise TypeError(
            "check_inputs looks at values, which jit, vmap and grad hide: call it outside of them. "
            "Inside, call jaxent.debug.checkify_inputs and compile the outermost function by "
            "jaxent.debug.checked in place of jax.jit."
        )
    with jax.ensure_compile_time_eval():  # also where jit closes over the values
        x, y, w, live = _arguments(logits, labels, weights, where)
        errors = [
            Finding("error", argument, message.format(**fields))
            for argument, failed, message, fields in _faults(x, y, w, live)
            if failed
        ]
        if message := _checks.label_fault(labels, x.shape[-1], live):  # it knows more cures
            errors[0] = Finding("error", "labels", message)
        return tuple(errors) or tuple(_doubts(x, np.asarray(y), w, np.asarray(live)))


def checkify_inputs(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    weights: Weights = None,
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> None:
    """The errors of :func:`check_inputs`, inside ``jit``, ``vmap``, ``scan`` and ``grad``.

    It calls :func:`jax.experimental.checkify.check`: compile the outermost function by
    :func:`checked`, or make it ``checkify.checkify(f, errors=checkify.user_checks)``. The checks
    cost time; take the call out again when the inputs are sound. In a ``scan`` that reverse mode
    differentiates JAX drops them: differentiate inside the scan, or check before it.

    Args:
      logits: float ``[..., num_classes]``.
      labels: class indices, any integer dtype, ``[...]``.
      weights: real or bool ``[...]``: what the reduction is going to get.
      where: bool ``[...]``: what the loss is going to get.

    Raises:
      TypeError, ValueError: shapes and dtypes, as every loss does.
      RuntimeError: traced without checkify.

    Example:
      >>> import jaxent
      >>> def loss(logits, labels):
      ...     checkify_inputs(logits, labels)
      ...     return jaxent.weighted_mean(jaxent.cross_entropy(logits, labels))
      >>> grad = checked(jax.grad(loss))
      >>> print(grad(jnp.zeros((1, 2)), jnp.array([0])))
      [[-0.5  0.5]]
      >>> grad(jnp.zeros((1, 2)), jnp.array([7]))
      Traceback (most recent call last):
      ...
      ValueError: labels must be in [0, 2); 1 of 1 are not, the first is labels[0] = 7. If it
      marks padding, leave it out with where=labels != 7.
    """
    for _, failed, message, fields in _faults(*_arguments(logits, labels, weights, where)):
        if not (_checks.concrete(failed) or _inside_checkify()):
            raise RuntimeError(
                "checkify_inputs was traced without checkify. Compile the outermost function by "
                "jaxent.debug.checked(step) in place of jax.jit(step), or make it "
                "checkify.checkify(step, errors=checkify.user_checks)."
            )
        checkify.check(~failed, message, **fields)  # ty: ignore[invalid-argument-type]


def checked(function: Callable, **jit_options: Any) -> Callable:
    """``jax.jit(function)`` in which every :func:`checkify_inputs` and ``checkify.check`` raises.

    Args:
      function: what would be compiled, a train step say; itself compiled or not.
      **jit_options: of :func:`jax.jit`.

    Returns:
      a function like ``jax.jit(function, **jit_options)``, which waits for each result.

    Raises:
      ValueError: when called, with the message of the first check that failed.

    Example:
      >>> from jax.experimental import checkify
      >>> @checked
      ... def root(x):
      ...     checkify.check(x >= 0, "x must not be negative; got {}", x)
      ...     return jnp.sqrt(x)
      >>> print(root(4.0))
      2.0
      >>> root(-4.0)
      Traceback (most recent call last):
      ...
      ValueError: x must not be negative; got -4.0
    """
    functional = jax.jit(checkify.checkify(function, errors=checkify.user_checks), **jit_options)

    @functools.wraps(function)
    def call(*args, **kwargs):
        error, out = functional(*args, **kwargs)
        if message := error.get():
            raise ValueError(message.replace(" (`check` failed)", ""))
        return out

    return call


def _inside_checkify() -> bool:
    """Whether a checkified function is being traced.

    checkify leaves no mark on its tracers, and a check without it fails only when it is lowered,
    far from here and in words of its own; but the function that checkify makes is on the stack.
    """
    home = inspect.unwrap(checkify.checkify).__code__.co_filename
    frame = sys._getframe()
    while frame and frame.f_code.co_filename != home:
        frame = frame.f_back
    return frame is not None


def _arguments(logits, labels, weights, where):
    """Arrays of checked shapes and dtypes; no weights are 1 each, no ``where`` is True."""
    x = _checks.logits(logits)
    y = _checks.labels(x, labels)
    live = _checks.where(where, y.shape, "labels")
    live = jnp.ones_like(y, bool) if live is None else live
    ones = jnp.ones_like(y, jnp.float32)
    w = live if weights is None else jnp.asarray(_checks.weights(ones, weights)[1])
    return _whole(x), _whole(y), _whole(w.astype(_checks.accumulator(w))), _whole(live)


def _whole(x):
    """x on every device, where an explicit mesh has it sharded: an index or top_k wants it so."""
    if all(axis is None for axis in jax.typeof(x).sharding.spec):
        return x
    return jax.sharding.reshard(x, PartitionSpec())


# --- errors: what makes a loss NaN or infinite ----------------------------------------------------


_FAULTS = (
    (
        "labels",
        "labels must be in [0, {num_classes}); {count} of {total} are not, the first is "
        "labels{place} = {value}. If it marks padding, leave it out with where=labels != {value}.",
    ),
    (
        "logits",
        "logits hold NaN in {count} of {total} examples, the first is logits{place}. It arose "
        "before the loss: jax_debug_nans finds where.",
    ),
    (
        "logits",
        "logits hold more than one +inf in {count} of {total} examples, the first is "
        "logits{place}. float16 overflows at 65504: form them in bfloat16 or float32.",
    ),
    (
        "logits",
        "logits rule out every class by -inf in {count} of {total} examples, the first is "
        "logits{place}. Leave such examples out by where=.",
    ),
    (
        "logits",
        "logits rule out the label's own class by -inf in {count} of {total} examples, the first "
        "is logits{place} with label {value}. Keep the labels in the mask of classes, or leave "
        "such examples out by where=.",
    ),
    (
        "weights",
        "weights are not finite in {count} examples, the first is weights{place} = {value}. "
        "class_weights(labels, table, where=where) is 0 for examples left out.",
    ),
)


@jax.jit
def _faulty_examples(x, y, w, live):
    """Which examples have each of the faults above, bool ``[...]``."""
    labels = class_indices(y, x.shape[-1])
    no_class = (x == -jnp.inf).all(-1)
    no_label = ~no_class & (pick(x, labels) == -jnp.inf)
    return (
        live & (labels < 0),
        live & jnp.isnan(x).any(-1),
        live & (jnp.sum(x == jnp.inf, -1) > 1),
        live & no_class,
        live & no_label & (w != 0),
        ~jnp.isfinite(w),  # also of what is left out: there too NaN makes the mean NaN
    )


@jax.jit
def _first(examples, values, live):
    """How many of how many examples; the place i0, i1, … of the first and its value."""
    first = jnp.unravel_index(jnp.argmax(examples), examples.shape)
    return {
        "count": jnp.sum(examples, dtype=jnp.int32),
        "total": jnp.sum(live, dtype=jnp.int32),
        "value": values[first],
        **{f"i{axis}": index for axis, index in enumerate(first)},
    }


def _faults(x, y, w, live) -> Iterator[tuple[str, Array, str, dict[str, Array]]]:
    """Of each fault the argument, whether any example has it, the message and its fields."""
    if not y.size:
        return
    axes = ", ".join(f"{{i{axis}}}" for axis in range(y.ndim))
    for (argument, message), examples in zip(_FAULTS, _faulty_examples(x, y, w, live), strict=True):
        message = message.replace("{place}", f"[{axes}]" if axes else "")
        message = message.replace("{num_classes}", str(x.shape[-1]))
        fields = _first(examples, w if argument == "weights" else y, live)
        yield argument, examples.any(), message, fields


# --- warnings: what has a loss, but hardly the one that was meant ---------------------------------


def _doubts(x, y, w, live) -> Iterator[Finding]:
    x, w = _row_facts(x), np.asarray(w, np.float64)
    if not live.any():
        empty = "where leaves every example out" if y.size else "the batch is empty"
        yield Finding("warning", "where", f"No example counts, {empty}: means are 0, no gradient.")
    else:
        facts = {name: np.asarray(rows)[live] for name, rows in x.items()}
        yield from (Finding("warning", "logits", doubt) for doubt in _doubts_of_logits(facts))
        yield from (
            Finding("warning", "weights", doubt) for doubt in _doubts_of_weights(y, w, live)
        )


@jax.jit
def _row_facts(x):
    """What each row of logits looks like, bool ``[...]``."""
    x = x.astype(_checks.accumulator(x))
    one_class = jnp.full(x.shape[:-1], x.shape[-1] == 1)
    largest = lax.top_k(x, min(2, x.shape[-1]))[0]
    lead = largest[..., 0] - largest[..., -1]
    in_unit = ((x >= 0) & (x <= 1)).all(-1)
    return {
        "one_class": one_class,
        "one_hot": ~one_class & ((x == 0) | (x == 1)).all(-1) & (x.sum(-1) == 1),
        # A sum as rough as bfloat16 makes it.
        "distribution": ~one_class & in_unit & (jnp.abs(x.sum(-1) - 1) < 0.01),
        "infinite": (x == jnp.inf).any(-1),
        "saturated": (lead > 88) & jnp.isfinite(lead),  # e^-88 is the last normal float32
    }


def _doubts_of_logits(rows: dict[str, np.ndarray]) -> Iterator[str]:
    of = {name: f"{is_so.sum()} of {is_so.size} examples" for name, is_so in rows.items()}
    if rows["one_class"].all():
        yield (
            "logits have a single class, whose loss is 0 whatever they are. One logit, for or "
            "against, goes to sigmoid_cross_entropy(logits, targets)."
        )
    elif rows["one_hot"].all():
        yield "logits are one-hot in every row. Are they targets? The order is (logits, labels)."
    elif rows["distribution"].all():
        yield (
            "logits are probabilities, every row sums to 1: pass the scores before the softmax, or "
            "jnp.log(p)."
        )
    if rows["infinite"].any():
        yield (
            f"logits hold +inf in {of['infinite']}, whose loss is infinite or 0. float16 overflows "
            "at 65504: form them in bfloat16 or float32."
        )
    if rows["saturated"].mean() > 0.5:
        yield (
            f"logits are saturated in {of['saturated']}: one leads by more than 88 and the softmax "
            "is 0 or 1 to float32. Scale the inputs, or divide the logits by a temperature."
        )


def _doubts_of_weights(y, w, live) -> Iterator[str]:
    left_out, counts, negative = ~live & (w != 0), live & (w != 0), w < 0
    if left_out.any():
        yield (
            f"weights count {left_out.sum()} examples that where leaves out: their loss is 0, and "
            "a weighted mean divides by them. Use jnp.where(where, weights, 0)."
        )
    if not counts.any():
        yield "weights are 0 wherever an example counts: means are 0, no gradient."
    elif w.sum() == 0:
        yield "weights sum to 0 and cancel: weighted_mean is 0, no gradient."
    if negative.any():
        yield (
            f"weights are negative in {negative.sum()} of {w.size} examples, which training pushes "
            "away from their labels without bound."
        )
    elif counts.any():
        yield from _majority_weighted_up(y[counts], w[counts])


def _majority_weighted_up(y, w) -> Iterator[str]:
    """The commonest class against the rarest, if by three standard errors they are so."""
    classes, index, count = np.unique(y, return_inverse=True, return_counts=True)
    mean = np.bincount(index, w) / count
    common, rare = count.argmax(), count.argmin()
    variance = np.sum((w - mean[index]) ** 2) / max(y.size - classes.size, 1)
    noise = np.sqrt(variance * (1 / count[common] + 1 / count[rare])) + 1e-6 * mean[common]
    outnumbers = count[common] - count[rare] > 3 * np.sqrt(count[common] + count[rare])
    if outnumbers and mean[common] - mean[rare] > 3 * noise:
        yield (
            f"weights weigh the majority up: class {classes[common]} with {count[common]} examples "
            f"has mean weight {mean[common]:.3g}, class {classes[rare]} with {count[rare]} has "
            f"{mean[rare]:.3g}. Weights that balance go the other way: "
            "jaxent.weights.balanced(jaxent.weights.counts(labels, num_classes))."
        )
