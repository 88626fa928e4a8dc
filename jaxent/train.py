"""Train steps whose loss is a :class:`~jaxent.WeightedSum`: exact however a batch is split.

A mean of means is not the mean: micro-batches and devices with uneven weights have to add their
sums and divide once. Here an *objective* returns the two sums, and whoever sees the last of the
batch divides. Parameters are any pytree of arrays: a Flax Linen ``params`` dict, the state of
``nnx.split``, the arrays of ``eqx.partition``, or your own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent._numerics import times
from jaxent.reductions import WeightedSum

PyTree = Any
Objective = Callable[[PyTree, PyTree], Any]


def objective(
    apply: Callable[[PyTree, PyTree], Any], loss_fn: Callable[[Any, PyTree], WeightedSum]
) -> Objective:
    """A training objective: a model's outputs, then their weighted sum.

    Args:
      apply: ``(params, batch) -> outputs``.
      loss_fn: ``(outputs, batch) -> WeightedSum``, or ``-> (WeightedSum, aux)`` for the functions
        below with ``has_aux=True``.

    Returns:
      ``(params, batch) -> loss_fn(apply(params, batch), batch)``.

    Raises:
      TypeError: when called, if ``loss_fn`` returns anything else.

    Example:
      >>> import jaxent
      >>> linear = objective(
      ...     lambda params, batch: batch["x"] @ params,
      ...     lambda logits, batch: jaxent.weighted_sum(
      ...         jaxent.cross_entropy(logits, batch["y"]), batch["weights"]
      ...     ),
      ... )
      >>> batch = {"x": jnp.eye(2), "y": jnp.array([0, 1]), "weights": jnp.array([1.0, 3.0])}
      >>> print(linear(jnp.zeros((2, 2)), batch).mean())
      0.6931472
    """

    def summed(params, batch):
        result = loss_fn(apply(params, batch), batch)
        if not isinstance(result, WeightedSum):
            _part_and_aux(result, isinstance(result, tuple | list), "loss_fn")
        return result

    return summed


def value_and_grad(objective: Objective, *, has_aux: bool = False) -> Callable:
    """The weighted mean of an objective and its gradient in the parameters.

    Args:
      objective: ``(params, batch) -> WeightedSum``; ``-> (WeightedSum, aux)`` with ``has_aux``.
      has_aux: whether the objective returns something beside its sum.

    Returns:
      ``(params, batch) -> ((loss, part), grads)``, or ``((loss, (part, aux)), grads)``: ``loss`` is
      ``part.mean()``, and ``part`` adds up across batches where the loss does not.

    Raises:
      TypeError: when called, if the objective returns anything but a WeightedSum.

    Example:
      >>> import jaxent
      >>> of = lambda params, batch: jaxent.weighted_sum((params - batch) ** 2)
      >>> (loss, part), grad = value_and_grad(of)(jnp.array(1.0), jnp.array([0.0, 3.0]))
      >>> print(loss, part.weight, grad)
      2.5 2.0 -1.0
    """

    def mean(params, batch):
        part, aux = _part_and_aux(objective(params, batch), has_aux)
        return part.mean(), (part, aux) if has_aux else part

    return jax.value_and_grad(mean, has_aux=True)


def accumulate(objective: Objective, micro_batches: int, *, has_aux: bool = False) -> Callable:
    """:func:`value_and_grad` in micro-batches: the whole batch's mean and gradient, less memory.

    The batch is split along the leading axis of every leaf into ``micro_batches`` equal shares (row
    i goes to share i modulo ``micro_batches``, which keeps a sharded axis where it is). Sums are
    added over the shares and divided once, so uneven and zero weights, padding and all-padding
    shares included, give the same mean and gradient as the whole batch, up to rounding.

    Args:
      objective: as :func:`value_and_grad`.
      micro_batches: the number of shares; must divide the leading axis of every leaf. Pad a ragged
        batch with rows of weight 0; what all rows share (a table, say) belongs in a closure or in
        the parameters.
      has_aux: whether the objective returns something beside its sum.

    Returns:
      ``(params, batch) -> ((loss, part), grads)``, or ``((loss, (part, aux)), grads)`` with ``aux``
      stacked along a leading axis of size ``micro_batches``.

    Raises:
      TypeError: ``micro_batches`` not a Python integer.
      ValueError: ``micro_batches`` < 1, or when called, a leaf whose leading axis it does not
        divide.

    Example:
      >>> import jaxent
      >>> of = lambda params, batch: jaxent.weighted_sum((params - batch["x"]) ** 2, batch["w"])
      >>> batch = {"x": jnp.array([0.0, 3.0, 5.0, 9.0]), "w": jnp.array([1.0, 0.0, 3.0, 0.0])}
      >>> (loss, part), grad = accumulate(of, 2)(jnp.array(1.0), batch)  # the second share weighs 0
      >>> print(loss, part.weight, grad)
      12.25 4.0 -5.5
    """
    micro_batches = _checks.count("micro_batches", micro_batches)

    def total_and_weight(params, share):
        part, aux = _part_and_aux(objective(params, share), has_aux)
        return part.total, (part.weight, aux)

    def mean_and_grad(params, batch):
        shares = jax.tree.map(lambda x: _shares(x, micro_batches), batch)

        def add_share(so_far, share):
            (total, (weight, aux)), grad = jax.value_and_grad(total_and_weight, has_aux=True)(
                params, share
            )
            return jax.tree.map(_add, so_far, (WeightedSum(total, weight), grad)), aux

        def weight_of(params):  # constant, as a rule: then its gradient costs nothing
            def add_weight(so_far, share):
                return so_far + total_and_weight(params, share)[1][0], None

            return lax.scan(jax.checkpoint(add_weight), zero.weight, shares)[0]

        first = jax.tree.map(lambda x: x[0], shares)
        total, (weight, _) = jax.eval_shape(total_and_weight, params, first)
        zero = WeightedSum(jnp.zeros((), total.dtype), jnp.zeros((), weight.dtype))
        zero_grad = jax.tree.map(_nothing_like, params)
        (part, total_grad), aux = lax.scan(add_share, (zero, zero_grad), shares)

        slope = jax.grad(WeightedSum.mean)(part)  # ∂mean/∂total and ∂mean/∂weight

        def mean_grad(p, of_total, of_weight):
            total, weight = (x.astype(of_total.dtype) for x in (slope.total, slope.weight))
            return (total * of_total + weight * of_weight.astype(of_total.dtype)).astype(p.dtype)

        grads = jax.tree.map(mean_grad, params, total_grad, jax.grad(weight_of)(params))
        return (part.mean(), (part, aux) if has_aux else part), grads

    return mean_and_grad


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    has_aux: bool = False,
) -> Callable:
    """A jitted step of an Optax optimizer on the weighted mean of an objective.

    Exact over micro-batches, and over devices by construction: under ``jit`` a batch sharded over a
    mesh (automatic or explicit axes) is still one batch, with one division.

    Args:
      objective: as :func:`value_and_grad`.
      optimizer: any Optax transformation; ones that take extra arguments get ``value``, ``grad``,
        ``value_fn`` (a line search, say) and ``weight`` (:func:`weighted_multi_steps`).
      micro_batches: split the batch as :func:`accumulate` does.
      has_aux: whether the objective returns something beside its sum.

    Returns:
      ``(params, opt_state, batch) -> (params, opt_state, part)``; ``part.mean()`` is the loss
      before the step. With ``has_aux`` the last is ``(part, aux)``. The old ``params`` and
      ``opt_state`` are donated: use the returned ones.

    Example:
      >>> import jaxent
      >>> of = lambda params, batch: jaxent.weighted_sum((params - batch) ** 2)
      >>> step = train_step(of, optax.sgd(0.5))
      >>> params = jnp.array(1.0)
      >>> opt_state = optax.sgd(0.5).init(params)
      >>> params, opt_state, part = step(params, opt_state, jnp.array([0.0, 3.0]))
      >>> print(params, part.mean())
      1.5 2.5
    """
    optimizer = optax.with_extra_args_support(optimizer)
    if micro_batches == 1:
        mean_and_grad = value_and_grad(objective, has_aux=has_aux)
    else:
        mean_and_grad = accumulate(objective, micro_batches, has_aux=has_aux)

    def step(params, opt_state, batch):
        def value_fn(params, weight=None):
            del weight  # Optax's line searches refuse an extra argument that value_fn does not take
            return _part_and_aux(objective(params, batch), has_aux)[0].mean()

        (loss, extra), grads = mean_and_grad(params, batch)
        updates, opt_state = optimizer.update(
            grads,
            opt_state,
            params,
            value=loss,
            grad=grads,
            value_fn=value_fn,
            weight=(extra[0] if has_aux else extra).weight,
        )
        return optax.apply_updates(params, updates), opt_state, extra

    donating = jax.jit(step, donate_argnums=(0, 1))

    @functools.wraps(step)
    def unaliased_step(params, opt_state, batch):
        return donating(*_unaliased((params, opt_state)), batch)

    return unaliased_step


class WeightedMultiStepsState(NamedTuple):
    """What has been gathered since the last step, and the wrapped optimizer's state."""

    mini_step: jax.Array
    gradient_step: ArrayLike
    gathered: WeightedSum  # of gradients: total is a tree like the parameters
    inner_state: Any


