"""The linear head, a chunk of tokens at a time: never more logits than one chunk's.

Every array of rows comes dealt into chunks, ``[chunks, n, ...]``; the head, the bias and whatever
``loss`` and ``logit_fn`` close over are shared by all chunks.
"""

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxent import _checks
from jaxent._checks import axes, spread, varying
from jaxent._classes import class_axis_is_sharded, largest_class, live
from jaxent.linear import inputs
from jaxent.reductions import weighted_sum
from jaxent.stats import LogitStats, softmax_stats

_SymbolicZero = jax.custom_derivatives.SymbolicZero
_remat = partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)


class Closed:
    """A function as it was traced, without the arrays that it closes over (its ``constants``).

    A rule of differentiation may not close over a tracer, and a program that is found again may
    not hold what an array, or a number, was when it was compiled. Two are equal if one function was
    traced to one program.
    """

    def __init__(self, function: object, programs: dict):
        self._programs = programs  # by number of rows: a jaxpr, and which constants it takes
        self._key = _Hashable(function), str(list(programs.values()))

    @classmethod
    def of(cls, function: Callable, *examples) -> tuple["Closed", tuple, list]:
        """The function, its constants, and what it returns for the first of these arguments."""
        constants, programs, results = [], {}, []
        for example in examples:
            # of a lambda: JAX finds the trace of a function again, whatever that would read now
            closed = jax.make_jaxpr(lambda arg: function(arg))(example)
            constants += [c for c in closed.consts if all(c is not known for known in constants)]
            places = [[known is c for known in constants].index(True) for c in closed.consts]
            opened = partial(_evaluated, closed.jaxpr)
            programs[_num_rows(example)] = jax.make_jaxpr(opened)(closed.consts, example), places
            results.append(closed.out_avals)
        inside = any(isinstance(c, Tracer) for c in constants)  # then not to be kept: it holds them
        return cls(object() if inside else function, programs), tuple(constants), results[0]

    def takes(self, num_rows: int) -> bool:
        """Whether it was traced for as many rows."""
        return num_rows in self._programs

    def __call__(self, constants: tuple, arg):
        """The function of its constants and its argument."""
        program, places = self._programs[_num_rows(arg)]
        (out,) = _evaluated(program.jaxpr, [], [constants[i] for i in places], arg)
        return out

    def __eq__(self, other):
        return isinstance(other, Closed) and self._key == other._key

    def __hash__(self):
        return hash(self._key)


def _evaluated(jaxpr, constants, *args):
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # 50 ms to import

    return jaxpr_as_fun(ClosedJaxpr(jaxpr, constants))(*jax.tree.leaves(args))


def _num_rows(arg):
    return jax.tree.leaves(arg)[0].shape[0]


class _Hashable:
    """A function as a key; itself and nothing else where it has no hash."""

    def __init__(self, function: object):
        self.function = function

    def __eq__(self, other):
        return self.function is other.function or (
            hash(self) == hash(other) and self.function == other.function
        )

    def __hash__(self):
        try:
            return hash(self.function)
        except TypeError:
            return id(self.function)


@dataclasses.dataclass(frozen=True)
class Form:
    """All that is static."""

    classes_axis: int  # of the head: 1 for [D, V], 0 for [V, D]
    axis_name: Hashable = None  # of the mesh axis that the classes are split over, in shard_map
    predictions: bool = False
    logit_fn: Closed | None = None
    loss: Closed = None  # ty: ignore[invalid-assignment]  # not asked for by statistics


class Shared(NamedTuple):
    """What all chunks share."""

    head: Any
    bias: jax.Array | None
    logit_constants: tuple = ()
    loss_constants: tuple = ()


class Rows(NamedTuple):
    """What belongs to a row and has no derivative."""

    labels: jax.Array
    where: jax.Array | None


# --- one chunk ----------------------------------------------------------------------------------


def _placed(*axes):
    """The sharding of a matrix with these axes (array, number), if an explicit mesh has to know."""
    mesh = jax.typeof(axes[0][0]).sharding.mesh
    if mesh.empty or AxisType.Explicit not in mesh.axis_types:
        return None
    specs = [(*jax.typeof(x).sharding.spec, *[None] * x.ndim)[axis] for x, axis in axes]
    return NamedSharding(mesh, PartitionSpec(*specs))


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _matmul(x, y, contracted, placed):
    """Operands in their own dtype, sums in float32 or wider."""
    return _dot(x, y, contracted, placed, _checks.accumulator(x))


