"""Products of hidden states with weights."""

import jax
import jax.numpy as jnp

from jaxent import _checks


def dot(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum of operands in their common dtype, accumulated in float32 or wider."""
    if a.dtype != b.dtype:
        widest = max(_checks.accumulator(a), _checks.accumulator(b))
        a, b = a.astype(widest), b.astype(widest)
    return jnp.einsum(subscripts, a, b, preferred_element_type=_checks.accumulator(a))
