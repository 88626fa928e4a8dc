"""Laws of the whole family: every loss, source of statistics and reduction, on hard inputs.

A law says how two calls relate, so it needs no reference implementation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxent

EPS = float(np.finfo(np.float32).eps)

# --- inputs -------------------------------------------------------------------------------------
# Odd sizes. Logits are multiples of 2^-8, so that adding 4096 to them is exact.

rng = np.random.default_rng(7)
NUM_CLASSES = 7
BATCH = (3, 5)
ONE_BATCH = rng.integers(0, NUM_CLASSES, BATCH)
MILD = rng.integers(-1000, 1000, (*BATCH, NUM_CLASSES)) / 256
MARGIN = 40 * np.eye(NUM_CLASSES)[ONE_BATCH]
IMPOSSIBLE = np.eye(NUM_CLASSES, dtype=bool)[(ONE_BATCH + 3) % NUM_CLASSES]
KINDS = {
    "flat": np.zeros_like(MILD),
    "mild": MILD,
    "spread": 16 * MILD,
    "confident": MILD + MARGIN,
    "confidently wrong": MILD - MARGIN,
    "offset": MILD + 4096,
    "a class ruled out": np.where(IMPOSSIBLE, -np.inf, MILD),
    "nearly flat": MILD * 2.0**-30,
}
NAMES = list(KINDS)
LOGITS = np.stack(list(KINDS.values())).astype(np.float32)  # [8, 3, 5, 7]
LABELS = np.broadcast_to(ONE_BATCH, LOGITS.shape[:-1]).astype(np.int32)
COTANGENTS = (rng.integers(1, 9, LABELS.shape) / 4).astype(np.float32)
ONE_HOT = np.eye(NUM_CLASSES, dtype=np.float32)[LABELS]
COSTS = (rng.integers(0, 9, (NUM_CLASSES, NUM_CLASSES)) / 2).astype(np.float32)
FINITE = np.array([n != "a class ruled out" for n in NAMES])

# --- the family ---------------------------------------------------------------------------------
# name -> f(logits [..., 7], labels [...], where) -> losses [...]

LOSSES = {
    "nll": jaxent.nll,
    "smoothed": functools.partial(jaxent.smoothed_nll, label_smoothing=0.1),
    "z": jaxent.z_loss,
    "focal": functools.partial(jaxent.focal, gamma=2.0),
    "focal below 1": functools.partial(jaxent.focal, gamma=0.5),
    "poly1": functools.partial(jaxent.poly1, epsilon=2.0),
    "generalized": functools.partial(jaxent.generalized_cross_entropy, q=0.7),
    "a sum of terms": lambda s: jaxent.nll(s) + 1e-2 * jaxent.z_loss(s),
}


def of_softmax(loss):
    return lambda x, y, where=None: loss(jaxent.softmax_stats(x, y, where=where))


def of_sigmoid(loss):
    """Two classes, the first logit; an invalid label stays one."""
    return lambda x, y, where=None: loss(
        jaxent.sigmoid_stats(x[..., 0], jnp.where(y < 0, y, y % 2), where=where)
    )


def targets_of(labels):
    """Three quarters on the label, one on the next class."""
    one_hot = functools.partial(jax.nn.one_hot, num_classes=NUM_CLASSES, dtype=jnp.float32)
    return 0.75 * one_hot(labels) + 0.25 * one_hot((labels + 1) % NUM_CLASSES)


def independent_classes(x, y, where=None):
    mask = None if where is None else jnp.broadcast_to(where[..., None], x.shape)
    losses = jaxent.sigmoid_cross_entropy(x, targets_of(y), pos_weight=3.0, where=mask)
    return losses[..., :3].sum(-1)  # three: no class of them is ruled out in every row


FAMILY = {
    **{f"softmax {name}": of_softmax(loss) for name, loss in LOSSES.items()},
    **{f"sigmoid {name}": of_sigmoid(loss) for name, loss in LOSSES.items()},
    "soft": lambda x, y, where=None: jaxent.soft_cross_entropy(x, targets_of(y), where=where),
    "kl": lambda x, y, where=None: jaxent.kl_divergence(x, targets_of(y), where=where),
    "cost": lambda x, y, where=None: jaxent.expected_cost(x, y, COSTS, where=where),
    "independent": independent_classes,
}
SHIFT_INVARIANT = [f"softmax {n}" for n in LOSSES if n not in ("z", "a sum of terms")] + [
    "soft",
    "kl",
    "cost",
]
CLASS_SYMMETRIC = [f"softmax {name}" for name in LOSSES]

every_member = pytest.mark.parametrize("name", FAMILY)


@jax.jit
def evaluate(logits, labels, cotangents, where=None):
    """name -> losses, gradient of Σ cotangent · loss."""

    def of(loss):
        losses, transpose = jax.vjp(lambda x: loss(x, labels, where), logits)
        return losses, transpose(cotangents)[0]

    return {name: of(loss) for name, loss in FAMILY.items()}


def arrays(results):
    return jax.tree.map(np.asarray, results)


@functools.cache
def base():
    return arrays(evaluate(LOGITS, LABELS, COTANGENTS))


def assert_close(actual, expected, ulps=16, scale=None):
    """Within ``ulps`` of each number, and of the largest of a gradient's row (``scale``)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    bound = ulps * EPS * np.maximum(np.abs(expected), 0 if scale is None else scale)
    with np.errstate(invalid="ignore"):  # inf - inf
        error = np.abs(actual - expected)
    same = (actual == expected) | (error <= bound + np.finfo(np.float32).tiny)
    if not same.all():
        place = tuple(np.argwhere(~same)[0])
        raise AssertionError(
            f"{(~same).sum()} of {same.size} differ, the first at {place}: "
            f"{actual[place]!r} is not {expected[place]!r}"
        )


def assert_gradients_close(actual, expected, ulps=16):
    assert_close(actual, expected, ulps, np.abs(expected).max(-1, keepdims=True))


def test_the_family_is_finite_where_its_laws_are_tested():
    """Laws between NaNs would hold of anything."""
    for name, (losses, gradient) in base().items():
        finite = np.isfinite(losses)
        if name.startswith("sigmoid") or name == "independent":  # they do meet the -inf
            assert finite[FINITE].all(), name
        else:
            assert finite.all(), name
        assert not np.isnan(gradient).any(), name
        assert np.ptp(losses[finite]) > 0, name


# --- one row is one row -------------------------------------------------------------------------

ORDER = np.random.default_rng(1).permutation(LABELS.size)


