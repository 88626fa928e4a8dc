"""Ours beside theirs: value and every gradient, through a random cotangent, within rounding."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

# Of the sums of a few terms; a 16-bit peer also rounds on the way.
TOLERANCE = {"float64": 1e-11, "float32": 3e-5, "float16": 6e-3, "bfloat16": 5e-2}
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def draw(seed, *shape, scale=2.0):
    """Logits that are neither flat nor saturated, with an offset of their own a row."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * scale + rng.normal(size=(*shape[:-1], 1))


def distributions(seed, *shape, axis=-1):
    e = np.exp(draw(seed, *shape))
    return e / e.sum(axis, keepdims=True)


def precision(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def rounded(x, dtype):
    """A float array with numbers that are exact in ``dtype``; anything else as it is."""
    return np.asarray(x.astype(jnp.dtype(dtype)), np.float64) if is_float(x) else x


def ours(function, primals, dtype, compiled=True, **fixed):
    """The value in float64, its dtype, and the gradients with respect to the primals.

    One new shape is faster ``compiled``, many options of one shape are faster without.
    """

    def array(x):
        return jnp.asarray(x, dtype if is_float(x) else None) if isinstance(x, np.ndarray) else x

    def value_and_gradients(*primals):
        value, pull = jax.vjp(lambda *p: function(*p, **fixed), *primals)
        return value, pull(jnp.asarray(cotangents(value.shape), value.dtype))

    with precision(dtype):
        primals, fixed = [array(p) for p in primals], {k: array(v) for k, v in fixed.items()}
        run = (
            jax.jit(value_and_gradients, compiler_options=FAST) if compiled else value_and_gradients
        )
        value, gradients = run(*primals)
        for primal, gradient in zip(primals, gradients, strict=True):
            assert gradient.dtype == primal.dtype
        return float64(value), str(value.dtype), [float64(g) for g in gradients]


def float64(x):
    return np.asarray(x, np.float64)


def cotangents(shape):
    return np.random.default_rng(len(shape)).uniform(0.5, 1.5, shape).round(2)


def agree(mine, theirs, dtype, note="", atol=None):
    """Two results of :func:`ours` or of a peer's counterpart."""
    tolerance = TOLERANCE[dtype]
    assert mine[1] == theirs[1], note
    for a, b in zip([mine[0], *mine[2]], [theirs[0], *theirs[2]], strict=True):
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance if atol is None else atol, err_msg=str(note)
        )