def weighted_multi_steps(
    optimizer: optax.GradientTransformation,
    every_k_schedule: int | Callable[[ArrayLike], ArrayLike],
) -> optax.GradientTransformationExtraArgs:
    """``optax.MultiSteps`` for weighted means: its step is the whole batch's.

    ``MultiSteps`` averages the gradients of micro-batch means whatever their weights. This one
    weighs each by its ``weight`` and divides by their sum: give ``update`` the gradient of the
    micro-batch's weighted mean and ``weight=part.weight``. (The weights must not depend on the
    parameters; :func:`accumulate` has no such condition.)

    Args:
      optimizer: what steps every k micro-batches; updates in between are 0.
      every_k_schedule: k, or a function of the number of steps taken.

    Returns:
      a ``GradientTransformationExtraArgs`` whose ``update`` takes ``weight=``, a real scalar; other
      extra arguments go on to the optimizer, those of the last micro-batch.

    Raises:
      TypeError: k not a Python integer; when called, ``weight`` not real.
      ValueError: k < 1; when called, ``weight`` not a scalar.

    References:
      ``optax.MultiSteps``.

    Example:
      >>> optimizer = weighted_multi_steps(optax.sgd(1.0), 2)
      >>> params = jnp.array(0.0)
      >>> state = optimizer.init(params)
      >>> for grad, weight in [(4.0, 1.0), (8.0, 3.0)]:
      ...     updates, state = optimizer.update(jnp.array(grad), state, params, weight=weight)
      >>> print(updates)  # -(1 * 4 + 3 * 8) / (1 + 3)
      -7.0
    """
    optimizer = optax.with_extra_args_support(optimizer)
    every_k = every_k_schedule if callable(every_k_schedule) else lambda _: every_k_schedule
    if not callable(every_k_schedule) and _checks.concrete(every_k_schedule):
        _checks.count("every_k_schedule", every_k_schedule)

    def nothing(params):
        return WeightedSum(jax.tree.map(_nothing_like, params), jnp.zeros((), float))

    def init(params):
        mini_step, gradient_step = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return WeightedMultiStepsState(
            mini_step, gradient_step, nothing(params), optimizer.init(params)
        )

    def update(updates: PyTree, state, params=None, *, weight, **extra_args):
        weight = _checks.scalar("weight", weight, state.gathered.weight.dtype)
        gathered = WeightedSum(
            jax.tree.map(
                lambda so_far, g: (
                    so_far + times(weight.astype(so_far.dtype), g.astype(so_far.dtype))
                ),
                state.gathered.total,
                updates,
            ),
            state.gathered.weight + weight,
        )

        def step():
            mean = jax.tree.map(
                lambda total, g: (
                    WeightedSum(total, gathered.weight.astype(total.dtype)).mean().astype(g.dtype)
                ),
                gathered.total,
                updates,
            )
            done, inner_state = optimizer.update(mean, state.inner_state, params, **extra_args)
            start, steps = jnp.zeros((), jnp.int32), optax.safe_increment(state.gradient_step)
            return done, WeightedMultiStepsState(start, steps, nothing(updates), inner_state)

        def wait():
            zeros = jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), jax.eval_shape(step)[0])
            return zeros, state._replace(mini_step=state.mini_step + 1, gathered=gathered)

        return lax.cond(state.mini_step + 1 >= every_k(state.gradient_step), step, wait)

    return optax.GradientTransformationExtraArgs(init, update)  # ty: ignore[invalid-argument-type]