@functools.cache
def flattened_and_permuted():
    rows = LOGITS.reshape(-1, NUM_CLASSES)
    return arrays(evaluate(rows[ORDER], LABELS.ravel()[ORDER], COTANGENTS.ravel()[ORDER]))


@every_member
def test_leading_axes_flatten_and_permute(name):
    losses, gradient = base()[name]
    flat_losses, flat_gradient = flattened_and_permuted()[name]
    assert_close(flat_losses, losses.ravel()[ORDER])
    assert_gradients_close(flat_gradient, gradient.reshape(-1, NUM_CLASSES)[ORDER])


@functools.cache
def mapped():
    return arrays(jax.vmap(jax.vmap(jax.vmap(evaluate)))(LOGITS, LABELS, COTANGENTS))


@every_member
def test_vmap_of_the_scalar_form_is_the_batched_form(name):
    assert_close(mapped()[name][0], base()[name][0])
    assert_gradients_close(mapped()[name][1], base()[name][1])


KEEP = np.random.default_rng(2).random(LABELS.shape) < 0.6
KEEP[0] = False  # a batch of nothing


@functools.cache
def masked():
    """The rows that are not kept hold NaN, infinities and labels out of range."""
    rubbish = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, np.nan, 0], np.float32)
    logits = np.where(KEEP[..., None], LOGITS, rubbish)
    labels = np.where(KEEP, LABELS, np.where(np.arange(5) % 2, -100, 1000)).astype(np.int32)
    return arrays(evaluate(logits, labels, COTANGENTS, KEEP))


@every_member
def test_where_false_is_a_row_that_never_was(name):
    losses, gradient = masked()[name]
    assert (losses[~KEEP] == 0).all()
    assert (gradient[~KEEP] == 0).all()
    assert_close(losses[KEEP], base()[name][0][KEEP])
    assert_gradients_close(gradient[KEEP], base()[name][1][KEEP])

    part = weighted_sums(losses.reshape(len(NAMES), -1), KEEP.reshape(len(NAMES), -1))
    for kind, keep in enumerate(KEEP):
        kept = base()[name][0][kind][keep].astype(np.float64)
        mean = jax.tree.map(lambda x, kind=kind: x[kind], part).mean()
        assert_close(mean, kept.mean() if keep.any() else 0.0)


COPIES = np.array([2, 0, 1, 1, 3, 0, 1, 2, 1, 0, 1, 1, 2, 0, 1])
REPEATED = np.repeat(np.arange(COPIES.size), COPIES)
weighted_sums = jax.jit(jax.vmap(jaxent.weighted_sum))


@every_member
def test_a_whole_weight_is_so_many_copies_of_the_row(name):
    """Weight 2 is the row twice, weight 0 is no row, whatever its loss."""
    losses = base()[name][0].reshape(len(NAMES), -1)
    one = weighted_sums(losses, np.broadcast_to(COPIES, losses.shape))
    other = weighted_sums(losses[:, REPEATED])
    jax.tree.map(assert_close, one, other)
    assert (np.asarray(one.weight) == COPIES.sum()).all()


@pytest.mark.parametrize("name", ["softmax smoothed", "sigmoid focal", "soft", "cost"])
def test_a_whole_weight_is_so_many_copies_in_the_gradient(name):
    labels = ONE_BATCH.ravel().astype(np.int32)

    def weighted(x):
        return jaxent.weighted_mean(FAMILY[name](x, labels), COPIES)

    def repeated(x):
        return jaxent.weighted_mean(FAMILY[name](x[REPEATED], labels[REPEATED]))

    logits = LOGITS[FINITE].reshape(sum(FINITE), -1, NUM_CLASSES)
    one, other = jax.jit(lambda x: [jax.vmap(jax.grad(f))(x) for f in (weighted, repeated)])(logits)
    assert_gradients_close(one, np.asarray(other))
    assert (np.asarray(one)[:, COPIES == 0] == 0).all()


# --- the class axis -----------------------------------------------------------------------------


@functools.cache
def moved():
    """Another constant to each row of the kinds to which it can be added exactly."""
    constants = np.random.default_rng(1).choice([-4096, 1024, 3, 4096], (*LABELS.shape, 1))
    constants = np.where(np.array(NAMES)[:, None, None, None] == "nearly flat", 0, constants)
    return arrays(evaluate(LOGITS + constants.astype(np.float32), LABELS, COTANGENTS))


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_a_constant_added_to_all_logits_of_a_row_changes_nothing(name):
    assert_close(moved()[name][0], base()[name][0])
    assert_gradients_close(moved()[name][1], base()[name][1])


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_gradients_over_the_classes_sum_to_zero(name):
    """To rounding of the terms themselves, also where a confident example's are 1e-17."""
    gradient = base()[name][1].astype(np.float64)
    assert_close(gradient.sum(-1), np.zeros(LABELS.shape), scale=np.abs(gradient).sum(-1))
    if name != "softmax focal":  # which has less than float32 can say: p^3
        assert (np.abs(gradient[NAMES.index("confident")]).max(-1) > 0).all()


def test_gradients_of_the_z_loss_sum_to_twice_the_log_normalizer():
    log_normalizer = np.log(
        np.exp(LOGITS.astype(np.float64) - LOGITS.max(-1, keepdims=True)).sum(-1)
    )
    log_normalizer += LOGITS.max(-1)
    total = base()["softmax z"][1].astype(np.float64).sum(-1)
    assert_close(total, 2 * log_normalizer * COTANGENTS, scale=np.abs(LOGITS[..., 0]))


RENAMED = np.array([3, 0, 6, 2, 5, 1, 4])
RENAMED_LABELS = np.argsort(RENAMED)[LABELS].astype(np.int32)


@functools.cache
def renamed():
    return arrays(evaluate(LOGITS[..., RENAMED], RENAMED_LABELS, COTANGENTS))


@pytest.mark.parametrize("name", CLASS_SYMMETRIC)
def test_renaming_the_classes_renames_the_gradient(name):
    assert_close(renamed()[name][0], base()[name][0])
    assert_gradients_close(renamed()[name][1], base()[name][1][..., RENAMED])


def test_renaming_the_classes_renames_rows_and_columns_of_a_cost_matrix():
    costs = COSTS[np.ix_(RENAMED, RENAMED)]
    renamed_costs = jaxent.expected_cost(LOGITS[..., RENAMED], RENAMED_LABELS, costs)
    assert_close(renamed_costs, base()["cost"][0])


