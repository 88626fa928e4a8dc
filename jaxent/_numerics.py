"""Scalar functions that XLA's own versions, or their derivatives, get wrong where it matters."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


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
    value = jnp.zeros_like(x)
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


def times(weight: jax.Array, value: jax.Array) -> jax.Array:
    """weight · value, with 0 · inf = 0 · NaN = 0.

    A finite value keeps its share of the derivative with respect to a weight of 0.
    """
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(value), 0, value)


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
