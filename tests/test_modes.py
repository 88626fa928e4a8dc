"""Every function under every transformation, mode and mesh; the programs it compiles to."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxent
from jaxent.probabilities import sigmoid_focal

ROWS, CLASSES = 3, 5
RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32) * 3
LABELS = np.array([4, 0, 2], np.int32)
LOGITS[0, 4], LOGITS[1, 3], LOGITS[2, 1] = 12.0, 15.0, -np.inf  # right, wrong, a class ruled out
SOFT = RNG.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
SOFT[2, 1] = 0.0
LOG_SOFT = np.log(np.where(SOFT == 0, 1, SOFT.astype(np.float64)))
COSTS = RNG.uniform(size=(CLASSES, CLASSES)).astype(np.float32)


def of_stats(loss):
    return lambda x: loss(jaxent.softmax_stats(x, LABELS))


def log_softmax(x):
    return x - jax.nn.logsumexp(x, axis=-1, keepdims=True)


def own_log_prob(x):
    return jnp.take_along_axis(log_softmax(x), LABELS[:, None], -1)[:, 0]


def possible_mean(x):
    return jnp.where(jnp.isfinite(x), log_softmax(x), 0).sum(-1) / jnp.isfinite(x).sum(-1)


def safe_dot(q, x):
    return jnp.where(q == 0, 0, q * jnp.where(q == 0, 0, x)).sum(-1)


def binary(x):
    return jnp.where(jnp.isfinite(x), x, 0.5)


HARD = (SOFT > 0.2).astype(np.int32)

# name: (ours, the textbook formula whose plain autodiff in float64 is the truth)
FUNCTIONS = {
    "nll": (of_stats(jaxent.nll), lambda x: -own_log_prob(x)),
    "smoothed_nll": (
        of_stats(lambda s: jaxent.smoothed_nll(s, label_smoothing=0.1)),
        lambda x: -0.9 * own_log_prob(x) - 0.1 * possible_mean(x),
    ),
    "z_loss": (of_stats(jaxent.z_loss), lambda x: jax.nn.logsumexp(x, axis=-1) ** 2),
    "focal": (
        of_stats(lambda s: jaxent.focal(s, gamma=1.5)),
        lambda x: -((-jnp.expm1(own_log_prob(x))) ** 1.5) * own_log_prob(x),
    ),
    "poly1": (
        of_stats(lambda s: jaxent.poly1(s, epsilon=2.0)),
        lambda x: -own_log_prob(x) - 2 * jnp.expm1(own_log_prob(x)),
    ),
    "generalized_cross_entropy": (
        of_stats(lambda s: jaxent.generalized_cross_entropy(s, q=0.7)),
        lambda x: -jnp.expm1(0.7 * own_log_prob(x)) / 0.7,
    ),
    "soft_cross_entropy": (
        lambda x: jaxent.soft_cross_entropy(x, SOFT.astype(np.float64) * 1.5),
        lambda x: -safe_dot(1.5 * SOFT.astype(x.dtype), log_softmax(x)),
    ),
    "kl_divergence": (
        lambda x: jaxent.kl_divergence(x, SOFT),
        lambda x: safe_dot(SOFT.astype(x.dtype), LOG_SOFT.astype(x.dtype) - log_softmax(x)),
    ),
    "expected_cost": (
        lambda x: jaxent.expected_cost(x, LABELS, COSTS),
        lambda x: (jnp.exp(log_softmax(x)) * COSTS[LABELS].astype(x.dtype)).sum(-1),
    ),
    "sigmoid_cross_entropy": (
        lambda x: jaxent.sigmoid_cross_entropy(binary(x), SOFT, pos_weight=3.0).sum(-1),
        lambda x: (
            3 * SOFT.astype(x.dtype) * jnp.logaddexp(0, -binary(x))
            + (1 - SOFT.astype(x.dtype)) * jnp.logaddexp(0, binary(x))
        ).sum(-1),
    ),
    "sigmoid_stats": (
        lambda x: jaxent.focal(jaxent.sigmoid_stats(binary(x), HARD), gamma=2.0).sum(-1),
        lambda x: (
            (1 / (1 + jnp.exp((2 * HARD - 1).astype(x.dtype) * binary(x)))) ** 2
            * jnp.logaddexp(0, (1 - 2 * HARD).astype(x.dtype) * binary(x))
        ).sum(-1),
    ),
}
functions = pytest.mark.parametrize("name", FUNCTIONS)


def truth(name, derivative):
    """A derivative of the textbook formula, in float64 and standard promotion."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        of = FUNCTIONS[name][1]
        return np.asarray(derivative(lambda x: of(x).sum())(jnp.asarray(LOGITS, jnp.float64)))


def agree(got, wanted, what="", rtol=2e-5):
    atol = rtol * np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol, err_msg=what)