@jax.jit
def losses_by_name(logits, labels, targets):
    stats = jaxent.softmax_stats(logits, labels)
    return stats, {
        "smoothed": jaxent.smoothed_nll(stats, label_smoothing=0.3),
        "focal": jaxent.focal(stats, gamma=2.0),
        "poly1": jaxent.poly1(stats, epsilon=-0.5),
        "generalized": jaxent.generalized_cross_entropy(stats, q=0.5),
        "z": jaxent.z_loss(stats),
        "soft": jaxent.soft_cross_entropy(logits, targets),
        "kl": jaxent.kl_divergence(logits, jnp.full_like(logits, 1 / logits.shape[-1])),
        "a mistake": jaxent.expected_cost(logits, labels, 1 - jnp.eye(logits.shape[-1])),
    }


@pytest.mark.parametrize("num_classes", [1, 2, 7, 1031])
def test_flat_logits_have_lost_log_v(num_classes):
    """At any offset, exactly: a padded class axis or a lost shift would show."""
    offsets = np.array([0.0, 1e4, -1e4, 3e38, -3e38], np.float32)
    logits = np.repeat(offsets[:, None], num_classes, -1)
    labels = np.array([0, num_classes - 1, num_classes // 2, 0, num_classes // 3])
    targets = np.random.default_rng(1).dirichlet(np.ones(num_classes), 5).astype(np.float32)
    stats, losses = losses_by_name(logits, labels, targets)

    u = np.full(5, np.log(num_classes))
    mistake = 1 - 1 / num_classes
    assert_close(stats.nll, u)
    assert_close(stats.mean_nll, u)
    assert_close(stats.mean_logit, offsets)
    assert_close(stats.log_normalizer, offsets.astype(float) + u)
    assert_close(stats.label_prob, np.full(5, 1 - mistake))
    assert_close(stats.other_prob, np.full(5, mistake))
    assert_close(losses["smoothed"], u)
    assert_close(losses["focal"], mistake**2 * u)
    assert_close(losses["poly1"], u - 0.5 * mistake)
    assert_close(losses["generalized"], 2 - 2 * np.exp(-u / 2))
    assert_close(losses["z"][0], u[0] ** 2)
    assert_close(losses["soft"], targets.astype(np.float64).sum(-1) * u, ulps=32)
    assert_close(losses["kl"], np.zeros(5), ulps=32, scale=1 + u)
    assert_close(losses["a mistake"], np.full(5, mistake), ulps=32)


# --- one loss is another ------------------------------------------------------------------------


def values_and_slopes(f, *inputs):
    """f, elementwise over its inputs, and its derivative in the first."""

    @jax.jit
    def both(x):
        values, transpose = jax.vjp(lambda x: f(x, *inputs[1:]), x)
        return values, transpose(jnp.ones_like(values))[0]

    return jax.tree.map(np.asarray, both(inputs[0]))


@functools.cache
def two_classes():
    """name -> (sigmoid, softmax) -> values, slopes."""
    x = jnp.array([0, 1e-8, -0.3, 0.3, 5, -5, 17, -17, 40, -40, 88, -88, 1e4, -1e4], jnp.float32)
    x, labels = jnp.concatenate([x, x]), jnp.repeat(jnp.arange(2), x.size)

    def one(x):
        return jaxent.sigmoid_stats(x, labels)

    def two(x):
        return jaxent.softmax_stats(jnp.stack([jnp.zeros_like(x), x], -1), labels)

    @jax.jit
    def evaluate(x):
        def of(loss, stats):
            values, transpose = jax.vjp(lambda x: loss(stats(x)), x)
            return values, transpose(jnp.ones_like(values))[0]

        return {name: (of(loss, one), of(loss, two)) for name, loss in LOSSES.items()}

    return evaluate(x)


@pytest.mark.parametrize("name", LOSSES)
def test_a_sigmoid_is_the_softmax_of_0_and_x(name):
    one, two = two_classes()[name]
    # log_normalizer itself is only absolutely exact where a label other than the largest is
    slack = 1 if name in ("z", "a sum of terms") else 0
    assert_close(one[0], two[0], scale=slack)
    assert_close(one[1], two[1], scale=max(slack, 0.1 if name == "smoothed" else 0))


def test_sigmoid_cross_entropy_is_nll_of_sigmoid_stats_and_soft_cross_entropy_of_0_and_x():
    x = jnp.array([0, 0.3, -0.3, 5, -5, 17, -17, 88, -88, 1e4, -1e4], jnp.float32)
    for label in (0, 1):
        labels = jnp.full(x.shape, label)
        one = values_and_slopes(jaxent.sigmoid_cross_entropy, x, labels)
        two = values_and_slopes(lambda x, y: jaxent.sigmoid_stats(x, y).nll, x, labels)
        jax.tree.map(assert_close, one, two)
    z = jnp.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], jnp.float32)
    pair = jnp.stack([jnp.zeros_like(x), x], -1)
    soft = jaxent.soft_cross_entropy(pair, jnp.stack([1 - z, z], -1))
    assert_close(jaxent.sigmoid_cross_entropy(x, z), soft, ulps=16)
    assert_close(
        jaxent.sigmoid_cross_entropy(x, z), jaxent.sigmoid_cross_entropy(-x, 1 - z), ulps=16
    )


def test_pos_weight_is_the_weight_of_the_positive_term():
    x, z = jnp.linspace(-9.0, 9.0, 33), jnp.linspace(0.0, 1.0, 33)
    positive = jaxent.sigmoid_cross_entropy(x, jnp.ones(33))
    negative = jaxent.sigmoid_cross_entropy(x, jnp.zeros(33))
    assert_close(
        jaxent.sigmoid_cross_entropy(x, z, pos_weight=5.0), 5 * z * positive + (1 - z) * negative
    )
    per_class = jaxent.sigmoid_cross_entropy(
        jnp.stack([x, x], -1), jnp.stack([z, z], -1), pos_weight=jnp.array([1.0, 5.0])
    )
    assert_close(per_class[:, 0], jaxent.sigmoid_cross_entropy(x, z))
    assert_close(per_class[:, 1], jaxent.sigmoid_cross_entropy(x, z, pos_weight=5.0))


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_smoothing_is_soft_cross_entropy_of_smoothed_one_hot(epsilon):
    x, y = LOGITS[FINITE], LABELS[FINITE]
    targets = (1 - epsilon) * ONE_HOT[FINITE] + epsilon / NUM_CLASSES
    loss = functools.partial(jaxent.smoothed_nll, label_smoothing=epsilon)
    one = values_and_slopes(lambda x: loss(jaxent.softmax_stats(x, y)), x)
    two = values_and_slopes(jaxent.soft_cross_entropy, x, targets)
    assert_close(one[0], two[0])
    assert_close(one[1], two[1], scale=1)
    if epsilon == 0:
        np.testing.assert_array_equal(one[0], jaxent.cross_entropy(x, y))
    if epsilon == 1:  # the label no longer matters
        assert_close(one[0], loss(jaxent.softmax_stats(x, (y + 1) % NUM_CLASSES)), ulps=2)