def _dot(x, y, contracted, placed, dtype):
    axes = (((contracted[0],), (contracted[1],)), ((), ()))
    return lax.dot_general(x, y, axes, preferred_element_type=dtype, out_sharding=placed)


@partial(_matmul.defjvp, symbolic_zeros=True)
def _matmul_jvp(contracted, placed, primals, tangents):
    # Tangents leave in the dtype of the operands, so that cotangents enter in it: the transposed
    # matmuls are of that dtype too, not of float32.
    (x, y), (dx, dy) = primals, tangents
    out = _matmul(x, y, contracted, placed)
    d_out = jnp.zeros_like(out)
    if not isinstance(dx, _SymbolicZero):
        d_out += _dot(dx, y, contracted, placed, x.dtype).astype(out.dtype)
    if not isinstance(dy, _SymbolicZero):
        d_out += _dot(x, dy, contracted, placed, x.dtype).astype(out.dtype)
    return out, d_out


def _logits(form: Form, hidden, head):
    placed = _placed((hidden, 0), (head, form.classes_axis))
    return _matmul(hidden, head, (1, 1 - form.classes_axis), placed)


def _add_bias(logits, bias):
    return logits if bias is None else logits + bias.astype(logits.dtype)[None]


def _logit_stats(form: Form, logits, bias, constants, rows: Rows):
    """Statistics of one chunk, and the largest class of each row where it is asked for."""
    logits = _add_bias(logits, bias)
    if form.logit_fn is not None:
        logits = form.logit_fn(constants, _proper_logits(logits, rows.where))
    stats = softmax_stats(logits, rows.labels, where=rows.where, axis_name=form.axis_name)
    return stats, _largest(form, logits, rows.where) if form.predictions else None


def _largest(form: Form, logits, where):
    """The first of the largest classes."""
    logits = lax.stop_gradient(logits)
    largest, num_classes = largest_class(logits), logits.shape[-1]
    if form.axis_name is not None:
        top, axis = jnp.max(logits, -1), form.axis_name
        largest += lax.axis_index(axis) * num_classes
        last = lax.axis_size(axis) * num_classes - 1
        largest = lax.pmin(jnp.where(top == lax.pmax(top, axis), largest, last), axis)
    return live(where, largest)


def _chunk_stats(form: Form, hidden, shared: Shared, rows: Rows):
    logits = _logits(form, hidden, shared.head)
    return _logit_stats(form, logits, shared.bias, shared.logit_constants, rows)


def _chunk_losses(form: Form, logits, shared: Shared, rows: Rows):
    stats, largest = _logit_stats(form, logits, shared.bias, shared.logit_constants, rows)
    losses = form.loss(shared.loss_constants, _proper_stats(stats, rows.where))
    return live(rows.where, losses), largest


# What the caller's functions do to an inert row counts for nothing, but its derivative meets a 0,
# and must be finite for that. So they are given proper rows there, not zeros: logits that differ
# and are positive, as a norm or a logarithm wants them, and the statistics of a label of
# probability 1/e.


def _proper_logits(logits, where):
    if where is None:
        return logits
    place = lax.broadcasted_iota(logits.dtype, (1, logits.shape[1]), 1)
    if class_axis_is_sharded(logits):
        spec = PartitionSpec(None, jax.typeof(logits).sharding.spec[1])
        place = jax.sharding.reshard(place, spec)
    return jnp.where(where[:, None], logits, (place + 1) / logits.shape[1])


def _proper_stats(stats, where):
    if where is None:
        return stats
    proper = {"nll": 1, "log_normalizer": 1.5, "mean_logit": 0.5, "mean_nll": 1}
    return LogitStats(**{k: jnp.where(where, getattr(stats, k), v) for k, v in proper.items()})