GRADIENTS = {
    "grad": jax.grad,
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "grad-checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "linearize": lambda f: (
        lambda x: jax.vmap(lambda e: jax.linearize(f, x)[1](e), out_axes=0)(
            jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)
        ).reshape(x.shape)
    ),
}
HESSIANS = {
    "fwd-rev": lambda f: jax.jacfwd(jax.grad(f)),
    "rev-rev": lambda f: jax.jacrev(jax.grad(f)),
    "rev-fwd": lambda f: jax.jacrev(jax.jacfwd(f)),
    "fwd-fwd": lambda f: jax.jacfwd(jax.jacfwd(f)),
}


def in_one_program(derivatives, f, x):
    """Each derivative of f at x, by name. (One after the other, each operation is a program.)"""
    return jax.jit(lambda x: {mode: of(f)(x) for mode, of in derivatives.items()})(x)


@functions
def test_first_derivatives_in_every_mode(name):
    def f(x):
        return FUNCTIONS[name][0](x).sum()

    wanted = truth(name, jax.grad)
    agree(jax.grad(f)(jnp.asarray(LOGITS)), wanted)  # not compiled
    for mode, got in in_one_program(GRADIENTS, f, LOGITS).items():
        agree(got, wanted, mode)


@functions
def test_second_derivatives_in_every_order(name):
    def f(x):
        return FUNCTIONS[name][0](x).sum()

    wanted = truth(name, jax.hessian)
    for mode, got in in_one_program(HESSIANS, f, LOGITS).items():
        assert np.isfinite(got).all(), mode
        agree(got, wanted, mode)


@pytest.mark.parametrize("name", ["soft_cross_entropy", "kl_divergence"])
def test_mixed_derivatives_of_logits_and_targets(name):
    """∂²/∂x∂q in both orders and all modes; ties, offsets, a class ruled out, masses not 1."""
    x = np.array([[1, 0, -1, 1], [9, -9, 8, 0], [1e4, 1e4, 1e4 + 1, 9999], [2, -np.inf, 1, 0]])
    q = np.array([[0.2, 0.3, 0.5, 0.1], [1, 0.5, 0.2, 0.3], [0.25] * 4, [0.5, 0, 0.3, 0.2]])
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    possible = np.isfinite(x)[:, None] & np.isfinite(x)[..., None]
    truth = np.where(possible, p[..., None] - np.eye(4), 0)  # ∂²/∂x_i ∂q_j = p_i − δ_ij
    loss = getattr(jaxent, name)
    for outer in jax.jacfwd, jax.jacrev:
        for inner in jax.jacfwd, jax.jacrev:
            by_targets_first = jax.vmap(outer(inner(loss, 1), 0))(rows32(x), rows32(q))
            by_logits_first = jax.vmap(outer(inner(loss, 0), 1))(rows32(x), rows32(q))
            for got in jnp.swapaxes(by_targets_first, 1, 2), by_logits_first:
                got = np.where(possible, got, 0)  # no target of a class ruled out has a gradient
                np.testing.assert_allclose(got, truth, rtol=1e-5, atol=1e-6)


def rows32(x):
    return jnp.asarray(x, jnp.float32)


AT_INFINITY = {
    "sigmoid, negative": (lambda x: jaxent.sigmoid_cross_entropy(x, 0.0), np.inf, 1),
    "sigmoid, positive": (lambda x: jaxent.sigmoid_cross_entropy(x, 1.0), -np.inf, -1),
    "sigmoid, soft": (lambda x: jaxent.sigmoid_cross_entropy(x, 0.25), np.inf, 0.75),
    "generalised, q = 0": (
        lambda x: jaxent.generalized_cross_entropy(jaxent.sigmoid_stats(x, 1), q=0.0),
        *(-np.inf, -1),
    ),
    "sigmoid focal": (lambda x: sigmoid_focal(x, 0.0, gamma=0.5), np.inf, 1),
    "sigmoid focal, positive": (lambda x: sigmoid_focal(x, 1.0, gamma=0.5), -np.inf, -1),
}


@pytest.mark.parametrize("name", AT_INFINITY)
def test_both_modes_at_an_infinite_loss(name):
    loss, x, slope = AT_INFINITY[name]
    assert loss(x) == np.inf
    assert jax.grad(loss)(x) == slope
    assert jax.jvp(loss, (x,), (1.0,))[1] == slope
    assert jax.jit(jax.vmap(jax.jacfwd(loss)))(jnp.full(2, x)).tolist() == [slope] * 2


def test_options_at_an_infinite_loss():
    """∂/∂q of (1 − p^q) / q is −u²/2 at q = 0."""

    def loss(u, q):
        return jaxent.generalized_cross_entropy(jaxent.LogitStats(u, u, u), q=q)

    for mode in jax.jacrev, jax.jacfwd:
        by_q = jax.vmap(mode(loss, 1))(jnp.array([np.inf, 3.0]), jnp.zeros(2))
        np.testing.assert_allclose(by_q, [-np.inf, -4.5], rtol=1e-6)