def test_smoothing_is_over_the_classes_that_are_possible():
    kind = NAMES.index("a class ruled out")
    kept = ~IMPOSSIBLE
    logits = LOGITS[kind][kept].reshape(*BATCH, -1)
    labels = np.cumsum(kept, -1)[np.arange(3)[:, None], np.arange(5), ONE_BATCH] - 1
    smoothed = of_softmax(LOSSES["smoothed"])
    assert_close(base()["softmax smoothed"][0][kind], smoothed(logits, labels.astype(np.int32)))


@pytest.mark.parametrize("classes", [1, 2, 20, 40])
def test_the_only_class_that_is_possible_has_no_loss_and_no_gradient(classes):
    x = np.full((2, classes), -np.inf, np.float32)
    x[:, -1] = 3, -1e4
    y = np.full(2, classes - 1)
    smoothed = of_softmax(LOSSES["smoothed"])
    losses, transpose = jax.vjp(lambda x: smoothed(x, y), x)
    assert not losses.any() and not transpose(jnp.ones(2))[0].any()


def test_the_smoothed_loss_is_least_at_the_smoothed_targets():
    q = jnp.array([0.9 + 0.1 / 7] + 6 * [0.1 / 7], jnp.float32)
    loss = of_softmax(LOSSES["smoothed"])
    value, slope = jax.value_and_grad(loss)(jnp.log(q), jnp.array(0))
    entropy = -(np.asarray(q, np.float64) * np.log(np.asarray(q, np.float64))).sum()
    assert_close(value, entropy)
    assert_close(slope, np.zeros(7), scale=1)


def test_soft_cross_entropy_of_one_hot_is_cross_entropy():
    """Value and gradient, each number of it: also 1e-17 of a confident row."""
    one = values_and_slopes(jaxent.soft_cross_entropy, LOGITS, ONE_HOT)
    two = nll_and_slope()
    assert_close(one[0], two[0])
    assert_close(one[1], two[1])
    np.testing.assert_array_equal(base()["softmax nll"][0], two[0])


def test_soft_cross_entropy_is_linear_in_the_targets():
    q = np.random.default_rng(1).random((2, *LOGITS[FINITE].shape)).astype(np.float32)
    first, second, both = (
        values_and_slopes(jaxent.soft_cross_entropy, LOGITS[FINITE], t)
        for t in (*q, 2 * q[0] + q[1])
    )
    assert_close(both[0], 2 * first[0] + second[0], ulps=16)
    assert_gradients_close(both[1], 2 * first[1] + second[1], ulps=32)
    zero = values_and_slopes(jaxent.soft_cross_entropy, LOGITS[FINITE], jnp.zeros_like(q[0]))
    assert not np.any(zero[0]) and not np.any(zero[1])


def test_kl_is_soft_cross_entropy_less_the_entropy():
    q = np.asarray(targets_of(LABELS))
    soft = values_and_slopes(jaxent.soft_cross_entropy, LOGITS, q)
    kl = values_and_slopes(jaxent.kl_divergence, LOGITS, q)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert_close(kl[0], soft[0] - entropy, scale=1)
    np.testing.assert_array_equal(kl[1], soft[1])
    assert (kl[0] > 0).all()
    with_zero = np.where(q > 0, np.log(np.where(q > 0, q, 1)), -np.inf)
    own, slope = values_and_slopes(jaxent.kl_divergence, with_zero.astype(np.float32), q)
    assert_close(own, np.zeros(own.shape), scale=1)
    assert_close(slope, np.zeros(slope.shape), scale=1)


@functools.cache
def nll_and_slope():
    return values_and_slopes(jaxent.cross_entropy, LOGITS, LABELS)


@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(jaxent.smoothed_nll, label_smoothing=0.0),
        functools.partial(jaxent.focal, gamma=0.0),
        functools.partial(jaxent.poly1, epsilon=0.0),
        functools.partial(jaxent.generalized_cross_entropy, q=0.0),
    ],
    ids=["label_smoothing=0", "gamma=0", "epsilon=0", "q=0"],
)
def test_an_option_that_is_off_leaves_the_nll(loss):
    losses, slopes = values_and_slopes(of_softmax(loss), LOGITS, LABELS)
    np.testing.assert_array_equal(losses, nll_and_slope()[0])
    assert_close(slopes, nll_and_slope()[1], ulps=2)


def test_generalized_cross_entropy_ends_at_the_probability_of_a_mistake():
    full = functools.partial(jaxent.generalized_cross_entropy, q=1.0)
    one = values_and_slopes(of_softmax(full), LOGITS, LABELS)
    two = values_and_slopes(of_softmax(lambda s: s.other_prob), LOGITS, LABELS)
    three = values_and_slopes(
        lambda x: jaxent.expected_cost(x, LABELS, 1 - jnp.eye(NUM_CLASSES)), LOGITS
    )
    for other in (two, three):
        assert_close(one[0], other[0])
        assert_gradients_close(one[1], other[1], ulps=64)  # x_j − top is rounded in p_j


def test_expected_cost_of_a_constant_row_is_that_constant():
    costs = jnp.broadcast_to(jnp.arange(1.0, 8.0)[:, None], (7, 7))
    value, slope = values_and_slopes(lambda x: jaxent.expected_cost(x, LABELS, costs), LOGITS)
    assert_close(value, LABELS + 1.0)
    assert_close(slope, np.zeros(slope.shape), scale=8)


def test_expected_cost_is_linear_in_the_cost_matrix():
    other = (np.random.default_rng(1).integers(-9, 9, COSTS.shape) / 2).astype(np.float32)
    sum_of_costs = jaxent.expected_cost(LOGITS, LABELS, 2 * COSTS - other)
    difference = 2 * base()["cost"][0] - np.asarray(jaxent.expected_cost(LOGITS, LABELS, other))
    assert_close(sum_of_costs, difference, scale=16)


def test_cost_weights_are_a_table_when_the_prediction_does_not_matter():
    table = jnp.arange(1.0, 8.0)
    predictions = jnp.argmax(LOGITS, -1)
    rows = jnp.broadcast_to(table[:, None], (7, 7))
    one = jaxent.cost_weights(LABELS, predictions, rows)
    np.testing.assert_array_equal(one, jaxent.class_weights(LABELS, table))
    columns = jaxent.cost_weights(LABELS, predictions, rows.T)
    np.testing.assert_array_equal(columns, jaxent.class_weights(predictions, table))


