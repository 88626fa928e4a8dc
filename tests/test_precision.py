"""The numbers are right: every oracle of oracle.py, which test_mutants.py tests in turn."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import oracle
import pytest
from hypothesis.extra.numpy import arrays

import jaxent
from jaxent._numerics import exp_of_sum


def of_option(loss):
    """loss(logits, labels, option) of one option a row."""

    @functools.partial(jnp.vectorize, signature="(c),(),()->()")
    def of_logits(logits, label, option):
        return loss(jaxent.softmax_stats(logits, label), option)

    return of_logits


def of_surprise(loss):
    """loss(u, option) of statistics of which the loss may read nothing but u = −log p_y."""

    @jnp.vectorize
    def of_u(u, option):
        return loss(jaxent.LogitStats(nll=u, log_normalizer=u, mean_logit=u), option)

    return of_u


def focal(s, gamma):
    return jaxent.focal(s, gamma=gamma)


def generalized(s, q):
    return jaxent.generalized_cross_entropy(s, q=q)


@jnp.vectorize
def sigmoid_focal(logit, label, gamma):
    return jaxent.focal(jaxent.sigmoid_stats(logit, label), gamma=gamma)


def mean_of_parts(parts):
    return sum(jaxent.weighted_sum(*part) for part in parts).mean()


SUITES = {
    "cross_entropy": (jaxent.cross_entropy, oracle.cross_entropy_oracles()),
    "soft_cross_entropy": (jaxent.soft_cross_entropy, oracle.soft_cross_entropy_oracles()),
    "kl_divergence": (jaxent.kl_divergence, oracle.kl_divergence_oracles()),
    "smoothed_nll": (
        of_option(lambda s, epsilon: jaxent.smoothed_nll(s, label_smoothing=epsilon)),
        oracle.smoothed_oracles(),
    ),
    "z_loss": (
        lambda x, y: jaxent.z_loss(jaxent.softmax_stats(x, y)),
        oracle.z_loss_oracles(),
    ),
    "focal": (of_surprise(focal), oracle.focal_oracles()),
    "softmax focal": (of_option(focal), oracle.focal_of_logits_oracles()),
    "sigmoid focal": (sigmoid_focal, oracle.sigmoid_focal_oracles()),
    "poly1": (
        of_surprise(lambda s, epsilon: jaxent.poly1(s, epsilon=epsilon)),
        oracle.poly1_oracles(),
    ),
    "generalized_cross_entropy": (of_surprise(generalized), oracle.generalized_oracles()),
    "softmax generalized_cross_entropy": (
        of_option(generalized),
        oracle.generalized_of_logits_oracles(),
    ),
    "sigmoid_cross_entropy": (
        lambda x, z, w: jaxent.sigmoid_cross_entropy(x, z, pos_weight=w),
        oracle.sigmoid_oracles(),
    ),
    "expected_cost": (
        jnp.vectorize(jaxent.expected_cost, signature="(c),(),(c,c)->()"),
        oracle.expected_cost_oracles(),
    ),
    "class_weights": (jaxent.class_weights, oracle.class_weights_oracles()),
    "weighted_mean": (jaxent.weighted_mean, oracle.weighted_mean_oracles()),
    "WeightedSum": (mean_of_parts, oracle.mean_of_parts_oracles()),
}


@pytest.mark.parametrize(
    ("name", "law"), [(name, law) for name, (_, laws) in SUITES.items() for law in laws]
)
def test_law(name, law):
    loss, laws = SUITES[name]
    laws[law](loss)


@pytest.mark.parametrize(
    "name", ["cross_entropy", "soft_cross_entropy", "focal", "generalized_cross_entropy"]
)
def test_float64(name):
    """As right in float64 as in float32, to 16 digits and margins of 700."""
    loss, case = SUITES[name][0], oracle.float64_cases()[name]
    with jax.enable_x64(True):
        oracle.value_is_right(loss, case)
        oracle.gradient_is_right(loss, case, limit=1e-12)
        oracle.curvature_is_right(loss, case, limit=1e-11)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
near = st.floats(-90, 90, width=32) | st.sampled_from([0.0, 1.0, 3e38, -3e38, 1e-38])


@pytest.mark.parametrize("classes", [1, 2, 3, 300])
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=st.data())
def test_any_finite_logits(classes, data):
    """Never NaN; infinite only where the truth is beyond the largest float."""
    rows = 2 if classes == 300 else 16
    logits = data.draw(arrays(np.float32, (rows, classes), elements=finite | near))
    labels = data.draw(arrays(np.int32, rows, elements=st.integers(0, classes - 1)))
    case = oracle.Case(oracle.cross_entropy, logits, labels)
    oracle.value_is_right(jaxent.cross_entropy, case)
    oracle.gradient_is_right(jaxent.cross_entropy, case)


@pytest.mark.parametrize("classes", [3, 20, 1000])
def test_the_normalizer_of_a_dominant_class(classes):
    """All digits of a small log Σ e^x, whether or not the class that dominates is the label."""
    rng = np.random.default_rng(classes)
    logits = rng.uniform(-60, -40, (500, classes)).astype(np.float32)
    logits[:, 0] = np.exp(rng.uniform(-20, 3, 500))

    def normalizer(logits, label):
        return jaxent.softmax_stats(logits, jnp.full(500, label)).log_normalizer

    truth = np.log(np.exp(logits.astype(float)).sum(-1))
    for label in 0, 1, classes - 1:
        value = jax.jit(normalizer)(logits, label)
        with_gradient = jax.jit(lambda x, label=label: jax.vjp(lambda x: normalizer(x, label), x))
        for got in value, with_gradient(logits)[0]:
            np.testing.assert_allclose(got, truth, rtol=np.finfo(np.float32).eps)


@pytest.mark.parametrize("ruled_out", [False, True], ids=["all possible", "one ruled out"])
@pytest.mark.parametrize("classes", [33, 1000, 2053])
def test_soft_targets_of_many_classes(classes, ruled_out):
    """Rows of any mass; all digits of confident one-hot rows, whatever a row beside them holds."""
    rng = np.random.default_rng(classes)
    one_hot = rng.integers(0, classes, 40)
    logits = np.round(rng.normal(scale=3, size=(4, 40, classes)) * 16) / 16
    logits[1] += 10_000
    logits[2] *= 8
    logits[3, :20] = 7
    logits[0, np.arange(40), one_hot] = logits[0].max(-1) + np.arange(40)
    targets = rng.dirichlet(np.full(classes, 0.1), (4, 40)) * [[[1]], [[2]], [[0.5]], [[1]]]
    targets[0] = np.eye(classes)[one_hot]
    targets[3, 20:] = 0
    logits, targets = logits.astype(np.float32), targets.astype(np.float32)
    if ruled_out:
        logits[3, -1, 0] = -np.inf
    x, q = logits.astype(float), targets.astype(float)
    largest = x.argmax(-1)[..., None]
    gap = np.take_along_axis(x, largest, -1) - x
    others, rest = np.exp(-gap), q.copy()
    np.put_along_axis(others, largest, 0, -1)
    np.put_along_axis(rest, largest, 0, -1)
    others, rest = others.sum(-1, keepdims=True), rest.sum(-1, keepdims=True)
    loss = np.where(q == 0, 0, q * (np.where(q == 0, 0, gap) + np.log1p(others))).sum(-1)
    slope = q.sum(-1, keepdims=True) * np.exp(-gap) / (1 + others) - q
    of_largest = (rest - np.take_along_axis(q, largest, -1) * others) / (1 + others)
    np.put_along_axis(slope, largest, of_largest, -1)

    value = jax.jit(jaxent.soft_cross_entropy)(logits, targets)
    np.testing.assert_allclose(value, loss, rtol=2e-6)
    value, transpose = jax.jit(
        lambda x: jax.vjp(lambda x: jaxent.soft_cross_entropy(x, targets), x)
    )(logits)
    np.testing.assert_allclose(value, loss, rtol=2e-6)
    (got,) = transpose(jnp.ones_like(value))
    rounding = 4 * np.finfo(np.float32).eps * targets * (targets < targets.sum(-1)[..., None])
    assert (np.abs(got - slope) <= 1e-5 * np.abs(slope) + rounding + 1e-37).all()


def test_exact_sums_are_exact():
    """The oracle of many classes agrees with that of 60 digits."""
    for logits, labels in oracle.HARD[300], oracle.RANDOM, oracle._rounded_margins(50):
        exact = oracle.many(oracle.cross_entropy, logits, labels)
        for got, truth in zip(oracle.exact_sums(logits, labels), exact, strict=True):
            assert oracle.relative(got.astype(float), truth).max() < 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential_of_a_sum(dtype):
    """To an ulp, with what the rounding of d took; 0 from where it is no normal number."""
    lowest = np.log(np.finfo(dtype).tiny)
    d = np.concatenate([np.linspace(lowest * 0.9999, 42, 2003), np.geomspace(1e-30, 1, 99), [0]])
    d = d.astype(dtype)
    low = (np.spacing(np.abs(d)) * np.cos(np.arange(d.size)) / 2).astype(dtype)
    beyond = np.array([-np.inf, lowest * 1.0001, -3e38, np.nan], dtype)
    with jax.enable_x64(dtype is np.float64):
        got = jax.jit(exp_of_sum)(d, low)
        np.testing.assert_array_equal(jax.jit(exp_of_sum)(beyond, 0 * d[:4]), [0, 0, 0, np.nan])
        np.testing.assert_array_equal(jax.jit(exp_of_sum)(beyond[:1], beyond[3:]), [0])
    with mpmath.workdps(40):
        truth = [mpmath.exp(mpmath.mpf(float(a)) + float(b)) for a, b in zip(d, low, strict=True)]
        error = [(float(e) - t) / t for e, t in zip(got, truth, strict=True)]
    assert np.abs(np.array(error, float)).max() < 1.3 * np.finfo(dtype).eps