def test_focal_has_no_kink():
    """Its third derivative at u = 1/2, where the formula changes, is that beside it."""

    def third(u):
        return jax.grad(jax.grad(jax.grad(of_u)))(u)

    def of_u(u):
        return jaxent.focal(jaxent.LogitStats(u, u, u), gamma=2.0)

    half = jnp.float32(0.5)
    beside = third(jnp.nextafter(half, jnp.float32(0))), third(jnp.nextafter(half, jnp.float32(1)))
    np.testing.assert_allclose([third(half), *beside], -0.08962, rtol=1e-3)


def test_second_derivatives_without_jit():
    ours = FUNCTIONS["focal"][0]
    got = jax.hessian(lambda x: ours(x).sum())(jnp.asarray(LOGITS))
    agree(got, truth("focal", jax.hessian))


@functions
def test_third_derivative(name):
    ours = FUNCTIONS[name][0]
    direction = jnp.asarray(RNG.normal(size=LOGITS.shape).astype(np.float32))

    def third(f):
        def along(of):
            return lambda x: jax.jvp(of, (x,), (direction.astype(x.dtype),))[1]

        return along(along(along(f)))

    wanted = truth(name, third)
    got = jax.jit(third(lambda x: ours(x).sum()))(jnp.asarray(LOGITS))
    agree(got, wanted, rtol=1e-4)


@functions
def test_per_example_gradients_and_hessian_vector_products_under_vmap(name):
    ours = FUNCTIONS[name][0]
    batch = jnp.stack([LOGITS, np.where(np.isfinite(LOGITS), LOGITS[::-1], LOGITS)])
    vector = jnp.ones_like(LOGITS)

    def f(x):
        return ours(x).sum()

    for of in (jax.grad(f), lambda x: jax.jvp(jax.grad(f), (x,), (vector,))[1]):
        agree(jax.jit(jax.vmap(of))(batch), np.stack([of(x) for x in batch]), rtol=1e-5)


@functions
def test_inside_scan_and_cond(name):
    ours = FUNCTIONS[name][0]

    def scanned(x):
        def step(total, scale):
            return total + ours(x * scale).sum(), None

        total, _ = jax.lax.scan(step, 0.0, jnp.array([1.0, 0.5]))
        return jax.lax.cond(total > -1, lambda: total, lambda: 2 * total)

    finite = jnp.where(jnp.isfinite(LOGITS), LOGITS, -3)
    unrolled = jax.grad(lambda x: ours(x).sum() + ours(x * 0.5).sum())(finite)
    agree(jax.jit(jax.grad(scanned))(finite), unrolled, rtol=1e-5)


INERT = {
    "softmax": lambda x, w, y, q: (
        jaxent.focal(jaxent.softmax_stats(x, y, where=w), gamma=1.5).sum()
        + jaxent.smoothed_nll(jaxent.softmax_stats(x, y, where=w), label_smoothing=0.1).sum()
    ),
    "soft": lambda x, w, y, q: jaxent.kl_divergence(x, q, where=w).sum(),
    "cost": lambda x, w, y, q: jaxent.expected_cost(x, y, COSTS, where=w).sum(),
}


@pytest.mark.parametrize("name", INERT)
def test_inert_rows_are_inert_in_every_derivative(name):
    where = np.array([True, False, True])
    labels = np.where(where, LABELS, -100)
    derivatives = {"grad": jax.grad} | HESSIANS

    def all_of(x, w, y, q):
        return in_one_program(derivatives, lambda x: INERT[name](x, w, y, q), x)

    wanted = all_of(LOGITS[where], None, LABELS[where], SOFT[where])
    filled = jax.jit(
        lambda filler: all_of(
            jnp.where(where[:, None], LOGITS, filler),
            where,
            labels,
            jnp.where(where[:, None], SOFT, filler),
        )
    )
    for filler in np.float32([np.nan, np.inf, -np.inf, 1e4, -3e38]):
        for mode, got in filled(filler).items():
            what = f"{name}, {mode}, {filler}"
            assert (got[~where] == 0).all(), what
            got = got[where] if got.ndim == 2 else got[where][:, :, where]
            np.testing.assert_allclose(got, wanted[mode], rtol=2e-6, atol=1e-9, err_msg=what)


def test_one_example_and_many_axes():
    x = jnp.asarray(RNG.normal(size=(2, 3, 4, CLASSES)).astype(np.float32))
    y = jnp.asarray(RNG.integers(0, CLASSES, (2, 3, 4)).astype(np.int16))
    batched = jaxent.cross_entropy(x, y)
    mapped = jax.vmap(jax.vmap(jax.vmap(jaxent.cross_entropy)))(x, y)
    np.testing.assert_allclose(batched, mapped, rtol=1e-6)
    np.testing.assert_allclose(batched[1, 2, 3], jaxent.cross_entropy(x[1, 2, 3], y[1, 2, 3]), 1e-6)
    by_axis = jax.vmap(jaxent.cross_entropy, in_axes=(1, 1), out_axes=1)(x, y)
    np.testing.assert_allclose(by_axis, batched, rtol=1e-6)