def test_terms_add():
    def both(s):
        return jaxent.nll(s) + 1e-2 * jaxent.z_loss(s)

    one = values_and_slopes(of_softmax(both), LOGITS, LABELS)
    terms = nll_and_slope(), values_and_slopes(of_softmax(jaxent.z_loss), LOGITS, LABELS)
    assert_close(one[0], terms[0][0] + 1e-2 * terms[1][0])
    assert_gradients_close(one[1], terms[0][1] + 1e-2 * terms[1][1])


def test_statistics_agree_with_each_other():
    s = jax.tree.map(np.asarray, jaxent.softmax_stats(LOGITS, LABELS))
    label_logit = np.take_along_axis(LOGITS, LABELS[..., None], -1)[..., 0]
    size = 2 + np.abs(np.where(np.isinf(LOGITS), 0, LOGITS)).max(-1)
    assert_close(s.label_prob + s.other_prob, np.ones(LABELS.shape))
    assert_close(s.label_logit, label_logit, scale=size)
    assert_close(s.log_normalizer - s.mean_logit, s.mean_nll, scale=size)
    assert_close(s.log_normalizer - label_logit, s.nll, scale=size)
    by_hand = jaxent.LogitStats(s.nll, s.log_normalizer, s.mean_logit)
    np.testing.assert_array_equal(by_hand.mean_nll, s.log_normalizer - s.mean_logit)


@pytest.mark.parametrize("others", [0, 40])
def test_the_mean_logit_of_extreme_rows(others):
    """Infinite only where a logit is; as large as the largest numbers, and with its gradient."""
    far = np.full((3, 3 + others), -np.inf, np.float32)
    far[:, :3] = [np.inf, 0, 1], [-3e38, -3e38, 3e38], [3e38, 3e38, 3e38]
    mean, pull = jax.vjp(lambda x: jaxent.softmax_stats(x, jnp.array([0, 2, 1])).mean_logit, far)
    np.testing.assert_allclose(mean, [np.inf, -1e38, 3e38], rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(3))[0][:, :3], np.full((3, 3), 1 / 3), rtol=1e-6)


# --- logit adjustment and class weights ---------------------------------------------------------

COUNTS = jnp.array([500, 300, 120, 50, 20, 7, 3])


def test_logit_adjustment_multiplies_the_odds_by_the_prior():
    prior = np.asarray(COUNTS, np.float64) / 1000
    offsets = jaxent.weights.log_prior(COUNTS)
    adjusted = jaxent.cross_entropy(MILD.astype(np.float32) + offsets[None, None], ONE_BATCH)
    odds = prior * np.exp(MILD)
    label_odds = np.take_along_axis(odds, ONE_BATCH[..., None], -1)[..., 0]
    assert_close(adjusted, -np.log(label_odds / odds.sum(-1)), ulps=16)
    counted = jaxent.cross_entropy(MILD.astype(np.float32) + jnp.log(COUNTS)[None, None], ONE_BATCH)
    assert_close(counted, adjusted, ulps=16)  # log n is log(n / N) and a constant


def test_what_a_classifier_without_inputs_learns():
    """The prior; flat with balanced weights; flat before its adjustment: there no gradient."""
    n = COUNTS.astype(jnp.float32)
    labels = jnp.arange(7)
    offsets = jaxent.weights.log_prior(COUNTS)

    def objective(x, table, adjustment):
        rows = jnp.broadcast_to(x + adjustment, (7, 7))
        return jaxent.weighted_mean(jaxent.cross_entropy(rows, labels), n * table)

    slope = jax.grad(objective)
    flat, ones, none = jnp.zeros(7), jnp.ones(7), jnp.zeros(7)
    balanced = jaxent.weights.balanced(COUNTS)
    for x, table, adjustment in (
        (offsets, ones, none),
        (flat, balanced, none),
        (flat, ones, offsets),
    ):
        assert_close(slope(x, table, adjustment), np.zeros(7), scale=1)
    assert np.abs(slope(flat, ones, none)).max() > 0.3
    assert np.abs(slope(offsets, balanced, none)).max() > 0.3


def test_recipes_agree_where_they_meet():
    w = jaxent.weights
    n = COUNTS.astype(jnp.float32)
    assert_close(
        w.balanced(COUNTS) * n, np.full(7, 1000 / 7)
    )  # every class weighs the same in total
    assert_close((w.balanced(COUNTS) * n).sum() / 1000, 1.0)
    assert_close(w.inverse_frequency(COUNTS) / 7, w.balanced(COUNTS))
    assert_close(w.inverse_frequency(COUNTS, power=0.0), np.ones(7))
    assert_close(w.inverse_frequency(COUNTS, power=2.0), w.inverse_frequency(COUNTS) ** 2)
    assert_close(jnp.log(w.inverse_frequency(COUNTS)), -w.log_prior(COUNTS), scale=1)
    assert_close(w.log_ratio(COUNTS, clip=None), -w.log_prior(COUNTS), scale=1)
    assert_close(w.median_frequency(COUNTS) * n, np.full(7, 50))
    assert_close(w.effective_number(COUNTS, beta=0.0), np.ones(7))
    limit = w.effective_number(COUNTS, beta=1 - 1e-12)
    assert_close(limit, w.inverse_frequency(COUNTS, normalize="mean"), ulps=32)
    assert_close(jnp.exp(w.log_prior(COUNTS)).sum(), 1.0)
    pair = w.balanced(jnp.array([900, 100]))
    assert_close(w.positive(900, 100), pair[1] / pair[0])


def test_counts_of_parts_add_up():
    local = np.random.default_rng(1)
    labels = local.integers(0, 7, 101)
    keep = local.random(101) < 0.5
    whole = jaxent.weights.counts(labels, 7)
    np.testing.assert_array_equal(whole, np.bincount(labels, minlength=7))
    parts = [jaxent.weights.counts(labels, 7, where=part) for part in (keep, ~keep)]
    np.testing.assert_array_equal(sum(parts), whole)


# --- weights and reductions ---------------------------------------------------------------------

REDUCERS = {
    "weighted_mean": jaxent.weighted_mean,
    "nonzero_mean": jaxent.nonzero_mean,
    "plain_mean": jaxent.plain_mean,
    "total": lambda losses, weights=None: jaxent.weighted_sum(losses, weights).total,
}
jitted_sum = jax.jit(jaxent.weighted_sum)
ROW_LOSSES = rng.gamma(1.0, 1.0, 105).astype(np.float32)
ROW_WEIGHTS = np.where(rng.random(105) < 0.2, 0, rng.gamma(2.0, 1.0, 105)).astype(np.float32)