def _nothing_like(p):
    """Where gradients are added up: in float32 or wider."""
    is_complex = jnp.issubdtype(p.dtype, jnp.complexfloating)
    return jnp.zeros_like(p, p.dtype if is_complex else _checks.accumulator(p))


def _part_and_aux(result, has_aux, name="objective"):
    is_pair = isinstance(result, tuple | list) and len(result) == 2
    part, aux = result if has_aux and is_pair else (result, None)
    if not isinstance(part, WeightedSum) or (has_aux and not is_pair):
        cure = "A mean cannot be added up across micro-batches or devices."
        if is_pair and isinstance(result[0], WeightedSum):
            cure = "If it returns (WeightedSum, aux), say has_aux=True."
        elif isinstance(part, WeightedSum):
            cure = "Without aux, leave has_aux out."
        wanted = "a jaxent.WeightedSum, such as weighted_sum(losses, weights)"
        if has_aux:
            wanted = "(jaxent.WeightedSum, aux), such as (weighted_sum(losses, weights), logits)"
        raise TypeError(f"{name} must return {wanted}; got {_described(part)}. {cure}")
    return part, aux


def _described(x):
    return _checks.describe(x) if isinstance(x, jax.Array | np.ndarray) else type(x).__name__


def _unaliased(tree):
    """Copies of what occurs twice, as in optax.lbfgs' fresh state: no buffer is donated twice."""
    seen = set()

    def own(x):
        if id(x) in seen:
            return jnp.copy(x)
        seen.add(id(x))
        return x

    return jax.tree.map(own, tree)


def _shares(x, micro_batches):
    """``[n, ...]`` as ``[micro_batches, n / micro_batches, ...]``, rows dealt in turn."""
    if not jnp.ndim(x) or x.shape[0] % micro_batches:
        raise ValueError(
            f"micro_batches={micro_batches} must divide the leading axis of every leaf of batch; "
            f"got one of shape {list(jnp.shape(x))}. Pad it with rows of weight 0 (where=False)."
        )
    dealt = x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:])
    return jnp.moveaxis(dealt, 1, 0)


def _add(so_far, x):
    return so_far + x.astype(so_far.dtype)