@pytest.mark.parametrize("name", ["label_smoothing", "gamma", "q", "epsilon", "pos_weight"])
def test_options_are_traced_differentiable_and_never_retrace(name):
    losses = {
        "label_smoothing": jaxent.smoothed_nll,
        "gamma": jaxent.focal,
        "q": jaxent.generalized_cross_entropy,
        "epsilon": jaxent.poly1,
    }
    traces = []

    @jax.jit
    def of(x, option):
        traces.append(1)
        if name == "pos_weight":
            return jaxent.sigmoid_cross_entropy(binary(x), SOFT, pos_weight=option).sum()
        return losses[name](jaxent.softmax_stats(x, LABELS), **{name: option}).sum()

    values = [0.25, 0.5, 1.0]
    got = [of(LOGITS, v) for v in values]
    assert len(traces) == 1 and len({float(g) for g in got}) == 3
    slope = jax.grad(of, 1)(LOGITS, 0.5)
    step = 1e-2
    secant = (float(of(LOGITS, 0.5 + step)) - float(of(LOGITS, 0.5 - step))) / (2 * step)
    np.testing.assert_allclose(slope, secant, rtol=2e-3)
    curvature = jax.grad(jax.grad(of, 1), 1)(LOGITS, 0.5)
    assert np.isfinite(curvature)
    agree(jax.vmap(of, (None, 0))(LOGITS, jnp.array(values)), np.array(got), rtol=1e-6)


# --- dtypes -----------------------------------------------------------------------------------


@functions
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32], ids=str)
def test_narrow_logits_give_float32_losses_and_gradients_of_their_own_dtype(name, dtype):
    ours = FUNCTIONS[name][0]
    x = jnp.asarray(LOGITS).astype(dtype)
    losses = ours(x)
    assert losses.dtype == jnp.float32
    agree(losses, ours(x.astype(jnp.float32)), rtol=1e-6)
    grads = jax.grad(lambda x: ours(x).sum())(x)
    assert grads.dtype == dtype
    wanted = jax.grad(lambda x: ours(x).sum())(x.astype(jnp.float32))
    np.testing.assert_allclose(
        grads.astype(jnp.float32), wanted, rtol=float(jnp.finfo(dtype).eps), atol=1e-7
    )


@functions
def test_float64_logits_give_float64_losses(name):
    ours, textbook = FUNCTIONS[name]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        x = jnp.asarray(LOGITS, jnp.float64)
        assert ours(x).dtype == jnp.float64
        np.testing.assert_allclose(ours(x), textbook(x), rtol=1e-9)  # as far as p_y − 1 goes


@functions
def test_float32_logits_stay_float32_under_x64(name):
    ours = FUNCTIONS[name][0]
    with jax.enable_x64(True):
        x = jnp.asarray(LOGITS)
        assert x.dtype == jnp.float32
        assert ours(x).dtype == jnp.float32
        assert jax.grad(lambda x: ours(x).sum())(x).dtype == jnp.float32


def test_reductions_and_weights_under_x64():
    with jax.enable_x64(True):
        losses = jnp.ones(3, jnp.float32)
        weights = np.ones(3, np.float64)
        for reduce in (jaxent.weighted_mean, jaxent.nonzero_mean, jaxent.plain_mean):
            assert reduce(losses, weights).dtype == jnp.float32
        assert jaxent.weights.counts(np.array([0, 1]), 2).dtype == jnp.int32
        assert jaxent.class_weights(np.array([0, 1]), np.ones(2, np.float32)).dtype == jnp.float32


# --- modes ------------------------------------------------------------------------------------


@functions
def test_no_tracer_leaks(name, checking_leaks):
    ours = FUNCTIONS[name][0]
    jax.jit(jax.hessian(lambda x: ours(x).sum())).trace(LOGITS)