def exact(losses, weights):
    losses, weights = np.asarray(losses, np.float64), np.asarray(weights, np.float64)
    return (losses * weights).sum(), weights.sum()


@pytest.mark.parametrize("seed", range(4))
def test_any_partition_of_a_batch_adds_up_to_the_whole(seed):
    local = np.random.default_rng(seed)
    num_parts = int(local.integers(1, 12))
    part_of = local.integers(0, num_parts, ROW_LOSSES.size)
    parts = [
        jitted_sum(ROW_LOSSES[part_of == p], ROW_WEIGHTS[part_of == p])
        for p in range(num_parts + 1)  # the last is empty
    ]
    whole = jaxent.weighted_sum(ROW_LOSSES, ROW_WEIGHTS)
    total, weight = exact(ROW_LOSSES, ROW_WEIGHTS)
    for added in (whole, sum(parts), functools.reduce(lambda a, b: a + b, reversed(parts))):
        assert_close(added.total, total, ulps=2)
        assert_close(added.weight, weight, ulps=2)
        assert_close(added.mean(), total / weight, ulps=4)
    assert parts[-1].mean() == 0 and parts[-1].mean(empty=7.0) == 7


def test_exact_numbers_add_up_exactly_in_any_order():
    local = np.random.default_rng(1)
    losses = jnp.asarray(local.integers(0, 64, 105) / 8, jnp.float32)
    weights = jnp.asarray(local.integers(-8, 64, 105) / 8, jnp.float32)
    whole = jaxent.weighted_sum(losses, weights)
    for size in (1, 2, 15, 52, 104):
        parts = [
            jitted_sum(losses[i : i + size], weights[i : i + size]) for i in range(0, 105, size)
        ]
        jax.tree.map(np.testing.assert_array_equal, sum(parts), whole)
    assert (whole.total, whole.weight) == exact(losses, weights)


def test_sum_starts_from_nothing_and_refuses_a_stranger():
    part = jaxent.weighted_sum(jnp.array([1.0, 2.0]))
    assert sum([part]).total == 3
    for stranger in (1.0, 2, jnp.array(1.0)):
        with pytest.raises(TypeError):
            part + stranger
        with pytest.raises(TypeError):
            stranger + part


def test_psum_is_the_sum_of_the_parts():
    losses, weights = ROW_LOSSES.reshape(7, 15), ROW_WEIGHTS.reshape(7, 15)

    def of_shard(losses, weights):
        return jaxent.weighted_sum(losses, weights).psum("shard")

    everywhere = jax.vmap(of_shard, axis_name="shard")(losses, weights)
    total, weight = exact(losses, weights)
    assert_close(everywhere.total, np.full(7, total))
    assert_close(everywhere.weight, np.full(7, weight))


def test_gradient_of_the_mean_after_a_psum_is_that_of_the_whole_batch():
    """Means of shards' means would weigh the shard of two examples like the shard of none."""
    logits, labels = MILD.astype(np.float32), ONE_BATCH.astype(np.int32)
    weights = np.array([[1, 0, 0, 0, 0], [1, 2, 3, 4, 5], [0, 1, 0, 2, 0]], np.float32)

    def of_shard(x, y, w):
        def objective(x):
            return jaxent.weighted_sum(jaxent.cross_entropy(x, y), w).psum("shard").mean() / 3

        return jax.grad(objective)(x)

    def of_batch(x):
        return jaxent.weighted_mean(jaxent.cross_entropy(x, labels), weights)

    # each of the 3 shards differentiates its own copy of the mean, and psum transposes to psum
    sharded = jax.jit(jax.vmap(of_shard, axis_name="shard"))(logits, labels, weights)
    assert_gradients_close(sharded, np.asarray(jax.jit(jax.grad(of_batch))(logits)))


@pytest.mark.parametrize("factor", [0.25, 3.0, 1e-6, 1e6])
def test_scaling_all_weights(factor):
    """Changes nothing in a weighted mean, and everything else by that factor."""
    scaled = (ROW_WEIGHTS * np.float32(factor)).astype(np.float32)
    for name, reduce in REDUCERS.items():
        kept = 1.0 if name == "weighted_mean" else np.float64(np.float32(factor))
        assert_close(reduce(ROW_LOSSES, scaled), kept * np.asarray(reduce(ROW_LOSSES, ROW_WEIGHTS)))


@pytest.mark.parametrize(
    "name", ["softmax nll", "softmax smoothed", "softmax focal", "sigmoid nll"]
)
def test_scaling_a_table_of_class_weights_only_rescales(name):
    table = jnp.array([0.5, 2.0, 1.0, 4.0, 0.0, 3.0, 1.5])
    logits, labels = MILD.astype(np.float32), ONE_BATCH.astype(np.int32)

    def objective(x, table, reduce):
        return reduce(FAMILY[name](x, labels), jaxent.class_weights(labels, table))

    @jax.jit
    def reduced(table):
        slope = jax.value_and_grad(objective)
        return {reducer: slope(logits, table, reduce) for reducer, reduce in REDUCERS.items()}

    small, large = reduced(table), reduced(8 * table)
    for reducer in REDUCERS:
        factor = 1 if reducer == "weighted_mean" else 8
        assert_close(large[reducer][0], factor * np.asarray(small[reducer][0]))
        assert_gradients_close(large[reducer][1], factor * np.asarray(small[reducer][1]))


def test_weight_zero_is_a_removed_row_but_not_for_the_plain_mean():
    kept = ROW_WEIGHTS != 0
    for name, reduce in REDUCERS.items():
        removed = np.asarray(reduce(ROW_LOSSES[kept], ROW_WEIGHTS[kept]), np.float64)
        if name == "plain_mean":
            removed = removed * kept.sum() / kept.size
        assert_close(reduce(ROW_LOSSES, ROW_WEIGHTS), removed)
        dirty = np.where(kept, ROW_LOSSES, np.inf).astype(np.float32)
        assert_close(reduce(dirty, ROW_WEIGHTS), removed)
        assert_close(reduce(np.where(kept, dirty, np.nan), ROW_WEIGHTS), removed)


