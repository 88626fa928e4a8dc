"""Scalar functions that XLA's own versions, or their derivatives, get wrong where it matters."""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxent._classes import on_cpu, on_one_axis, select

_SymbolicZero = jax.custom_derivatives.SymbolicZero


def elementwise(f: Callable) -> Callable:
    """``f`` of arrays of one shape, and scalars, as of arrays of one axis."""
    return functools.wraps(f)(
        lambda *args: on_one_axis(max((x.shape for x in args), key=len), f, *args)
    )


@jax.custom_jvp
def one_minus_exp(u: jax.Array) -> jax.Array:
    """1 − e^(−u), the probability of everything but an event of surprise ``u``."""
    return -jnp.expm1(-u)


@one_minus_exp.defjvp
def _one_minus_exp_jvp(primals, tangents):
    # d(1 − e^(−u)) = e^(−u) du. JAX differentiates expm1 as expm1 + 1, which is 0 beyond u = 17.
    (u,), (du,) = primals, tangents
    return one_minus_exp(u), jnp.exp(-u) * du


def polynomial(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    """Σ c_k x^k, highest power first; unrolled, as an explicit mesh stops jnp.polyval's loop."""
    first, second, *rest = (x.dtype.type(c) for c in coefficients)

    def horner(value, c):  # value * x + c, traced in a third of the time
        return lax.add(lax.mul(value, x), c)

    return functools.reduce(horner, rest, lax.add(lax.mul(x, first), second))


# e^(d + low), low being the rounding of d, is e^d (1 + low). On a CPU that takes a third longer
# than e^d, and this a quarter less. With k = round(d / ln 2),
#     e^(d + low) = 2^k e^r,   r = (d − k ln 2) + low,   |r| ≤ ln 2 / 2
# ln 2 is in two parts, of which the first has nine bits, so that k times it is exact (Cody and
# Waite, 1980); e^r is a minimax polynomial, to 2^−28; 2^k is made of its bits: those of a float
# k + 1.5 · 2^23 + 127 end with the biased exponent.

LN_2 = np.float32(0.693359375), np.float32(-2.12194440e-4)
E_TO_THE_R = 0.00138145986, 0.00836871688, 0.0416683880, 0.166665206, 0.499999934, 1.0, 1.0


def exp_of_sum(d: jax.Array, low: jax.Array) -> jax.Array:
    """e^(d + low), 0 where e^d would be denormal; ``low`` is the rounding of d, and d ≤ 88."""
    if d.dtype != jnp.float32 or not on_cpu():
        return plain_exp_of_sum(d, low)
    mul, sub = lax.mul, lax.sub  # traced in a third of the time of * and −
    k = lax.round(mul(d, 1 / sum(LN_2)), lax.RoundingMethod.TO_NEAREST_EVEN)
    r = lax.add(sub(sub(d, mul(k, LN_2[0])), mul(k, LN_2[1])), low)
    exponent = lax.bitcast_convert_type(lax.add(k, np.float32(1.5 * 2**23 + 127)), jnp.int32)
    power = lax.shift_left(exponent, lax.full_like(exponent, 23))
    e = mul(polynomial(E_TO_THE_R, r), lax.bitcast_convert_type(power, jnp.float32))
    return _no_denormals(d, e)


def plain_exp_of_sum(d: jax.Array, low: jax.Array) -> jax.Array:
    """The same by way of ``jnp.exp``."""
    e = lax.exp(d)
    return _no_denormals(d, lax.add(e, lax.mul(e, low)))


def _no_denormals(d, e_to_the_d):
    return select(lax.lt(d, d.dtype.type(math.log(jnp.finfo(d.dtype).tiny))), 0, e_to_the_d)


def times(weight: jax.Array, value: jax.Array) -> jax.Array:
    """weight · value, with 0 · inf = 0 · NaN = 0.

    A finite value keeps its share of the derivative with respect to a weight of 0.
    """
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(value), 0, value)


def along(*terms: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Σ slope · tangent, for a rule with ``symbolic_zeros``: of a tangent that is none, nothing.

    Where a loss is infinite a slope may be, too, and its product with a zero is NaN.
    """
    moving = [slope * d for slope, d in terms if not isinstance(d, _SymbolicZero)]
    return functools.reduce(lax.add, moving, jnp.zeros_like(terms[0][0]))


# a log(1 + e^x) + b log(1 + e^(−x)), with 0 · inf = 0. Of arithmetic alone: XLA:CPU's sums take
# that in, with an exponential and a logarithm of their own that are three times as fast. So in
# log(1 + e^x) = max(x, 0) + tail the maximum is cut to |a| · max², 0 where a is, and else infinite.
#     ∂/∂x = a σ(x) − b σ(−x),   ∂/∂a = log(1 + e^x),   ∂/∂b = log(1 + e^(−x))


@jax.custom_jvp
def weighted_log1p_exp(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """a log(1 + e^x) + b log(1 + e^(−x)), with 0 · inf = 0."""

    def cut(x, weight):
        most, weight = jnp.finfo(x.dtype).max, jnp.abs(weight)
        # the inner maximum, because XLA would multiply constants first: max · max
        return jnp.minimum(jnp.maximum(x, 0), jnp.maximum(most * weight, weight) * most)

    tail = jnp.log1p(jnp.exp(-jnp.abs(x)))
    return a * (cut(x, a) + tail) + b * (cut(-x, b) + tail)


@partial(weighted_log1p_exp.defjvp, symbolic_zeros=True)
def _weighted_log1p_exp_jvp(primals, tangents):
    (x, a, b), (dx, da, db) = primals, tangents
    (up, down), (p, q) = log1p_exp_pair(x), sigmoid_pair(x)
    up = jnp.where((a == 0) & ~jnp.isfinite(up), 0, up)
    down = jnp.where((b == 0) & ~jnp.isfinite(down), 0, down)
    return weighted_log1p_exp(x, a, b), along((a * p - b * q, dx), (up, da), (down, db))


@jax.custom_jvp
def log1p_exp_pair(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log(1 + e^x) and log(1 + e^(−x)), sharing the one exponential."""
    tail = jnp.log1p(jnp.exp(-jnp.abs(x)))
    return jnp.maximum(x, 0) + tail, jnp.maximum(-x, 0) + tail


@log1p_exp_pair.defjvp
def _log1p_exp_pair_jvp(primals, tangents):
    # d log(1 + e^x) = σ(x) dx and d log(1 + e^(−x)) = −σ(−x) dx: no kink at 0, no NaN at ±inf.
    (x,), (dx,) = primals, tangents
    up, down = sigmoid_pair(x)
    return log1p_exp_pair(x), (up * dx, -(down * dx))


@jax.custom_jvp
def sigmoid_pair(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """σ(x) and σ(−x), each to full relative precision."""
    small = jnp.exp(-jnp.abs(x))
    large = 1 / (1 + small)
    small = small * large
    return jnp.where(x < 0, small, large), jnp.where(x < 0, large, small)


@sigmoid_pair.defjvp
def _sigmoid_pair_jvp(primals, tangents):
    # dσ(x) = σ(x) σ(−x) dx = −dσ(−x).
    (x,), (dx,) = primals, tangents
    up, down = sigmoid_pair(x)
    slope = up * down * dx
    return (up, down), (slope, -slope)