@functions
def test_debug_nans_is_quiet_with_an_impossible_class(name):
    ours = FUNCTIONS[name][0]
    with jax.debug_nans(True):
        x = jnp.asarray(LOGITS)
        assert np.isfinite(ours(x)).all()
        assert np.isfinite(jax.jit(jax.grad(lambda x: ours(x).sum()))(x)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_of_value_and_grad_with_symbolic_shapes(dtype):
    def of(x, y, where):
        s = jaxent.softmax_stats(x, y, where=where)
        return jaxent.weighted_mean(jaxent.smoothed_nll(s, label_smoothing=0.1), where)

    batch, classes = jax.export.symbolic_shape("batch, classes")
    exported = jax.export.export(jax.jit(jax.value_and_grad(of)))(
        jax.ShapeDtypeStruct((batch, classes), dtype),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.bool_),
    )
    args = LOGITS.astype(dtype), LABELS, np.array([True, False, True])
    for got, wanted in zip(exported.call(*args), jax.value_and_grad(of)(*args), strict=True):
        agree(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators(platform):
    of = jax.value_and_grad(lambda x: jaxent.weighted_mean(jaxent.cross_entropy(x, LABELS)))
    assert jax.jit(of).trace(LOGITS).lower(lowering_platforms=(platform,)).as_text()


# --- meshes -----------------------------------------------------------------------------------

SHARDED = {
    "cross_entropy": lambda x, y, q: jaxent.cross_entropy(x, y),
    "smoothed z-loss": lambda x, y, q: (
        lambda s: jaxent.smoothed_nll(s, label_smoothing=0.1) + 1e-2 * jaxent.z_loss(s)
    )(jaxent.softmax_stats(x, y)),
    "poly1 and generalized": lambda x, y, q: (
        lambda s: jaxent.poly1(s, epsilon=-0.9) + jaxent.generalized_cross_entropy(s, q=0.3)
    )(jaxent.softmax_stats(x, y)),
    "where": lambda x, y, q: jaxent.cross_entropy(x, y, where=y != 3),
    "class_weights": lambda x, y, q: (
        jaxent.cross_entropy(x, y) * jaxent.class_weights(y, jnp.arange(1.0, 17.0))
    ),
    "soft_cross_entropy": lambda x, y, q: jaxent.soft_cross_entropy(x, q),
    "kl_divergence": lambda x, y, q: jaxent.kl_divergence(x, q),
    "expected_cost": lambda x, y, q: jaxent.expected_cost(x, y, jnp.eye(16)),
    "cost_weights": lambda x, y, q: (
        jaxent.cross_entropy(x, y) * jaxent.cost_weights(y, y, 1 + jnp.eye(16))
    ),
    "sigmoid": lambda x, y, q: jaxent.sigmoid_cross_entropy(x, q, pos_weight=2.0).sum(-1),
    "sigmoid_stats": lambda x, y, q: jaxent.focal(
        jaxent.sigmoid_stats(x, (q > 0.1).astype(jnp.int32)), gamma=2.0
    ).sum(-1),
}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", [("data", None), (None, "model"), ("data", "model")], ids=str)
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_batch_and_classes(name, axis_type, spec):
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(8, 16)) * 4).astype(np.float32)
    y = rng.integers(0, 16, 8).astype(np.int32)
    q = rng.dirichlet(np.ones(16), 8).astype(np.float32)

    def of(x, y, q):
        losses = SHARDED[name](x, y, q)
        return jaxent.weighted_mean(losses, y != 5), losses

    (wanted, losses), grads = jax.value_and_grad(of, has_aux=True)(*map(jnp.asarray, (x, y, q)))
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(axis_type,) * 2)

    def place(a, *spec):
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))

    with jax.set_mesh(mesh):
        args = place(x, *spec), place(y, spec[0]), place(q, *spec)
        step = jax.jit(jax.value_and_grad(of, has_aux=True))
        (got, got_losses), got_grads = step(*args)
        program = step.lower(*args).compile().as_text()
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(got_losses), losses, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(np.asarray(got_grads), grads, rtol=1e-5, atol=1e-8)
    if name == "cross_entropy":
        assert "all-gather" not in program and "all-to-all" not in program


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_a_long_class_axis_split_over_devices_is_never_gathered(axis_type):
    """Its sums go by blocks, which the devices share."""
    local = np.random.default_rng(5)
    x = (local.normal(size=(8, 4096)) * 4).astype(np.float32)
    x[0, ::3] = -np.inf
    y = local.integers(0, 1365, 8).astype(np.int32) * 3 + 1
    q = local.dirichlet(np.ones(4096), 8).astype(np.float32)
    q[0, ::3] = 0

    def of(x, y, q):
        s = jaxent.softmax_stats(x, y)
        losses = jaxent.smoothed_nll(s, label_smoothing=0.1) + jaxent.soft_cross_entropy(x, q)
        return losses.sum(), losses

    wanted = jax.value_and_grad(of, has_aux=True)(*map(jnp.asarray, (x, y, q)))
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    rows, parts = (NamedSharding(mesh, PartitionSpec("data", *s)) for s in ([], ["model"]))
    with jax.set_mesh(mesh):
        args = jax.device_put(x, parts), jax.device_put(y, rows), jax.device_put(q, parts)
        step = jax.jit(jax.value_and_grad(of, has_aux=True))
        got = step(*args)
        program = step.lower(*args).compile().as_text()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=1e-8)
    assert not re.search(r" (?:all-gather|all-to-all|collective-permute)\(", program)
    moved = re.findall(r"= (.*?) all-reduce\(", program)
    sizes = [
        math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", str(moved))
    ]
    assert sizes and max(sizes) <= 4  # one number a row of each device