def test_a_batch_of_nothing_has_loss_0_and_no_gradient():
    """All weights 0, or weights that cancel, or no rows at all."""
    logits, labels = MILD.astype(np.float32), ONE_BATCH.astype(np.int32)
    cancelling = np.zeros(BATCH, np.float32)
    cancelling[0, 0], cancelling[2, 3] = 2, -2

    def mean(x, weights, reduce):
        return reduce(jaxent.cross_entropy(x, labels), weights)

    both = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)), static_argnums=2)
    for reduce in REDUCERS.values():
        value, (slope, of_weights) = both(logits, np.zeros_like(cancelling), reduce)
        assert value == 0 and not np.any(slope)
        assert np.isfinite(of_weights).all()
        assert reduce(np.zeros(0, np.float32)) == 0
    value, (slope, _) = both(logits, cancelling, jaxent.weighted_mean)
    assert value == 0 and not np.any(slope)


def test_weights_of_one_are_no_weights_and_a_mask_counts_as_0_and_1():
    mask = ROW_WEIGHTS != 0
    for reduce in REDUCERS.values():
        np.testing.assert_array_equal(
            reduce(ROW_LOSSES, np.ones_like(ROW_LOSSES)), reduce(ROW_LOSSES)
        )
        as_numbers = [mask, mask.astype(np.float32), mask.astype(np.int32), mask.astype(np.int8)]
        values = [reduce(ROW_LOSSES, m) for m in as_numbers]
        np.testing.assert_array_equal(values, [values[0]] * 4)


def test_the_four_denominators_divide_one_total():
    total, weight = exact(ROW_LOSSES, ROW_WEIGHTS)
    counted = {
        "weighted_mean": weight,
        "nonzero_mean": np.count_nonzero(ROW_WEIGHTS),
        "plain_mean": 105,
        "total": 1,
    }
    for name, reduce in REDUCERS.items():
        assert_close(reduce(ROW_LOSSES, ROW_WEIGHTS), total / counted[name], ulps=4)
    assert_close(jaxent.weighted_mean(ROW_LOSSES), ROW_LOSSES.astype(np.float64).mean(), ulps=4)


def test_gradient_with_respect_to_a_weight_is_the_loss_above_the_mean():
    slope = jax.grad(jaxent.weighted_mean, argnums=1)(ROW_LOSSES, ROW_WEIGHTS)
    total, weight = exact(ROW_LOSSES, ROW_WEIGHTS)
    assert_close(slope, (ROW_LOSSES - total / weight) / weight, scale=5 / weight)


def test_several_kinds_of_weights_multiply():
    labels = np.arange(105) % 7
    table = np.arange(7.0).astype(np.float32)
    mask = np.arange(105) % 3 == 0
    looked_up = jaxent.class_weights(labels, table, where=mask)
    np.testing.assert_array_equal(looked_up, table[labels] * mask)
    part = jaxent.weighted_sum(ROW_LOSSES, looked_up * ROW_WEIGHTS)
    total, weight = exact(ROW_LOSSES, table[labels] * mask * ROW_WEIGHTS.astype(np.float64))
    assert_close(part.total, total)
    assert_close(part.weight, weight)


# --- ranks --------------------------------------------------------------------------------------


@jax.jit
def dense_losses(logits, labels, targets):
    return (
        jaxent.cross_entropy(logits, labels),
        jaxent.soft_cross_entropy(logits, targets),
        jaxent.sigmoid_cross_entropy(logits, targets).sum(-1),
    )


@pytest.mark.parametrize("shape", [(), (2, 9), (2, 13, 13, 3)], ids=str)
def test_ranks_are_batches_of_rows(shape):
    """[V], [b, t, V] and the grid [b, 13, 13, 3, 20]; the mean is over all of them."""
    local = np.random.default_rng(1)
    logits = local.normal(scale=3, size=(*shape, 20)).astype(np.float32)
    labels = local.integers(0, 20, shape)
    targets = local.random((*shape, 20)).astype(np.float32)
    weights = local.random(shape).astype(np.float32)
    rows = [logits.reshape(-1, 20), labels.reshape(-1), targets.reshape(-1, 20)]
    for losses, of_rows in zip(
        dense_losses(logits, labels, targets), dense_losses(*rows), strict=True
    ):
        assert_close(losses, np.asarray(of_rows).reshape(shape))
        mean = jaxent.weighted_mean(losses, weights)
        assert_close(mean, np.divide(*exact(losses, weights)), ulps=64)  # a thousand terms


# --- Optax, where it says the same --------------------------------------------------------------

