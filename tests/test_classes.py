"""Folded sums over the class axis, whatever its length and the place of the class left out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxent import _classes

NUM_CLASSES = [1, 2, 10, 11, 32, 33, 100, 257, 1009, 33333]


def square_of_difference(row, x, z):
    return jnp.square(x.astype(row.dtype) - row) + z


@pytest.fixture(params=NUM_CLASSES)
def arrays(request):
    """Rows whose class left out is none, the first, the last, and two others."""
    classes = request.param
    rng = np.random.default_rng(classes)
    x, z = rng.normal(size=(2, 5, classes)).astype(np.float32)
    but = np.array([-1, 0, classes - 1, classes // 2, rng.integers(classes)], np.int32)
    return np.linspace(-1, 1, 5, dtype=np.float32), x, z, but


@pytest.mark.parametrize("parts", [16, _classes.MANY])
def test_class_sum(arrays, parts):
    row, x, z, but = arrays
    terms = square_of_difference(*(a.astype(float) for a in (row[:, None], x, z)))
    kept = np.where(np.arange(x.shape[-1]) == but[:, None], 0, terms)
    for index, truth in (None, terms), (but, kept):
        got = _classes.class_sum(square_of_difference, (row,), x, z, but=index, parts=parts)
        np.testing.assert_allclose(got, truth.sum(-1), rtol=1e-5, atol=1e-5)


def test_looped_sum(arrays):
    row, x, z, _ = arrays
    got = _classes.looped_sum(square_of_difference, (row,), x, z)
    truth = (np.square(x.astype(float) - row[:, None]) + z).sum(-1)
    np.testing.assert_allclose(got, truth, rtol=1e-5, atol=1e-5)
    x[:, -1] = np.nan
    assert np.isnan(_classes.looped_sum(square_of_difference, (row,), x, z)).all()


def test_a_nan_anywhere_is_in_the_sum(arrays):
    _, x, _, but = arrays
    for j in {0, x.shape[-1] // 2, x.shape[-1] - 1}:
        dirty = x.copy()
        dirty[:, j] = np.nan
        got = _classes.class_sum(jnp.positive, (), jnp.asarray(dirty), but=but)
        np.testing.assert_array_equal(np.isnan(got), but != j)


@pytest.mark.parametrize("times", [1, 16])  # of as many rows few classes are folded
def test_row_sum(arrays, times):
    row, x, z = (np.concatenate([a] * times) for a in arrays[:3])

    def total(x):
        sums = _classes.row_sum(square_of_difference, (row,), x, z)
        return jnp.vdot(sums, row), sums

    difference = x.astype(float) - row[:, None]
    slope, got = jax.grad(total, has_aux=True)(x)
    np.testing.assert_allclose(got, (difference**2 + z).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slope, 2 * difference * row[:, None], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("times", [1, 16])
def test_row_sum_of_a_tangent_is_transposed(arrays, times):
    row, x, z = (np.concatenate([a] * times) for a in arrays[:3])

    def linear(dx):
        return _classes.row_sum(lambda row, z, dx: row * z * dx, (row,), z, dx, other=row)

    (got,) = jax.linear_transpose(linear, x)(row)
    np.testing.assert_allclose(got, row[:, None] ** 2 * z, rtol=1e-6)


def test_largest_class_is_the_first_of_several(arrays):
    _, x, _, _ = arrays
    tied = np.round(x)
    tied[0], tied[1] = 0, -np.inf
    for parts in (32, _classes.MANY):
        got = _classes.largest_class(jnp.asarray(tied), parts)
        np.testing.assert_array_equal(got, np.argmax(tied, -1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_differentiable_both_ways(arrays, dtype):
    """class_sum is also called where targets are differentiated."""
    row, x, z, but = arrays
    short, tangent = jnp.asarray(x, dtype), jnp.asarray(np.cos(x), dtype)

    def total(x):
        return _classes.class_sum(square_of_difference, (row,), x, z, but=but).sum()

    kept = np.arange(x.shape[-1]) != but[:, None]
    exact, dx = np.asarray(short, float), np.asarray(tangent, float)
    truth = np.where(kept, 2 * (exact - row[:, None]), 0)
    got = np.asarray(jax.grad(total)(short), float)
    np.testing.assert_allclose(got, truth, rtol=float(jnp.finfo(dtype).eps) + 1e-6, atol=1e-6)
    got = jax.jvp(total, (short,), (tangent,))[1]
    np.testing.assert_allclose(got, (truth * dx).sum(), rtol=1e-4, atol=1e-3)


def row_with(x, value, row):
    return jnp.asarray(x).at[row, 0].set(value)


@pytest.mark.parametrize("mapped", [False, True])
def test_finite_or(mapped):
    """The exact sums where one row's are not finite, unless that row is inert."""
    x, where = np.ones((5, 40), np.float32), np.array([True, True, False, True, True])

    def total(x, where):
        return _classes.finite_or(lambda: x.sum(-1), partial(less, x), x, where)

    def less(x, sum_of):
        return -sum_of(jnp.positive, (), x)

    total = jax.jit(jax.vmap(total) if mapped else total)
    assert "conditional(" in total.lower(x, where).compile().as_text()
    np.testing.assert_array_equal(total(x, where), [40] * 5)
    np.testing.assert_array_equal(total(row_with(x, np.inf, 2), where)[:2], [40, 40])
    for hard in np.inf, -np.inf, np.nan:
        np.testing.assert_array_equal(total(row_with(x, hard, 3), where)[:3], [-40] * 3)
    half = x.astype(np.float16)
    half = _classes.finite_or(lambda: x.sum(-1), partial(less, half), half, where)
    np.testing.assert_array_equal(half, [-40] * 5)
