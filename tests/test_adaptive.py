"""Adaptive softmax: a distribution, its losses, and the same in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxent
from jaxent import sampled

D, V, CUTOFFS = 12, 16, [5, 9]
RNG = np.random.default_rng(5)
HIDDEN = RNG.normal(size=(6, D)).astype(np.float32) * 3
LABELS = np.array([0, 4, 5, 8, 9, 15], np.int8)  # both ends of the shortlist and of clusters
PARAMS = jax.tree.map(
    lambda x: 4 * x,
    sampled.adaptive_softmax_params(
        jax.random.key(0), D, V, cutoffs=CUTOFFS, div_value=2.0, head_bias=True
    ),
)
DOUBLE = jax.tree.map(np.float64, PARAMS)


def log_softmax(x):
    return x - jax.nn.logsumexp(x, axis=-1, keepdims=True)


def textbook(hidden, params):
    """All log-probabilities, by the definition."""
    head = log_softmax(hidden @ params.head + params.head_bias)
    parts = [head[..., : CUTOFFS[0]]]
    for i, (down, up) in enumerate(params.tails):
        parts.append(head[..., CUTOFFS[0] + i, None] + log_softmax(hidden @ down @ up))
    return jnp.concatenate(parts, -1)


def truth_of(derivative, *arguments):
    loose = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(True), loose[0], loose[1]:
        return jax.tree.map(np.asarray, jax.jit(derivative)(*arguments))


def agree(got, wanted, rtol=2e-5):
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def stats(hidden, params=PARAMS, labels=LABELS, where=None):
    return sampled.adaptive_softmax_stats(hidden, params, labels, where=where)


def test_shapes_say_where_the_clusters_are():
    shapes = [(w.shape, u.shape) for w, u in PARAMS.tails]
    assert shapes == [((12, 6), (6, 4)), ((12, 3), (3, 7))]
    assert PARAMS.head.shape == (12, 7) and PARAMS.head_bias.shape == (7,)
    assert PARAMS.starts == (5, 9, 16)
    bound = 4 / np.sqrt(D)
    assert bound * 0.9 < np.abs(PARAMS.head).max() <= bound
    plain = sampled.adaptive_softmax_params(
        jax.random.key(0), 3, V, cutoffs=[5], dtype=jnp.bfloat16
    )
    assert plain.head_bias is None and plain.tails[0][0].shape == (3, 1)  # 1 at least, of 3 // 4
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(plain))


def test_log_prob_and_predict():
    log_prob = jax.jit(sampled.adaptive_softmax_log_prob)(HIDDEN, PARAMS)
    agree(log_prob, truth_of(textbook, HIDDEN, DOUBLE))
    np.testing.assert_allclose(np.exp(log_prob).sum(-1), 1, rtol=1e-5)
    many = RNG.normal(size=(4, 50, D)).astype(np.float32) * 5
    best = jax.jit(sampled.adaptive_softmax_predict)(many, PARAMS)
    assert best.dtype == jnp.int32
    np.testing.assert_array_equal(best, truth_of(textbook, many, DOUBLE).argmax(-1))
    clusters = np.searchsorted(PARAMS.starts, np.unique(best), side="right")
    assert set(clusters.tolist()) == {0, 1, 2}  # every part wins somewhere
    one = sampled.adaptive_softmax_predict(many[1, 2], PARAMS)
    assert one == best[1, 2] and one.shape == ()


LOSSES = {
    "nll": (jaxent.nll, lambda y, mean: y),
    "smoothed": (
        lambda s: jaxent.smoothed_nll(s, label_smoothing=0.2),
        lambda y, mean: 0.8 * y + 0.2 * mean,
    ),
    "focal": (
        lambda s: jaxent.focal(s, gamma=2.0),
        lambda y, mean: (-jnp.expm1(-y)) ** 2 * y,
    ),
    "poly1": (lambda s: jaxent.poly1(s, epsilon=2.0), lambda y, mean: y - 2 * jnp.expm1(-y)),
    "z_loss": (jaxent.z_loss, lambda y, mean: 0 * y),
}
WEIGHTS = np.array([1.0, -2.0, 0.5, 3.0, 1.5, -1.0], np.float32)


def test_every_loss_of_stats_and_its_gradients():
    def of_losses(losses, nll_and_mean):
        def total(hidden, params):
            values = [of(*nll_and_mean(hidden, params)) for of in losses]
            return sum((v * WEIGHTS).sum() * (i + 1) for i, v in enumerate(values)), values

        return jax.grad(total, (0, 1), has_aux=True)

    def ours(hidden, params):
        return (stats(hidden, params),)

    def truth(hidden, params):
        log_prob = textbook(hidden, params)
        return -log_prob[jnp.arange(6), LABELS], -log_prob.mean(-1)

    got = jax.jit(of_losses([a for a, _ in LOSSES.values()], ours))(HIDDEN, PARAMS)
    wanted = truth_of(of_losses([b for _, b in LOSSES.values()], truth), HIDDEN, DOUBLE)
    agree(got, wanted)


def test_every_derivative_agrees():
    v = RNG.normal(size=HIDDEN.shape)

    def all_of(total, v):
        def run(x):
            gradient, product = jax.jvp(jax.grad(total), (x,), (v,))
            slope, pull = jax.vjp(lambda x: jax.jvp(total, (x,), (v,))[1], x)
            return gradient, slope, [product, *pull(jnp.ones_like(slope))]

        return run

    def of(x):
        return jax.vmap(lambda h, y: stats(h, labels=y).nll)(x, LABELS).sum()

    def truth(x):
        return -textbook(x, DOUBLE)[jnp.arange(6), LABELS].sum()

    got = jax.jit(all_of(of, v.astype(np.float32)))(HIDDEN)
    wanted = truth_of(all_of(truth, v), np.float64(HIDDEN))
    agree(got, wanted, rtol=1e-4)


def test_confident_examples_keep_their_small_losses():
    """−log p of margins 20 and 40 in the head, in the cluster and in both."""
    head = jnp.array([[20.0, 0.0, 0.0], [0.0, 0.0, 40.0], [0.0, 0.0, 20.0]])
    tail = jnp.eye(3), jnp.array([[0.0, 0.0], [0.0, 20.0], [0.0, 40.0]])
    s = sampled.adaptive_softmax_stats(
        jnp.eye(3), sampled.AdaptiveParams(head, (tail,)), jnp.array([0, 3, 3])
    )
    e20, e40 = np.exp(-20.0), np.exp(-40.0)
    np.testing.assert_allclose(s.nll, [2 * e20, 2 * e40 + e20, 2 * e20 + e40], rtol=3e-6)
    np.testing.assert_allclose(s.other_prob, s.nll, rtol=3e-6)


def test_inert_and_poisoned_rows():
    where = np.array([True, True, False, True, True, False])
    labels = np.where(where, LABELS, -100)
    bad = labels.copy()
    bad[3] = V

    @jax.jit
    def run(hidden, labels):
        def total(hidden, params):
            s = stats(hidden, params, labels, where)
            losses = jaxent.smoothed_nll(s, label_smoothing=0.1) + jaxent.focal(s, gamma=1.0)
            return losses.sum(), losses

        return jax.grad(total, (0, 1), has_aux=True)(hidden, PARAMS)

    clean = run(HIDDEN, labels)
    for filler in (np.nan, np.inf, -3e38):
        filled = np.where(where[:, None], HIDDEN, np.float32(filler))
        for got, wanted in zip(*map(jax.tree.leaves, (run(filled, labels), clean)), strict=True):
            np.testing.assert_array_equal(got, wanted)
    (gradient, _), losses = clean
    assert (losses[~where] == 0).all() and (gradient[~where] == 0).all()
    (gradient, _), losses = run(HIDDEN, bad)
    np.testing.assert_array_equal(np.isnan(losses), np.arange(6) == 3)
    np.testing.assert_array_equal(np.isnan(gradient).all(-1), np.arange(6) == 3)
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), np.arange(6) == 3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64], ids=str)
def test_dtypes(dtype):
    wide = dtype == jnp.float64
    with jax.enable_x64(wide):
        cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), (HIDDEN, PARAMS))

        def total(hidden, params):
            losses = stats(hidden, params).nll
            return losses.sum(), losses

        gradients, losses = jax.jit(jax.grad(total, (0, 1), has_aux=True))(*cast)
        assert losses.dtype == (jnp.float64 if wide else jnp.float32)
        assert all(g.dtype == dtype for g in jax.tree.leaves(gradients))
        log_prob = truth_of(textbook, *jax.tree.map(np.float64, cast))
        rtol = 1e-10 if wide else 8 * 2.0**-8  # hidden @ down is rounded to 16 bits
        agree(losses, -log_prob[np.arange(6), LABELS], rtol=rtol)
        assert wide or stats(cast[0]).nll.dtype == jnp.float32  # and with parameters of 32 bits


def test_a_sharded_batch():
    def of(hidden, labels):
        s = stats(hidden, labels=labels, where=labels != 3)
        return jaxent.weighted_mean(jaxent.smoothed_nll(s, label_smoothing=0.1), labels != 3)

    step = jax.jit(jax.value_and_grad(of))
    hidden, labels = HIDDEN[:4], LABELS[1:5]
    wanted = step(hidden, labels)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec("data"))
        got = step(jax.device_put(hidden, place), jax.device_put(labels, place))
    agree(jax.tree.map(np.asarray, got), wanted)


def test_no_tracer_leaks(checking_leaks):
    jax.jit(jax.value_and_grad(lambda h: stats(h).nll.sum())).trace(HIDDEN)


def test_no_computation_for_smoothing_that_no_loss_asks_for():
    def flops(loss):
        compiled = jax.jit(lambda h: loss(stats(h)).sum()).lower(HIDDEN).compile()
        return compiled.cost_analysis()["flops"]

    smoothed = flops(lambda s: jaxent.smoothed_nll(s, label_smoothing=0.1))
    assert flops(jaxent.nll) < 0.9 * smoothed


FAULTS = [
    (lambda: sampled.adaptive_softmax_params(jax.random.key(0), D, V, cutoffs=[9, 5]), "increase"),
    (lambda: sampled.adaptive_softmax_params(jax.random.key(0), D, V, cutoffs=[V]), "cutoffs.*15"),
    (lambda: sampled.adaptive_softmax_params(jax.random.key(0), D, V, cutoffs=[]), "cutoffs"),
    (
        lambda: sampled.adaptive_softmax_params(
            jax.random.key(0), D, V, cutoffs=[5], div_value=0.0
        ),
        "div_value must be positive",
    ),
    (lambda: stats(HIDDEN[:, :3]), r"hidden must have shape \[..., 12\]"),
    (lambda: stats(LABELS), "hidden must be floating-point"),
    (lambda: stats(HIDDEN, labels=LABELS[:2]), "labels must have the shape of hidden"),
    (lambda: stats(HIDDEN, labels=LABELS.astype(float)), "labels must be integer"),
    (lambda: stats(HIDDEN, where=np.ones(6)), "where must be boolean"),
]


@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_faults_name_the_argument(fault):
    call, message = FAULTS[fault]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
