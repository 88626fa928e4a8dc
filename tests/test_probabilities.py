"""Losses of probabilities and of every class, against closed forms in float64 and 60 digits."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import jaxent
from jaxent import probabilities

mp = mpmath.MPContext()
mp.dps = 60

# Rows: confident, hopeless, with zeros, tiny, not summing to 1, a one.
PROBS = np.array(
    [
        [0.25, 0.25, 0.25, 0.25],
        [1.0, 1e-10, 1e-20, 1e-37],
        [1e-30, 1.0, 0.0, 0.0],
        [3.0, 1.0, 0.5, 0.0],
        [1e-20, 2e-20, 1e-21, 0.0],
        [0.1, 0.2, 0.3, 0.4],
        [1.0, 0.0, 0.0, 0.0],
    ],
    np.float32,
)
LABELS = np.array([0, 0, 0, 1, 2, 3, 0], np.int32)
TARGETS = np.array(
    [
        [0.25, 0.25, 0.25, 0.25],
        [1.0, 0.0, 0.0, 0.0],
        [0.5, 0.5, 0.0, 0.0],
        [0.1, 0.2, 0.3, 0.0],
        [1.0, 1.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0],
    ],
    np.float32,
)


def truth(row, targets):
    """−Σ q log(p / Σ p) and its gradient Q/S − q/p, the latter 0 where a target is."""
    p, q = ([mp.mpf(float(v)) for v in x] for x in (row, targets))
    total, mass = mp.fsum(p), mp.fsum(q)
    value = -mp.fsum(b * mp.log(a / total) for a, b in zip(p, q, strict=True) if b)
    slope = [mass / total - (b / a if b else 0) for a, b in zip(p, q, strict=True)]
    return float(value), [float(s) for s in slope]


def value_and_gradient(loss, x, *more):
    value, pull = jax.vjp(lambda x: loss(x, *more), x)
    return value, pull(jnp.ones_like(value))[0]


@pytest.mark.parametrize(
    "loss",
    [
        lambda p: probabilities.prob_cross_entropy(p, jnp.array([[1.0, 0, 0]] * 2)),
        lambda p: probabilities.prob_stats(p, jnp.array([1, 1])).nll,
        lambda p: probabilities.prob_class_stats(p).nll.sum(-1),
    ],
)
def test_a_negative_probability_is_nan(loss):
    value, slope = value_and_gradient(loss, jnp.array([[-0.2, 0.9, 0.3], [0.2, 0.5, 0.3]]))
    assert np.isnan(value[0]) and np.isnan(slope[0]).all()
    assert np.isfinite(value[1]) and np.isfinite(slope[1]).all()


def close(got, wanted, rtol=2e-6):
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=rtol, atol=1e-38)


def test_labels():
    """To full relative precision: of the confident rows too, where −log p is 0 in float32."""

    def nll(p, y):
        return jaxent.nll(probabilities.prob_stats(p, y))

    got = jax.jit(lambda p: value_and_gradient(nll, p, jnp.asarray(LABELS)))(PROBS)
    wanted = [truth(p, np.eye(4)[y]) for p, y in zip(PROBS, LABELS, strict=True)]
    for mine, of in zip(got, zip(*wanted, strict=True), strict=True):
        close(mine, of)


def test_targets():
    got = jax.jit(
        lambda p: value_and_gradient(probabilities.prob_cross_entropy, p, jnp.asarray(TARGETS))
    )(PROBS)
    wanted = [truth(p, q) for p, q in zip(PROBS, TARGETS, strict=True)]
    for mine, of in zip(got, zip(*wanted, strict=True), strict=True):
        close(mine, of)


def test_a_label_of_probability_zero():
    """The loss is inf, its gradient −inf at the label and exact beside it."""
    p, q = jnp.array([[0.5, 0.5, 0.0]]), jnp.array([[0.0, 0.0, 1.0]])
    y = jnp.array([2])
    for loss, label in (
        (lambda p, y: probabilities.prob_stats(p, y).nll, y),
        (probabilities.prob_cross_entropy, q),
    ):
        value, gradient = value_and_gradient(loss, p, label)
        np.testing.assert_array_equal(value, [np.inf])
        np.testing.assert_array_equal(gradient, [[1, 1, -np.inf]])


def test_inert_and_poisoned_rows():
    p = jnp.array([[np.nan, np.inf, -1.0], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    y, where = jnp.array([-100, 7, 1]), jnp.array([False, True, True])
    for stats, x in (
        (probabilities.prob_stats, p),
        (probabilities.log_prob_stats, jnp.where(p > 0, jnp.log(p), p)),
    ):
        s, pull = jax.vjp(lambda x, f=stats: f(x, y, where=where), x)
        gradient = pull(jax.tree.map(jnp.ones_like, s))[0]
        for field in jax.tree.leaves(s):
            assert field[0] == 0
        np.testing.assert_array_equal(np.isnan(s.nll), [False, True, False])
        assert (gradient[0] == 0).all() and np.isnan(gradient[1]).all()
        assert np.isfinite(gradient[2]).all()
    value, gradient = value_and_gradient(
        lambda p: probabilities.prob_cross_entropy(p, jnp.ones_like(p), where=where), p
    )
    assert value[0] == 0 and (gradient[0] == 0).all() and np.isfinite(gradient[2]).all()


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_every_class(offset):
    """Column by column what softmax_stats gives for that label, derivatives included."""
    x = np.array([[0.0, 30.0, 0.0, 1.0], [2.0, 2.0, 1.0, -np.inf], [0.5, -60.0, 0.25, 0.0]], "f4")
    x = jnp.asarray(x + np.float32(offset))
    ct = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, (3, 4)), jnp.float32)
    ct = jnp.where(jnp.isinf(x), 0, ct)

    def each(x):
        return probabilities.class_stats(x).nll

    def one_by_one(x):
        labels = jnp.arange(4, dtype=jnp.int32)
        label = jnp.broadcast_to(labels[:, None], (4, 3))
        return jax.vmap(lambda y: jaxent.cross_entropy(x, y), out_axes=-1)(label)

    def run(f):
        value, pull = jax.vjp(f, x)
        return value, pull(ct)[0]

    for mine, of in zip(*(jax.jit(lambda f=f: run(f))() for f in (each, one_by_one)), strict=True):
        close(mine, of, rtol=2e-5)


def test_the_gradient_of_a_confident_class():
    """−(1 − p) at the class itself, which p − 1 rounds to 0."""
    x = jnp.array([0.0, 40.0, 0.0])
    gradient = jax.grad(lambda x: probabilities.class_stats(x).nll[1])(x)
    close(gradient, np.exp(-40.0) * np.array([1, -2, 1]))


def test_a_focal_loss_of_targets():
    """Of labels as targets it is that of labels; of a mixture, the mixture."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)) * 3, jnp.float32)
    q = jnp.asarray(np.random.default_rng(2).dirichlet(np.ones(4), 5), jnp.float32)

    @jax.jit
    def both(x, q):
        each = jaxent.focal(probabilities.class_stats(x), gamma=1.5)
        labels = jnp.arange(4, dtype=jnp.int32)
        of_labels = [
            jaxent.focal(jaxent.softmax_stats(x, jnp.full(5, y)), gamma=1.5) for y in labels
        ]
        return probabilities.expected_loss(each, q), (q * jnp.stack(of_labels, -1)).sum(-1)

    close(*both(x, q), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_binary_focal(gamma):
    """Of logits, and of the same as probabilities, where those can hold it."""
    x = np.array([-100.0, -5, -0.5, 0, 2, 15, 100], np.float64)
    z = np.array([1.0, 0.3, 0, 0.5, 0.9, 0.1, 1])

    def focal(x, z):
        up, down = np.logaddexp(0, x), np.logaddexp(0, -x)
        q = z * np.exp(-up) + (1 - z) * np.exp(-down)
        return q**gamma * (z * down + (1 - z) * up)

    step = 1e-5
    slope = (focal(x + step, z) - focal(x - step, z)) / (2 * step)
    loss = jax.jit(
        lambda x, z: value_and_gradient(lambda x: probabilities.sigmoid_focal(x, z, gamma=gamma), x)
    )
    value, gradient = loss(x.astype(np.float32), z.astype(np.float32))
    np.testing.assert_allclose(value, focal(x, z), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
    inner = slice(1, 5)
    p = 1 / (1 + np.exp(-x))
    value = probabilities.binary_prob_focal(
        p[inner].astype(np.float32), z[inner].astype(np.float32), gamma=gamma
    )
    np.testing.assert_allclose(value, focal(x, z)[inner], rtol=1e-4)


def test_binary_probabilities_at_the_ends():
    """p = 0 and 1 with their own label cost nothing and push no further than they should."""
    p, z = jnp.array([0.0, 1.0, 0.0, 1.0, 1.5, -0.1]), jnp.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    value, gradient = value_and_gradient(probabilities.binary_prob_cross_entropy, p, z)
    np.testing.assert_array_equal(value, [0, 0, np.inf, np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(gradient, [1, -1, -np.inf, np.inf, np.nan, np.nan])
    value, gradient = value_and_gradient(
        lambda p: probabilities.binary_prob_focal(p, z[:2], gamma=0.5), p[:2]
    )
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(gradient, 0)


def test_divergences():
    """Of −inf against a target of 0 nothing; negative targets are NaN; the terms never are < 0."""
    log_p = jnp.log(jnp.array([0.0, 0.25, 0.5, 0.5, 0.25]))
    q = jnp.array([0.0, 0.0, 0.5, 0.25, -0.5])
    value, gradient = value_and_gradient(probabilities.pointwise_kl, log_p, q)
    np.testing.assert_allclose(value, [0, 0, 0, -0.25 * np.log(2), np.nan], atol=1e-7)
    np.testing.assert_allclose(gradient[:4], -q[:4])
    of_logs = probabilities.pointwise_kl_of_logs(log_p[:4], jnp.log(q[:4]))
    np.testing.assert_allclose(of_logs, value[:4], atol=1e-7)
    general = probabilities.pointwise_generalized_kl(log_p[:4], q[:4])
    np.testing.assert_allclose(general, value[:4] + np.exp(log_p[:4]) - q[:4], atol=1e-7)
    assert (np.asarray(general) >= 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probabilities.prob_stats(jnp.ones((2, 3), int), jnp.zeros(2, int)), "probs"),
        (lambda: probabilities.prob_stats(jnp.ones((2, 3)), jnp.zeros(3, int)), "labels"),
        (lambda: probabilities.prob_cross_entropy(jnp.ones((2, 3)), jnp.ones(3)), "targets"),
        (lambda: probabilities.pointwise_kl(jnp.ones(3), jnp.ones(2)), "targets"),
        (lambda: probabilities.log_prob_stats(jnp.ones(()), jnp.zeros((), int)), "log_probs"),
        (lambda: probabilities.sigmoid_focal(jnp.ones(3), jnp.ones(3), gamma=-1), "gamma"),
        (lambda: probabilities.class_stats(jnp.ones((2, 0))), "logits"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