SOFT = rng.dirichlet(np.ones(NUM_CLASSES), LABELS.shape).astype(np.float32)
BINARY = rng.integers(0, 2, LOGITS.shape).astype(np.float32)
SAME = {
    "integer labels": (
        lambda x: jaxent.cross_entropy(x, LABELS),
        lambda x: optax.softmax_cross_entropy_with_integer_labels(x, LABELS),
    ),
    "distributions": (
        lambda x: jaxent.soft_cross_entropy(x, SOFT),
        lambda x: optax.softmax_cross_entropy(x, SOFT),
    ),
    "smooth_labels": (
        lambda x: of_softmax(LOSSES["smoothed"])(x, LABELS),
        lambda x: optax.softmax_cross_entropy(x, optax.smooth_labels(ONE_HOT, 0.1)),
    ),
    "sigmoid": (
        lambda x: jaxent.sigmoid_cross_entropy(x, BINARY),
        lambda x: optax.sigmoid_binary_cross_entropy(x, BINARY),
    ),
    "sigmoid focal": (
        lambda x: jaxent.focal(jaxent.sigmoid_stats(x, BINARY.astype(np.int32)), gamma=2.0),
        lambda x: optax.sigmoid_focal_loss(x, BINARY, gamma=2.0),
    ),
    "sigmoid focal with alpha": (
        lambda x: (
            jaxent.focal(jaxent.sigmoid_stats(x, BINARY.astype(np.int32)), gamma=1.5)
            * jaxent.class_weights(BINARY.astype(np.int32), jnp.array([0.75, 0.25]))
        ),
        lambda x: optax.sigmoid_focal_loss(x, BINARY, alpha=0.25, gamma=1.5),
    ),
    "poly1": (
        lambda x: of_softmax(LOSSES["poly1"])(x, LABELS),
        lambda x: optax.losses.poly_loss_cross_entropy(x, ONE_HOT, epsilon=2.0),
    ),
    "kl": (
        lambda x: jaxent.kl_divergence(x, SOFT),
        lambda x: optax.losses.kl_divergence(jax.nn.log_softmax(x), SOFT),
    ),
    "where": (
        lambda x: jaxent.cross_entropy(x, LABELS, where=LABELS > 2),
        lambda x: optax.softmax_cross_entropy_with_integer_labels(x, LABELS, where=LABELS > 2),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_optax_says_the_same(name):
    """On inputs that cost Optax no digits: not confident, no offset, nothing ruled out."""
    easy = np.isin(NAMES, ["flat", "mild", "nearly flat"])
    logits = np.where(easy[:, None, None, None], LOGITS, 0.5)
    ours, theirs = SAME[name]
    one = values_and_slopes(ours, logits)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        two = values_and_slopes(theirs, logits)
    np.testing.assert_allclose(one[0], two[0], rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(one[1], two[1], rtol=2e-6, atol=1e-6)


# --- long class axes, which are summed by blocks --------------------------------------------------


def everything(x, y, q, where):
    s = jaxent.softmax_stats(x, y, where=where)
    terms = jax.tree.leaves(s)
    terms += [f(x, q, where=where) for f in (jaxent.soft_cross_entropy, jaxent.kl_divergence)]
    return jnp.stack(terms, -1)


@jax.jit
def everything_and_gradient(x, y, q, where):
    values, transpose = jax.vjp(lambda x: everything(x, y, q, where), x)
    gradients = [transpose(jnp.zeros_like(values).at[:, k].set(1))[0] for k in range(6)]
    return values, jnp.stack(gradients, -1)


@pytest.mark.parametrize("classes", [2048, 2053, 2310, 50257])
def test_a_row_is_the_same_in_a_long_row_of_impossible_classes(classes):
    """In the first block, in the last, over several; ties, infinities, bad labels, dead rows."""
    local = np.random.default_rng(classes)
    inf = np.inf
    few = np.array(
        [
            *local.normal(size=(6, 5)) * np.array([1, 1, 30, 30, 1e3, 1])[:, None],
            [40, -40, 0, 3, -60],
            [88, 0, 0.1, -10, -14.3],
            [0] * 5,
            [7, 7, -3, 7, 0],
            [-inf, 2, -inf, 3, 1],
            [inf, 2, -inf, 3, 1],
            [inf, 2, inf, 3, 1],
            [3e38, -3e38, 0, 1, -inf],
            [np.finfo(np.float32).min] * 4 + [-inf],
            [np.finfo(np.float32).max] * 2 + [inf, 0, 0],
            [np.nan, 2, 1, 3, 1],
            [np.nan, 2, 1, 3, 1],
            local.normal(size=5),
            local.normal(size=5),
        ],
        np.float32,
    )
    n = len(few)
    labels = local.integers(0, 5, n).astype(np.int32)
    labels[6:9], labels[11], labels[15] = 0, 0, 2
    targets = local.dirichlet(np.ones(5), n).astype(np.float32)
    targets[::3] = np.eye(5, dtype=np.float32)[labels[::3]]
    targets[few == -inf] = 0
    where = np.ones(n, bool)
    where[-3] = False
    places = np.sort(np.stack([local.choice(classes, 5, replace=False) for _ in range(n)]))
    places[0] = range(5)
    places[1] = range(classes - 5, classes)
    places[6, [0, -1]] = 0, classes - 1
    rows = np.arange(n)[:, None]
    logits = np.full((n, classes), -inf, np.float32)
    logits[rows, places] = few
    spread = np.zeros((n, classes), np.float32)
    spread[rows, places] = targets
    long_labels = places[np.arange(n), labels].astype(np.int32)
    labels[-1], long_labels[-1] = -1, classes
    labels[-2], long_labels[-2] = 5, -100

    short = everything_and_gradient(few, labels, targets, where)
    values, gradients = everything_and_gradient(logits, long_labels, spread, where)
    values, wanted = np.array(values), np.array(short[0])
    size = 1 + np.abs(np.where(np.isfinite(few), few, 0)).max(-1)
    mean_logits, wanted_means = values[:, 2] / size, wanted[:, 2] / size  # as exact as the logits
    np.testing.assert_allclose(mean_logits, wanted_means, rtol=1e-6, atol=1e-6)
    values[:, 2] = wanted[:, 2] = 0
    np.testing.assert_allclose(values[:, :5], wanted[:, :5], rtol=3e-6, atol=1e-37)
    np.testing.assert_allclose(values[:, 5], wanted[:, 5], rtol=3e-6, atol=1e-6)  # a difference
    within = np.asarray(gradients)[rows, places]
    rounding = np.zeros_like(within)  # of Q p - q, which cancels; not where one target has all
    rounding[..., 4:] = (np.finfo(np.float32).eps * targets * (targets < 1))[..., None]
    within_limits = np.isclose(within, short[1], rtol=1e-5, atol=1e-37 + rounding, equal_nan=True)
    assert within_limits.all(), np.argwhere(~within_limits)
    live = np.isfinite(values).all(-1)
    assert live[:9].all() and np.isnan(values[-2:, 0]).all()
    elsewhere = np.asarray(gradients)[live].copy()
    elsewhere[np.arange(live.sum())[:, None], places[live]] = 0
    assert not elsewhere.any()


@pytest.mark.parametrize("classes", [3, 1000, 2048, 2053, 32000])
def test_a_nan_anywhere_in_a_row_is_nan(classes):
    """XLA:CPU's maximum of a long row, and so jnp.max, loses a NaN from JAX 0.10 on."""
    places = np.unique([0, 1, classes // 3, classes // 2, classes - 2, classes - 1])
    x = rng.normal(size=(len(places), 4, classes)).astype(np.float32)
    best = x.argmax(-1).astype(np.int32)
    x[np.arange(len(places)), :, places] = np.nan
    labels = np.broadcast_to(np.array([0, 1, classes - 1, 2], np.int32), best.shape).copy()
    labels[:, 3] = best[:, 3]
    q = np.full_like(x, 1 / classes)

    @jax.jit
    def evaluate(x):
        losses = {
            "statistics": lambda x: jnp.stack(jax.tree.leaves(jaxent.softmax_stats(x, labels))),
            "soft": lambda x: jaxent.soft_cross_entropy(x, q),
            "of one class": lambda x: jaxent.soft_cross_entropy(x, jax.nn.one_hot(labels, classes)),
            "cost": lambda x: jaxent.expected_cost(x[..., :3], labels % 3, jnp.eye(3)),
        }
        grads = {name: jax.grad(lambda x, f=f: f(x).sum())(x) for name, f in losses.items()}
        return {name: f(x) for name, f in losses.items()}, grads

    values, gradients = evaluate(x)
    cost, by_cost = values.pop("cost"), gradients.pop("cost")
    assert np.isnan(cost[:2]).all() and np.isnan(by_cost[:2, :, :3]).all()
    for name in values:
        assert np.isnan(values[name]).all(), name
        assert np.isnan(gradients[name]).all(), name