def test_classes_split_over_devices_inside_shard_map():
    """Value, gradients, second order in two ways; −inf, a bad label, dead rows."""
    local = np.random.default_rng(3)
    x = (local.normal(size=(8, 12)) * 5).astype(np.float32)
    x[4, 3], x[5, 2] = -np.inf, 40
    y = local.integers(0, 12, 8).astype(np.int32)
    y[3], y[5] = 50, 2
    where = np.arange(8) % 4 != 1
    where[5] = True
    v = jnp.asarray(local.normal(size=x.shape).astype(np.float32))
    table = jnp.arange(12.0) + 1
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rows, parts = PartitionSpec("data"), PartitionSpec("data", "model")

    def losses(x, y, where, axis_name=None):
        s = jaxent.softmax_stats(x, y, where=where, axis_name=axis_name)
        loss = jaxent.smoothed_nll(s, label_smoothing=0.1) + 1e-2 * jaxent.z_loss(s)
        loss += jaxent.focal(s, gamma=2.0)
        return loss * jaxent.class_weights(y, table, where=where)

    split = jax.shard_map(
        lambda *a: losses(*a, "model"), mesh=mesh, in_specs=(parts, rows, rows), out_specs=rows
    )
    inside = jax.shard_map(
        jax.grad(lambda *a: losses(*a, "model").sum()),
        mesh=mesh,
        in_specs=(parts, rows, rows),
        out_specs=parts,
    )

    def everything(losses):
        def gradient(x):
            return jax.grad(lambda x: losses(x, y, where).sum())(x)

        backward = jax.grad(lambda x: (gradient(x) * v).sum())
        return jax.jit(
            lambda x: (
                losses(x, y, where),
                gradient(x),
                jax.jvp(gradient, (x,), (v,))[1],
                backward(x),
            )
        )

    wanted = everything(losses)(x)
    got = everything(split)(x)
    assert np.isnan(got[0][3]) and np.isfinite(np.delete(got[0], 3)).all()
    for a, b, rtol in zip(got, wanted, (3e-6, 1e-5, 2e-5, 2e-5), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(jax.jit(inside)(x, y, where), wanted[1], rtol=1e-5, atol=1e-6)

    step = jax.jit(jax.value_and_grad(lambda x: split(x, y, where).sum()))
    program = step.lower(x).compile().as_text()
    sent = re.findall(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute)\(", program)
    assert {kind for _, kind in sent} == {"all-reduce"}
    assert set(re.findall(r"f32\[[\d,]*\]", " ".join(shape for shape, _ in sent))) <= {
        "f32[4]",  # numbers a row, of this device's rows
        "f32[]",
    }


def test_an_axis_name_that_does_not_split_the_classes():
    x, y = jnp.zeros((4, 12)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match="axis_name 'model' is not bound here"):
        jaxent.softmax_stats(x, y, axis_name="model")
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rows = PartitionSpec("data")
    same = jax.shard_map(
        lambda x, y: jaxent.softmax_stats(x, y, axis_name="model").nll,
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=rows,
    )
    with pytest.raises(ValueError, match="logits must be split over axis_name 'model'"):
        same(x, y)


def test_counts_of_sharded_labels():
    labels = np.arange(16, dtype=np.int32) % 5
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
        with jax.set_mesh(mesh):
            sharded = jax.device_put(labels, NamedSharding(mesh, PartitionSpec("data")))
            for counts in (jaxent.weights.counts, jax.jit(jaxent.weights.counts, static_argnums=1)):
                np.testing.assert_array_equal(counts(sharded, 5), [4, 3, 3, 3, 3])


# --- programs ---------------------------------------------------------------------------------

BIG = jax.ShapeDtypeStruct((1024, 32000), jnp.float32)
BIG_LABELS = jax.ShapeDtypeStruct((1024,), jnp.int32)
BIG_MASK = jax.ShapeDtypeStruct((1024,), jnp.bool_)


def weighted(loss):
    return lambda x, y, where: jaxent.weighted_mean(loss(jaxent.softmax_stats(x, y, where=where)))


PROGRAMS = {
    "cross_entropy": lambda x, y, where: jaxent.cross_entropy(x, y).mean(),
    "where": weighted(jaxent.nll),
    "z_loss": weighted(lambda s: jaxent.nll(s) + 1e-4 * jaxent.z_loss(s)),
    "focal": weighted(lambda s: jaxent.focal(s, gamma=2.0)),
    "vmap": lambda x, y, where: jax.vmap(jaxent.cross_entropy)(x, y).mean(),
    "smoothed": weighted(lambda s: jaxent.smoothed_nll(s, label_smoothing=0.1)),
    "soft": lambda x, y, where: jaxent.soft_cross_entropy(
        x, jax.lax.stop_gradient(x), where=where
    ).sum(),
}


def all_at_once(x, y, where):
    s = jaxent.softmax_stats(x, y, where=where)
    losses = jaxent.smoothed_nll(s, label_smoothing=0.1) + 1e-4 * jaxent.z_loss(s)
    table = jnp.linspace(1, 2, x.shape[-1])
    return jaxent.weighted_mean(losses, jaxent.class_weights(y, table, where=where))


@pytest.mark.parametrize("name", PROGRAMS)
def test_value_and_grad_stores_no_row_of_classes(name):
    step = jax.jit(jax.value_and_grad(PROGRAMS[name]))
    compiled = step.lower(BIG, BIG_LABELS, BIG_MASK).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 0.01 * BIG.size * 4
    program = compiled.as_text()
    assert "scatter(" not in program
    assert "one_hot" not in program
    assert " sort(" not in program
    main = program[program.index("ENTRY") :]  # without the branch that is hardly ever taken
    assert " while(" not in main


def test_all_at_once_stores_no_row_of_classes():
    """Here XLA does not find room for the mean logit's parts where the gradient will be."""
    step = jax.jit(jax.value_and_grad(all_at_once))
    compiled = step.lower(BIG, BIG_LABELS, BIG_MASK).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 0.01 * BIG.size * 4


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_logits_are_not_stored_as_32(name, dtype):
    """In parts that are summed alone: a 12th of them each. (Up to 1024 classes they are.)"""
    short = jax.ShapeDtypeStruct(BIG.shape, dtype)
    parts = name in ("smoothed", "soft")  # that no gradient replaces
    for of, limit in (
        (PROGRAMS[name], 0.34 if parts else 0.17),
        (jax.value_and_grad(PROGRAMS[name]), 0.17 if parts else 0.01),
    ):
        compiled = jax.jit(of).lower(short, BIG_LABELS, BIG_MASK).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= limit * short.size * 2


ARRAY = re.escape("f32[1024,32000]")


@pytest.mark.parametrize("name", ["cross_entropy", "where", "z_loss", "focal", "vmap", "soft"])
def test_value_and_grad_share_one_exponential(name):
    """Written where the gradient will be: read for the sum, and once more for the gradient."""
    step = jax.jit(jax.value_and_grad(PROGRAMS[name]))
    program = step.lower(BIG, BIG_LABELS, BIG_MASK).compile().as_text()
    of_a_power_of_two = "exponential|round-nearest-even"  # exp_of_sum has the second
    assert len(re.findall(rf"= {ARRAY}\S* ({of_a_power_of_two})\(", program)) == 1
    written = re.findall(rf"= {ARRAY}\S* fusion\(", program[program.index("ENTRY") :])
    assert len(written) == 2  # the exponentials and the gradient


def test_a_gradient_is_six_kernels():
    """Plain autodiff has eight; each takes 3 to 8 ms to compile, a gather or scatter 10."""
    gradient = jax.jit(jax.grad(lambda x, y: jaxent.cross_entropy(x, y).mean()))
    program = gradient.lower(BIG, BIG_LABELS).compile().as_text()
    assert len(re.findall(r" (fusion|reduce|call)\(", program[program.index("ENTRY") :])) <= 6


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_value_alone_writes_a_sixteenth_of_the_logits(name):
    compiled = jax.jit(PROGRAMS[name]).lower(BIG, BIG_LABELS, BIG_MASK).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 0.075 * BIG.size * 4
    program = compiled.as_text()
    assert not re.findall(rf"= {ARRAY}\S* fusion\(", program[program.index("ENTRY") :])


VALUES = {
    "cross_entropy": lambda x, y, q: jaxent.cross_entropy(x, y),
    "z_loss": lambda x, y, q: jaxent.z_loss(jaxent.softmax_stats(x, y)),
    "smoothed": lambda x, y, q: jaxent.smoothed_nll(
        jaxent.softmax_stats(x, y), label_smoothing=0.1
    ),
    "soft": lambda x, y, q: jaxent.soft_cross_entropy(x, q),
    "kl": lambda x, y, q: jaxent.kl_divergence(x, q),
    "expected cost": lambda x, y, q: jaxent.expected_cost(x, y, q[0] - q[0][:, None]),
    "sigmoid": lambda x, y, q: jaxent.sigmoid_cross_entropy(x, q, pos_weight=3),
}


@pytest.mark.parametrize("classes", [7, 40])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_has_its_tangent_inside_another_derivative(name, classes):
    """A rule that returns a formula in which something counts as constant would lose a part."""
    local = np.random.default_rng(classes)
    x, v = local.normal(scale=3, size=(2, 5, classes)).astype(np.float32)
    y = local.integers(0, classes, 5)
    q = local.dirichlet(np.ones(classes), 5).astype(np.float32)

    def loss(x):
        return VALUES[name](x, y, q).sum()

    _, wanted = jax.jvp(loss, (x,), (v,))
    _, (of_reverse, _) = jax.jvp(jax.value_and_grad(loss), (x,), (v,))
    _, (of_forward, _) = jax.jvp(lambda x: jax.jvp(loss, (x,), (v,)), (x,), (v,))
    np.testing.assert_allclose([of_reverse, of_forward], [wanted, wanted], rtol=1e-5)
    slope = jax.grad(lambda x: jax.jvp(loss, (x,), (v,))[0])(x)
    np.testing.assert_allclose(slope, jax.grad(loss)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [4096, 4097])
def test_few_classes_are_folded_into_one(rows):
    """Where threads may have as many rows each; else there is a test in the loop over them."""
    few = jax.ShapeDtypeStruct((rows, 20), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32)
    program = jax.jit(jaxent.cross_entropy).lower(*few).compile().as_text()
    written = re.findall(rf"= f32\[{rows},20\]\S* fusion\(", program[program.index("ENTRY") :])
    assert len(written) == rows % 2


@pytest.mark.parametrize("loss", [all_at_once, PROGRAMS["soft"]], ids=["all at once", "soft"])
def test_a_gradient_does_not_sum_few_classes_again_for_each(loss):
    x = jax.ShapeDtypeStruct((4096, 20), jnp.float32)
    few = x, jax.ShapeDtypeStruct((4096,), jnp.int32), jax.ShapeDtypeStruct((4096,), bool)
    program = jax.jit(jax.value_and_grad(loss)).lower(*few).compile().as_text()
    loops = re.findall(r"= f32\[4096,20\]\S* fusion\(.*calls=%?([\w.]+)", program)
    assert loops
    for loop in loops:
        body = program[program.index(f"%{loop} (") :]
        assert body[: body.index("\n}")].count("\n") < 150


@pytest.mark.parametrize("batch", [(2, 3, 5), (2, 8, 3)], ids=str)
@pytest.mark.parametrize("classes", [3, 20, 40])
def test_rows_of_many_axes_run_over_one(monkeypatch, batch, classes):
    """As on one device, where nothing can be split; these tests have several."""
    from jaxent import _classes

    local = np.random.default_rng(classes)
    x = local.normal(scale=3, size=(*batch, classes)).astype(np.float32)
    x[0, 0, :, 0] = -np.inf
    x[1, 0, 0] = 0  # all are the largest
    y = local.integers(0, classes, batch)
    q = local.dirichlet(np.ones(classes), batch).astype(np.float32)
    q[x == -np.inf] = 0
    where = local.random(batch) < 0.8
    costs = local.random((classes, classes)).astype(np.float32)

    def losses(x):
        s = jaxent.softmax_stats(x, y, where=where)
        return (
            jaxent.cross_entropy(x, y),
            jaxent.smoothed_nll(s, label_smoothing=0.1) + jaxent.z_loss(s),
            jaxent.soft_cross_entropy(x, q, where=where),
            jaxent.kl_divergence(x, q),
            jaxent.expected_cost(x, y, costs),
        )

    def run():
        jax.clear_caches()
        values = jax.jit(losses).lower(x)
        gradients = jax.jit(jax.jacrev(lambda x: [f.sum() for f in losses(x)]))
        return values.as_text(), values.compile()(x), gradients(x)

    text, *apart = run()
    assert f"tensor<{where.size}x{classes}xf32>" not in text
    monkeypatch.setattr(_classes, "unsplit", lambda x: True)
    text, *together = run()
    assert f"tensor<{where.size}x{classes}xf32>" in text
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)
    jax.clear_caches()


def test_elementwise_losses_of_many_axes_run_over_one(monkeypatch):
    """As on one device, where nothing can be split; these tests have several."""
    from jaxent import _classes

    x = np.linspace(-9, 9, 2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    y = (x > 1).astype(np.int32)

    def losses(x):
        s = jaxent.sigmoid_stats(x, y)
        z = jaxent.sigmoid_cross_entropy(x, y.astype(np.float32), pos_weight=jnp.arange(5.0))
        return z + jaxent.focal(s, gamma=1.5) + jaxent.z_loss(s)

    def run():
        jax.clear_caches()
        text = jax.jit(losses).lower(x).as_text()
        return text, losses(x), jax.grad(lambda x: losses(x).sum())(x)

    text, *apart = run()
    assert "tensor<30xf32>" not in text
    monkeypatch.setattr(_classes, "unsplit", lambda x: True)
    text, *together = run()
    assert "tensor<30xf32>" in text
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-30)
    jax.clear_caches()


def test_no_computation_for_statistics_that_no_loss_asks_for():
    """The mean logit is dead code in a plain cross-entropy."""

    def flops(of):
        compiled = jax.jit(jax.value_and_grad(of)).lower(BIG, BIG_LABELS, BIG_MASK).compile()
        return compiled.cost_analysis()["flops"]

    smoothed = weighted(lambda s: jaxent.smoothed_nll(s, label_smoothing=0.1))
    assert flops(weighted(jaxent.nll)) < 0.8 * flops(smoothed)


def test_importing_jaxent_leaves_optax_and_matplotlib_alone():
    import subprocess
    import sys

    heavy = "{'optax', 'matplotlib', 'flax', 'jax.extend.core', 'jaxent.train', 'jaxent.debug'}"
    code = f"import sys, jaxent; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert {"train", "weights", "cross_entropy", "debug", "plot"} <= set(dir(jaxent))
    with pytest.raises(AttributeError, match="no attribute 'crossentropy'"):
        _ = jaxent.crossentropy