def _chunk_gradients(form: Form, alive, sums, hidden, rows: Rows, weights, shared: Shared):
    """Losses, largest classes, and the gradients of Σ w·loss while the logits are there.

    That of the features is this chunk's; those of what the chunks share are added to ``sums``.
    """
    logits = _logits(form, hidden, shared.head)
    rest, with_rest = _pick((False, False, *alive[2:]), (hidden, shared))
    losses, pull, largest = jax.vjp(
        lambda logits, rest: _chunk_losses(form, logits, with_rest(rest)[1], rows),
        logits,
        spread(rest, varying(logits)),  # each device its part: see _objective_jvp
        has_aux=True,
    )
    d_logits, d_rest = pull(jnp.ones_like(losses) if weights is None else weights)
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden, sums = [], list(sums)
    if alive[0]:
        placed = _placed((hidden, 0), (hidden, 1))
        d_hidden = [_matmul(d_logits, shared.head, (1, form.classes_axis), placed)]
    if alive[1]:
        sums[0] = _add_head_gradient(form, sums[0], hidden, d_logits)
    rest = [total + d for total, d in zip(sums[alive[1] :], _wide(d_rest), strict=True)]
    return losses, largest, d_hidden, sums[: alive[1]] + rest


def _add_head_gradient(form: Form, total, hidden, d_logits):
    """A chunk's part added by blocks of classes: it is never written out as a whole."""
    axis, num_classes = form.classes_axis, d_logits.shape[1]
    block = inputs.class_block(hidden, d_logits)

    def product(part):
        factors = (hidden, part) if axis == 1 else (part, hidden)
        return _matmul(*factors, (0, 0), _placed((total, 0), (total, 1)))

    def add(i, total):
        first = i * block
        start = jnp.minimum(first, num_classes - block)  # the last block begins in the one before
        part = lax.dynamic_slice_in_dim(d_logits, start, block, 1)
        part = jnp.where((start + jnp.arange(block) >= first)[None], part, 0)
        sofar = lax.dynamic_slice_in_dim(total, start, block, axis) + product(part)
        return lax.dynamic_update_slice_in_dim(total, sofar, start, axis)

    if block == num_classes:
        return total + product(d_logits)
    return lax.fori_loop(0, -(-num_classes // block), add, total)


def example_logits(form: Form, hidden, rows: Rows, shared: Shared):
    """What ``logit_fn`` is given, abstractly."""
    del rows
    return jax.eval_shape(lambda h, s: _add_bias(_logits(form, h, s.head), s.bias), hidden, shared)


def example_stats(form: Form, hidden, rows: Rows, shared: Shared):
    """What ``loss`` is given, abstractly."""
    return jax.eval_shape(partial(_chunk_stats, form), hidden, shared, rows)[0]


# --- statistics -----------------------------------------------------------------------------------
#
# Value: one matmul. Derivative: the statistics of a chunk are differentiated by jax.jvp where the
# chunk's logits are formed once more. The rule is linear in the tangents and each chunk of it sits
# in jax.checkpoint: reverse mode transposes it, forms the logits a second time and keeps none (four
# matmuls in all). Tangents of what the chunks share are widened before the loop: that is how the
# transposed loop adds up the head's gradient in float32, and casts it once.


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def stats(form: Form, hidden, shared: Shared, rows: Rows):
    """:class:`LogitStats` and the largest classes (or None), each ``[chunks, n]``."""
    return _stats_value(form, hidden, shared, rows)


@partial(jax.jit, static_argnums=0)
def _stats_value(form, hidden, shared, rows):
    return lax.map(lambda chunk: _chunk_stats(form, chunk[0], shared, chunk[1]), (hidden, rows))


@partial(stats.defjvp, symbolic_zeros=True)
def _stats_jvp(form, primals, tangents):
    hidden, shared, rows = primals
    value, largest = stats(form, hidden, shared, rows)
    alive, directions = _alive(tangents[:2])
    d_value = jax.tree.map(jnp.zeros_like, value)
    if any(alive):
        d_value = _stats_tangent(form, alive, hidden, shared, rows, directions)
    return (value, largest), (d_value, _no_tangent(largest))


@partial(jax.jit, static_argnums=(0, 1))
def _stats_tangent(form, alive, hidden, shared, rows, directions):
    operands, _ = _pick(alive, (hidden, shared))
    own, common = operands[: alive[0]], operands[alive[0] :]
    over, arrays = varying((hidden, shared, rows)), sum(alive[1 : _num_arrays(shared)])

    @_remat
    def of_chunk(chunk, wide):
        hidden, rows, own = chunk
        _, with_operands = _pick(alive, (hidden, shared))
        return _chunk_stats(form, *with_operands(own + _narrow(common, wide)), rows)[0]

    def value(own, wide):
        # What a shard_map adds up it adds after the loop, but for what a function closes over.
        wide = spread(wide[:arrays], over) + wide[arrays:]
        return lax.map(lambda chunk: of_chunk(chunk, wide), (hidden, rows, spread(own, over)))

    tangents = directions[: alive[0]], _wide(directions[alive[0] :])
    return jax.jvp(value, (own, _wide(common)), tangents)[1]


# A sum over chunks is kept in float32 by differentiating not the operand but a wide copy of it,
# which no value depends on and so is never made.


def _wide(tree):
    return jax.tree.map(
        lambda x: x.astype(_checks.accumulator(x)) if _checks.is_float(x) else x, tree
    )


def _narrow(tree, wide):
    def of(x, w):
        return _narrowed(spread(x, varying(w)), w) if _checks.is_float(x) else x

    return jax.tree.map(of, tree, wide)


@jax.custom_jvp
def _narrowed(x, wide):
    """``wide.astype(x.dtype)``, where x is just that already."""
    return x


@_narrowed.defjvp
def _narrowed_jvp(primals, tangents):
    return primals[0], tangents[1].astype(primals[0].dtype)


# --- the objective --------------------------------------------------------------------------------
#
# total = Σ w·loss. Its gradients are formed while a chunk's logits are there (three matmuls), and
# the rule is
#     d total = Σ d_hidden · dhidden + Σ d_head · dhead + … + Σ losses · dw,
# linear in the tangents: reverse mode scales the gradients, and a higher order differentiates the
# loop that forms them. Each chunk of it sits in jax.checkpoint, so no order keeps any logits.


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def objective(form: Form, hidden, shared: Shared, rows: Rows, weights):
    """Σ w·loss, and the largest classes ``[chunks, n]`` (or None)."""
    losses, largest = _losses(form, hidden, shared, rows)
    return weighted_sum(losses, weights).total, largest


@partial(jax.jit, static_argnums=0)
def _losses(form, hidden, shared, rows):
    @_remat
    def of_chunk(chunk):
        hidden, rows = chunk
        return _chunk_losses(form, _logits(form, hidden, shared.head), shared, rows)

    return lax.map(of_chunk, (hidden, rows))


@partial(objective.defjvp, symbolic_zeros=True)
def _objective_jvp(form, primals, tangents):
    # In a shard_map each device forms its own part of a gradient. Where it meets a tangent that is
    # the same on several devices, JAX adds the parts up: once, after the loop. What a function
    # closes over cannot have parts, as its jaxpr adds them up inside: it is differentiated apart.
    hidden, shared, rows, weights = primals
    alive, directions = _alive(tangents[:2])
    own = _num_arrays(shared) if varying((hidden, shared)) else len(alive)
    formed = *alive[:own], *(False for _ in alive[own:])
    apart = *(False for _ in alive[:own]), *alive[own:]
    if any(formed):
        losses, largest, gradients = _gradients(form, formed, hidden, shared, rows, weights)
    else:
        (losses, largest), gradients = _losses(form, hidden, shared, rows), []
    total = weighted_sum(losses, weights).total
    d_total = jnp.zeros_like(total)
    for gradient, direction in zip(gradients, directions, strict=False):
        d_total += _whole(form, jnp.sum(gradient * direction.astype(gradient.dtype)))
    if any(apart):
        operands, with_operands = _pick(apart, (hidden, shared))

        def value(*operands):
            hidden, shared = with_operands(operands)
            return weighted_sum(_losses(form, hidden, shared, rows)[0], weights).total

        d_total += jax.jvp(value, operands, directions[sum(formed) :])[1]
    if weights is not None and _alive(tangents[3])[0] == (True,):
        d_total += jax.jvp(lambda w: weighted_sum(losses, w).total, (weights,), (tangents[3],))[1]
    return (total, largest), (d_total, _no_tangent(largest))


def _num_arrays(shared):
    """How many operands come before what functions close over: features, head, bias."""
    return 3 - (shared.bias is None)


def _whole(form, part):
    """A sum over all classes, of one over those of this device."""
    is_part = form.axis_name is not None and axes(form.axis_name) <= varying(part)
    return lax.psum(part, form.axis_name) if is_part else part


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradients(form, alive, hidden, shared, rows, weights):
    """Losses, largest classes, and the gradients of those operands that are alive."""
    return _gradients_value(form, alive, hidden, shared, rows, weights)


@partial(_gradients.defjvp, symbolic_zeros=True)
def _gradients_jvp(form, alive, primals, tangents):
    # Plain differentiation of the loop. Said as a rule, as the checkpoints in it would be lost to
    # reverse over reverse mode: the inner one takes apart whatever is not a rule.
    moving, directions = _alive(tangents)
    operands, with_operands = _pick(moving, primals)

    def value(*operands):
        return _gradients_by_halves(form, alive, *with_operands(operands))

    (losses, largest, gradients), (d_losses, _, d_gradients) = jax.jvp(value, operands, directions)
    return (losses, largest, gradients), (d_losses, _no_tangent(largest), d_gradients)


def _gradients_by_halves(form, alive, hidden, shared, rows, weights):
    """By chunks half as large: the derivative of a chunk holds several arrays of its size."""
    chunks, n, _ = hidden.shape
    functions = form.logit_fn, form.loss
    if not (inputs.is_halved(hidden) and all(f is None or f.takes(n // 2) for f in functions)):
        return _gradients_value(form, alive, hidden, shared, rows, weights)

    def halve(x):
        return x.reshape(2 * chunks, n // 2, *x.shape[2:])

    def join(x):
        return x.reshape(chunks, n, *x.shape[2:])

    hidden, rows, weights = jax.tree.map(halve, (hidden, rows, weights))
    losses, largest, gradients = _gradients_value(form, alive, hidden, shared, rows, weights)
    losses, largest, d_hidden = jax.tree.map(join, (losses, largest, gradients[: alive[0]]))
    return losses, largest, d_hidden + gradients[alive[0] :]


@partial(jax.jit, static_argnums=(0, 1))
def _gradients_value(form, alive, hidden, shared, rows, weights):
    @_remat
    def of_chunk(sums, chunk, wide):
        return _chunk_gradients(form, alive, sums, *chunk, _narrow(shared, wide))

    def step(sums, chunk):
        *of_rows, sums = of_chunk(sums, chunk, wide)
        return sums, of_rows

    chunks, wide = (hidden, rows, weights), _wide(shared)
    operands, _ = _pick(alive, (hidden, wide))
    zeros = jax.tree.map(jnp.zeros_like, operands[alive[0] :])
    sums, (losses, largest, d_hidden) = lax.scan(step, spread(zeros, varying(chunks)), chunks)
    return losses, largest, d_hidden + sums


# --- which derivatives are asked for --------------------------------------------------------------


def _alive(tangents) -> tuple[tuple[bool, ...], list]:
    """Which leaves have a tangent, and those tangents."""
    # a tangent of a Python number is one
    leaves = [t if hasattr(t, "dtype") else jnp.asarray(t) for t in jax.tree.leaves(tangents)]
    alive = tuple(not isinstance(t, _SymbolicZero) and _checks.is_float(t) for t in leaves)
    return alive, [t for t, is_alive in zip(leaves, alive, strict=True) if is_alive]


def _pick(alive, tree):
    """The leaves that are alive, and the tree as a function of them."""
    leaves, treedef = jax.tree.flatten(tree)

    def rebuilt(picked):
        picked = iter(picked)
        return treedef.unflatten(
            [next(picked) if a else x for a, x in zip(alive, leaves, strict=True)]
        )

    return [x for a, x in zip(alive, leaves, strict=True) if a], rebuilt


def _no_tangent(largest):
    return None if largest is None else np.zeros(largest.shape, jax.dtypes.float0)
