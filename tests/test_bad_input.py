"""Hard and bad input, case by case: every answer is the true one, an error, or NaN in its own row.

The ids name rows of a survey of what cross-entropy libraries do with such input: A1.A hard logits,
A1.B masked rows, A1.C labels, A1.D shapes, A1.E soft targets, A1.F label smoothing, A1.G weights
and reductions, A1.H sigmoid, A1.I probabilities, A1.J KL divergence, A1.K focal loss; then the
options, and what is accepted. Rows that do not touch each other share one call, and batches one
shape: the time goes into compiling.
"""

import functools
import inspect
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from jaxent import weights as jw

inf, nan = math.inf, math.nan
INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
BIG = 3e38


# --- three ways to call --------------------------------------------------------------------------

HOW = {
    "eager": lambda f: f,
    "compiled": jax.jit,
    "mapped": lambda f: jax.jit(jax.vmap(f)),
}
every_way = pytest.mark.parametrize("how", HOW)


def each_way(names):
    """Losses of statistics are elementwise jnp: eager mode would compile them one op at a time."""
    pairs = [(name, how) for how in HOW for name in names if how != "eager" or "loss" not in name]
    return pytest.mark.parametrize(("name", "how"), pairs)


def array(value, dtype=None):
    """jnp.array, but nothing is compiled."""
    return jax.device_put(np.array(value, dtype))


def rows(*values):
    return array(values, np.float32)


def zeros(shape, dtype=np.float32):
    return jax.device_put(np.zeros(shape, dtype))


BATCH = 32  # and half of it: whole vectors, so that removing rows can be bitwise


@functools.cache
def with_slope(f, how):
    def both(x, *rest):
        values, pull = jax.vjp(lambda x: f(x, *rest), x)
        return values, pull(jnp.ones_like(values))[0]

    return HOW[how](both)


def value_and_slope(f, how, x, *rest):
    """f's values, one a row, and the gradient of their sum with respect to x."""

    def padded(x):
        x = np.asarray(x)
        return array(np.pad(x, [(0, BATCH - len(x))] + [(0, 0)] * (x.ndim - 1)) if x.ndim else x)

    answers = with_slope(f, how)(padded(x), *map(padded, rest))
    return tuple(np.asarray(answer)[: len(x)] for answer in answers)


def assert_close(actual, truth, rtol):
    """Relative, NaN and inf included; below 1e-37 XLA may flush to zero."""
    np.testing.assert_allclose(actual, np.asarray(truth, np.float64), rtol=rtol, atol=1e-37)


def case_ids(table, cases):
    return [pytest.param(i, id=f"{table} {case[0]}") for i, case in enumerate(cases)]


# --- A1.A: hard logits ---------------------------------------------------------------------------


def softmax(x):
    """In float64; +inf takes everything."""
    x = np.asarray(x, np.float64)
    if np.isposinf(x).any():
        return np.where(np.isposinf(x), 1.0, 0.0)
    e = np.exp(x - x.max())
    return e / e.sum()


def nll_slope(x, label):
    """p − onehot, with the label's entry −(sum of the others)."""
    p = softmax(x)
    p[label] = 0
    p[label] = -p.sum()
    return p


NAN3 = [nan] * 3

HARD_LOGITS = [
    # name, logits, label, loss, gradient (None: the float64 softmax)
    ("finite baseline", [1, 2, 0.5, -1], 1, 0.49518, None),
    ("finite baseline, second row", [0, 0, 3, 1], 2, 0.211, None),
    ("+inf at the label", [inf, 0, 1], 0, 0, [0, 0, 0]),
    ("+inf at a non-label", [inf, 0, 1], 1, inf, [1, -1, 0]),
    ("two +inf", [inf, inf, 1], 0, nan, NAN3),
    ("-inf masked class, finite label", [-inf, 2, 0], 1, 0.126928, None),
    ("-inf at the label", [-inf, 2, 0], 0, inf, None),
    ("all -inf row", [-inf, -inf, -inf], 0, nan, NAN3),
    ("NaN logit in the row", [nan, 2, 0], 1, nan, NAN3),
    ("NaN logit at the label", [nan, 2, 0], 0, nan, NAN3),
    ("logits 1e4 apart", [1e4, 0, 0], 0, 0, [0, 0, 0]),
    ("logits 1e4 apart, wrong label", [1e4, 0, 0], 1, 1e4, [1, -1, 0]),
    ("logits 1e30", [1e30, 9e29, 0], 0, 0, [0, 0, 0]),
    ("logits 3e38 (ties)", [BIG, BIG, 0], 0, math.log(2), None),
    ("logits +3e38/-3e38", [BIG, -BIG, 0], 0, 0, [0, 0, 0]),
    ("logits +3e38/-3e38, label at -3e38", [BIG, -BIG, 0], 1, inf, [1, -1, 0]),
    ("ties (all equal)", [2, 2, 2, 2], 3, math.log(4), None),
    ("shift by 1e6 (exact in f32)", [1e6, 1e6 + 1, 1e6 - 2], 1, 0.34901, None),
]


def of_width(cases, width):
    """The indices, logits and labels of the cases with so many classes."""
    chosen = [i for i, case in enumerate(cases) if len(case[1]) == width]
    logits = rows(*(cases[i][1] for i in chosen))
    return chosen, logits, array([cases[i][2] for i in chosen])


@functools.cache
def hard_logits(how):
    answers = {}
    for width in (3, 4):
        chosen, logits, labels = of_width(HARD_LOGITS, width)
        loss, slope = value_and_slope(jaxent.cross_entropy, how, logits, labels)
        answers |= dict(zip(chosen, zip(loss, slope, strict=True), strict=True))
    return answers


@every_way
@pytest.mark.parametrize("i", case_ids("A1.A", HARD_LOGITS))
def test_hard_logits(i, how):
    _, logits, label, truth, slope_truth = HARD_LOGITS[i]
    loss, slope = hard_logits(how)[i]
    assert_close(loss, truth, 2e-5)
    assert_close(slope, nll_slope(logits, label) if slope_truth is None else slope_truth, 1e-4)


@pytest.mark.parametrize("how", ["compiled", "mapped"])
def test_every_loss_at_its_neutral_option_is_the_nll_on_hard_logits(how):
    """A1.A for the whole family: what an option switches off adds no NaN either."""
    _, logits, labels = of_width(HARD_LOGITS, 3)
    neutral = {
        "smoothed_nll": lambda s: jaxent.smoothed_nll(s, label_smoothing=0.0),
        "focal": lambda s: jaxent.focal(s, gamma=0.0),
        "poly1": lambda s: jaxent.poly1(s, epsilon=0.0),
        "generalized": lambda s: jaxent.generalized_cross_entropy(s, q=0.0),
    }

    def family(x, y):
        s = jaxent.softmax_stats(x, y)
        return jnp.stack([jaxent.nll(s), *(loss(s) for loss in neutral.values())], -1)

    def jacobian(x, y):
        losses, pull = jax.vjp(lambda x: family(x, y), x)
        units = jnp.eye(losses.shape[-1])
        return losses, jnp.stack([pull(jnp.broadcast_to(u, losses.shape))[0] for u in units], -1)

    losses, slopes = HOW[how](jacobian)(logits, labels)
    for k, name in enumerate(neutral, 1):
        np.testing.assert_allclose(losses[..., k], losses[..., 0], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(slopes[..., k], slopes[..., 0], rtol=1e-5, err_msg=name)


@every_way
def test_expected_cost_on_hard_logits(how):
    """A1.A: with M = 1 − I the cost is 1 − p_y, on every row that has probabilities."""
    _, logits, labels = of_width(HARD_LOGITS, 3)
    mistakes = 1 - np.eye(3)
    cost, slope = value_and_slope(
        lambda x, y: jaxent.expected_cost(x, y, mistakes), how, logits, labels
    )
    for i, row_cost, row_slope in zip(of_width(HARD_LOGITS, 3)[0], cost, slope, strict=True):
        name, row, label, loss, _ = HARD_LOGITS[i]
        if np.isnan(loss):
            assert np.isnan([row_cost, *row_slope]).all(), name
        else:
            assert_close(row_cost, -nll_slope(row, label)[label], 1e-5)
            assert np.isfinite(row_slope).all(), name


# --- A1.B: masked rows ---------------------------------------------------------------------------

POISON = {
    "row of NaN": ([nan, nan, nan], 0),
    "row of +inf/-inf/NaN": ([inf, -inf, nan], 0),
    "all -inf row": ([-inf, -inf, -inf], 0),
    "all +inf row": ([inf, inf, inf], 0),
    "huge row": ([BIG, -BIG, BIG], 1),
    "-inf at the label": ([-inf, 1.0, 1.0], 0),
    "label -1": ([1.0, 2.0, 0.5], -1),
    "label -100": ([1.0, 2.0, 0.5], -100),
    "label 3": ([1.0, 2.0, 0.5], 3),
    "label INT_MIN in a row of NaN": ([nan, nan, nan], INT_MIN),
    "label INT_MAX in a row of inf": ([inf, inf, inf], INT_MAX),
    "label -1 in a huge row": ([BIG, BIG, BIG], -1),
    "label 3 in an all -inf row": ([-inf, -inf, -inf], 3),
    "NaN at the label": ([nan, 1.0, 1.0], 0),
    "one +inf, label elsewhere": ([inf, 0.0, 1.0], 1),
    "label 2^30": ([0.0, 0.0, 0.0], 2**30),
}
assert len(POISON) == BATCH // 2
GOOD = ([1.0, 2.0, 0.5], 1)
# Rows 0, 2, 4, … are good and live, rows 1, 3, 5, … are poisoned and masked out.
MASK = np.array([True, False] * len(POISON))
MASKED_X = np.array([r for bad, _ in POISON.values() for r in (GOOD[0], bad)], np.float32)
MASKED_X[::2] += np.arange(len(POISON), dtype=np.float32)[:, None] * [0.25, 0.5, 1]
MASKED_Y = np.array([y for _, bad in POISON.values() for y in (GOOD[1], bad)], np.int32)
SOFT_POISON = np.resize(np.float32([nan, inf, -inf, -1.0, 1e38, 0.0, 7.0]), (len(POISON), 3))
MASKED_Q = np.stack([np.tile(np.float32([0.2, 0.5, 0.3]), (len(POISON), 1)), SOFT_POISON], 1)
MASKED_Q = MASKED_Q.reshape(-1, 3)
TABLE = np.float32([1.0, 2.0, 4.0])
COSTS = np.float32([[0, 1, 5], [2, 0, 1], [3, 4, 0]])


def stats_fields(s):
    return jnp.stack([s.nll, s.log_normalizer, s.mean_logit, s.mean_nll], -1)


def all_losses(s):
    return jnp.stack(
        [
            jaxent.nll(s),
            jaxent.smoothed_nll(s, label_smoothing=0.1),
            jaxent.z_loss(s),
            jaxent.focal(s, gamma=2.0),
            jaxent.focal(s, gamma=0.5),
            jaxent.poly1(s, epsilon=2.0),
            jaxent.generalized_cross_entropy(s, q=0.7),
        ],
        -1,
    )


def wide(where, x):
    return jnp.broadcast_to(where[..., None], x.shape)


# Every public function with ``where``, of logits, labels, targets and mask.
MASKED = {
    "softmax_stats": lambda x, y, q, where: stats_fields(jaxent.softmax_stats(x, y, where=where)),
    "losses of softmax_stats": lambda x, y, q, where: all_losses(
        jaxent.softmax_stats(x, y, where=where)
    ),
    "cross_entropy": lambda x, y, q, where: jaxent.cross_entropy(x, y, where=where),
    "soft_cross_entropy": lambda x, y, q, where: jaxent.soft_cross_entropy(x, q, where=where),
    "kl_divergence": lambda x, y, q, where: jaxent.kl_divergence(x, q, where=where),
    "sigmoid_cross_entropy": lambda x, y, q, where: jaxent.sigmoid_cross_entropy(
        x, q, pos_weight=3.0, where=wide(where, x)
    ),
    "sigmoid_stats": lambda x, y, q, where: stats_fields(
        jaxent.sigmoid_stats(x, jnp.broadcast_to(y[..., None], x.shape), where=wide(where, x))
    ),
    "expected_cost": lambda x, y, q, where: jaxent.expected_cost(x, y, COSTS, where=where),
    "class_weights": lambda x, y, q, where: jaxent.class_weights(y, TABLE, where=where),
    "cost_weights": lambda x, y, q, where: jaxent.cost_weights(y, y, COSTS, where=where),
}
# not one number a row: its own test below; and test_linear.py
TESTED_ELSEWHERE = {"counts", "linear_stats", "linear_cross_entropy"}


def test_every_public_function_with_where_is_in_the_table():
    public = {n: f for m in (jaxent, jw) for n, f in vars(m).items() if inspect.isfunction(f)}
    public = {n: f for n, f in public.items() if n in vars(jaxent) or f.__module__ == jw.__name__}
    masked = {name for name, f in public.items() if "where" in inspect.signature(f).parameters}
    assert masked == (set(MASKED) | TESTED_ELSEWHERE) - {"losses of softmax_stats"}


def harmless(x):
    x = x.copy()
    x[~MASK] = x[MASK]
    return x


BATCHES = {
    "poisoned": (MASKED_X, MASKED_Y, MASKED_Q, MASK),
    "harmless": (harmless(MASKED_X), harmless(MASKED_Y), harmless(MASKED_Q), MASK),
    "removed": (MASKED_X[MASK], MASKED_Y[MASK], MASKED_Q[MASK], MASK[MASK]),
}


@functools.cache
def masked_functions(how):
    def answers(x, y, q, where):
        """For each function its values and their gradients in logits and targets."""
        found = {}
        for name, f in MASKED.items():
            if how == "eager" and "loss" in name:
                continue
            values, pull = jax.vjp(lambda x, q, f=f: f(x, y, q, where), x, q)
            found[name] = (values, *pull(jnp.ones_like(values)))
        return found

    return HOW[how](answers)


@functools.cache
def masked_answers(how, batch):
    answers = masked_functions(how)(*map(jnp.asarray, BATCHES[batch]))
    return jax.tree.map(np.asarray, answers)


@each_way(MASKED)
def test_masked_row_is_inert_whatever_it_holds(name, how):
    """A1.B: exact zeros there; bitwise as with harmless rows in the masked places elsewhere."""
    for dirty, clean in zip(
        masked_answers(how, "poisoned")[name], masked_answers(how, "harmless")[name], strict=True
    ):
        assert (dirty[~MASK] == 0).all()
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(dirty, clean)


@pytest.mark.parametrize("name", MASKED)
def test_masked_row_is_as_if_removed(name):
    """A1.B: bitwise the values and gradients of the batch without those rows."""
    for whole, removed in zip(
        masked_answers("compiled", "poisoned")[name],
        masked_answers("compiled", "removed")[name],
        strict=True,
    ):
        np.testing.assert_array_equal(whole[MASK], removed)


def test_masked_rows_add_nothing_to_shared_gradients():
    """A1.B: nor to the gradient of a cost matrix, of a pos_weight, or of class weights."""
    x, y, q, mask = BATCHES["poisoned"]
    wide = np.broadcast_to(mask[:, None], x.shape)

    def total(shared, x, y, q, mask, wide):
        costs, pos_weight, table = shared
        return (
            jaxent.expected_cost(x, y, costs, where=mask).sum()
            + jaxent.sigmoid_cross_entropy(x, q, pos_weight=pos_weight, where=wide).sum()
            + (
                jaxent.class_weights(y, table, where=mask) * jaxent.cross_entropy(x, y, where=mask)
            ).sum()
        )

    shared = jax.tree.map(jnp.asarray, (COSTS, TABLE, TABLE))
    slope = jax.jit(jax.grad(total))
    whole = slope(shared, x, y, q, mask, wide)
    kept = slope(shared, x[MASK], y[MASK], q[MASK], mask[MASK], wide[MASK])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, kept)


def test_all_rows_masked():
    """A1.G: all samples ignored: loss 0 and gradient 0, not 0 / 0."""

    def loss(x, y, where):
        return jaxent.weighted_mean(jaxent.cross_entropy(x, y, where=where), where)

    x, y = MASKED_X[~MASK], MASKED_Y[~MASK]
    value, slope = jax.jit(jax.value_and_grad(loss))(x, y, zeros(y.shape, bool))
    assert value == 0
    assert (slope == 0).all()


def test_multiply_idiom():
    """A1.B: weight 0 drops any loss from the value; a bad row's *gradient* takes ``where=``."""
    x = rows([1, 2, 0.5], [nan, nan, nan], [-inf, 1, 1])
    y = array([1, 0, 0])

    def by_weight(x):
        return jaxent.weighted_mean(jaxent.cross_entropy(x, y), rows(1, 0, 0))

    def by_where(x):
        where = array([True, False, False])
        return jaxent.weighted_mean(jaxent.cross_entropy(x, y, where=where), where)

    for loss in (by_weight, by_where):
        value, slope = jax.jit(jax.value_and_grad(loss))(x)
        assert_close([value, loss(x)], 0.46437, 2e-5)
        assert_close(slope[0], nll_slope([1, 2, 0.5], 1), 1e-4)
        assert (slope[2] == 0).all()  # −inf at the label: the loss is inf, its gradient is finite
    assert (slope[1] == 0).all()


def test_masked_labels_are_not_counted():
    """A1.B for ``counts``."""
    found = jw.counts(jnp.asarray(MASKED_Y), 3, where=jnp.asarray(MASK))
    np.testing.assert_array_equal(found, np.bincount(MASKED_Y[MASK], minlength=3))


# --- A1.C: labels --------------------------------------------------------------------------------

NARROW = {
    "int8": ([100, 120], [2.7655, 5.7655]),
    "int16": ([100, 200], [2.7655, 2.7655]),
    "int32": ([100, 200], [2.7655, 2.7655]),
    "uint8": ([100, 200], [2.7655, 2.7655]),
    "uint16": ([100, 200], [2.7655, 2.7655]),
    "uint32": ([100, 200], [2.7655, 2.7655]),
}
WIDE = {"int64": NARROW["int32"], "uint64": NARROW["int32"]}
TABLE_300 = np.arange(300, dtype=np.float32)
COSTS_300 = TABLE_300[:, None] + 300 * TABLE_300
LOGITS_300 = np.float32(3 * (np.arange(300) == np.array([[100], [200]])))


def of_300_classes(y):
    x = jnp.asarray(LOGITS_300)
    return {
        "loss": jaxent.cross_entropy(x, y),
        "expected_cost": jaxent.expected_cost(0 * x, y, COSTS_300),
        "class_weights": jaxent.class_weights(y, TABLE_300),
        "cost_weights": jaxent.cost_weights(y, y[::-1], COSTS_300),
        "counts": jw.counts(y, 300),
        "sigmoid": jaxent.sigmoid_stats(x[:, 100], y - y[0]).nll,
    }


@functools.cache
def label_dtypes(x64):
    with jax.enable_x64(x64):
        labels = {dtype: array(y, dtype) for dtype, (y, _) in (WIDE if x64 else NARROW).items()}
        assert all(y.dtype == dtype for dtype, y in labels.items())
        answers = jax.jit(lambda labels: {d: of_300_classes(y) for d, y in labels.items()})(labels)
        return jax.tree.map(np.asarray, answers)


@pytest.mark.parametrize("dtype", [pytest.param(d, id=f"A1.C labels {d}") for d in NARROW | WIDE])
def test_label_dtypes_with_300_classes(dtype):
    """Widened before any comparison: 300 wraps to 44 in int8."""
    y, truth = (NARROW | WIDE)[dtype]
    got = label_dtypes(dtype in WIDE)[dtype]
    assert_close(got["loss"], truth, 2e-5)
    assert_close(got["expected_cost"], COSTS_300.mean(-1)[y], 1e-5)
    assert_close(got["class_weights"], y, 0)
    assert_close(got["cost_weights"], COSTS_300[y, y[::-1]], 0)
    assert_close(got["counts"], np.bincount(y, minlength=300), 0)
    assert_close(got["sigmoid"], [3.048587, nan], 1e-5)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_narrow_labels_eagerly(dtype):
    """A1.C labels int8 and uint8, V=300; uint8 [0, 2], V=4."""
    y, truth = NARROW[dtype]
    labels = array(y, dtype)
    assert_close(jaxent.cross_entropy(jnp.asarray(LOGITS_300), labels), truth, 2e-5)
    assert_close(jaxent.class_weights(labels, TABLE_300), y, 0)
    x = rows([1, 2, 0.5, -1], [0, 0, 3, 1])
    assert_close(jaxent.cross_entropy(x, array([0, 2], dtype)), [1.4952, 0.211], 2e-5)


BAD_LABELS = [-1, -4, 4, 5, -100, INT_MAX, INT_MIN]
BAD_Y = np.array([y for bad in BAD_LABELS for y in (bad, 2)], np.int32)
BAD_Y = np.pad(BAD_Y, (0, BATCH - len(BAD_Y)), constant_values=2)
BAD = BAD_Y != 2
BAD_X = np.float32([[1, 2, 0.5, -1], [0, 0, 3, 1]] * (BATCH // 2))
SQUARE = np.arange(16, dtype=np.float32).reshape(4, 4)

LABELLED = {
    "cross_entropy": jaxent.cross_entropy,
    "softmax_stats": lambda x, y: stats_fields(jaxent.softmax_stats(x, y)),
    "losses of softmax_stats": lambda x, y: all_losses(jaxent.softmax_stats(x, y)),
    "all smoothing": lambda x, y: jaxent.smoothed_nll(
        jaxent.softmax_stats(x, y), label_smoothing=1.0
    ),
    "expected_cost": lambda x, y: jaxent.expected_cost(x, y, SQUARE),
    "losses of sigmoid_stats": lambda x, y: all_losses(
        jaxent.sigmoid_stats(x[..., 0], jnp.where(y == 2, 1, y))
    ),
    "class_weights": lambda x, y: jaxent.class_weights(y, SQUARE[0]),
    "cost_weights of labels": lambda x, y: jaxent.cost_weights(y, 0 * y, SQUARE),
    "cost_weights of predictions": lambda x, y: jaxent.cost_weights(0 * y, y, SQUARE),
}


@functools.cache
def bad_labels(how):
    """Values and the gradient of their sum for each function, with bad labels and without."""

    def answers(x, y):
        found = {}
        for name, f in LABELLED.items():
            if how == "eager" and "loss" in name:
                continue
            values, pull = jax.vjp(lambda x, f=f: f(x, y), x)
            found[name] = values, pull(jnp.ones_like(values))[0]
        return found

    run = HOW[how](answers)
    batches = (jnp.asarray(BAD_Y), jnp.asarray(np.where(BAD, 0, BAD_Y)))
    return [jax.tree.map(np.asarray, run(jnp.asarray(BAD_X), y)) for y in batches]


@every_way
@pytest.mark.parametrize("i", case_ids("A1.C", [(f"label {y}",) for y in BAD_LABELS]))
def test_bad_label_poisons_its_own_row(i, how):
    """The loss and the whole gradient; optax has −1 as the last class and a finite gradient."""
    (loss, slope), (clean_loss, clean_slope) = (a["cross_entropy"] for a in bad_labels(how))
    assert np.isnan(loss[2 * i])
    assert np.isnan(slope[2 * i]).all()
    np.testing.assert_array_equal(loss[2 * i + 1], clean_loss[2 * i + 1])
    np.testing.assert_array_equal(slope[2 * i + 1], clean_slope[2 * i + 1])


@each_way(list(LABELLED)[1:])
def test_bad_label_poisons_its_own_row_in(name, how):
    """A1.C for everything that takes labels."""
    (value, slope), (clean_value, clean_slope) = (a[name] for a in bad_labels(how))
    assert np.isnan(value[BAD]).all()
    np.testing.assert_array_equal(value[~BAD], clean_value[~BAD])
    np.testing.assert_array_equal(slope[~BAD], clean_slope[~BAD])
    if "weights" not in name:
        assert np.isnan(slope[BAD][:, : 1 if "sigmoid" in name else None]).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("logits_dtype", ["bfloat16", "float16"])
def test_bad_label_of_narrow_dtypes(dtype, logits_dtype):
    """A1.C: −1 (255 unsigned) is no class of 4; the gradient of 16-bit logits is NaN too."""
    x = zeros((3, 4), logits_dtype)
    y = array([1, -1 % 256 if dtype == "uint8" else -1, 2], dtype)
    loss, slope = value_and_slope(jaxent.cross_entropy, "compiled", x, y)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
    np.testing.assert_array_equal(np.isnan(slope), np.tile([[False], [True], [False]], 4))


def test_bad_label_under_scan_and_grad():
    """A1.C label -1, -100 and 4, in a scan over examples, differentiated."""
    x, y = zeros((4, 4)), array([-1, 2, -100, 4])

    def total(x):
        def step(carry, xy):
            loss = jaxent.cross_entropy(*xy)
            return carry, loss

        return jax.lax.scan(step, 0.0, (x, y))[1]

    loss, pull = jax.vjp(total, x)
    slope = pull(rows(1, 1, 1, 1))[0]
    np.testing.assert_array_equal(np.isnan(loss), [True, False, True, True])
    np.testing.assert_array_equal(np.isnan(slope).all(-1), [True, False, True, True])
    assert_close(slope[1], nll_slope([0, 0, 0, 0], 2), 1e-6)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
@pytest.mark.parametrize("x64", [False, True])
def test_64_bit_labels_do_not_wrap(dtype, x64):
    """A1.C: 2^32 is no class 0, whether JAX has 64-bit integers or narrows NumPy's."""
    with jax.enable_x64(x64):
        y = np.array([2**32, 1], dtype)
        x = zeros((2, 3), jnp.float32)
        bad = jax.jit(
            lambda: {
                "cross_entropy": jaxent.cross_entropy(x, y),
                "expected_cost": jaxent.expected_cost(x, y, COSTS),
                "class_weights": jaxent.class_weights(y, TABLE),
                "cost_weights": jaxent.cost_weights(y, np.ones_like(y), COSTS),
                "sigmoid_stats": jaxent.sigmoid_stats(x[:, 0], y).nll,
            }
        )()
        for name, values in bad.items():
            np.testing.assert_array_equal(np.isnan(values), [True, False], err_msg=name)
        with pytest.raises(ValueError, match=r"labels must be in \[0, 3\); 1 of 2 are not"):
            jw.counts(y, 3)


def test_bad_labels_are_not_counted_in_silence():
    """A1.C for ``counts``: an error, or −1 everywhere and NaN from every recipe where traced."""
    labels = array([0, 2, -100, 5])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\); 2 of 4 .*-100.*where="):
        jw.counts(labels, 3)
    with pytest.raises(ValueError, match="labels must be in"):
        jax.jit(lambda: jw.counts(labels, 3))()

    @jax.jit
    def tables(labels):
        n = jw.counts(labels, 3)
        return n, jw.balanced(n), jw.inverse_frequency(n), jw.log_ratio(n), jw.log_prior(n)

    n, *recipes = tables(labels)
    np.testing.assert_array_equal(n, [-1, -1, -1])
    assert np.isnan(recipes).all()
    good = jw.counts(labels, 3, where=array([True, True, False, False]))
    np.testing.assert_array_equal(good, [1, 0, 1])


# --- A1.D: shapes and dtypes that must raise -----------------------------------------------------

X3 = rows([1, 2, 0], [0, 0, 3], [1, 1, 1])
Y3 = array([1, 2, 0])
W3 = rows(1, 2, 3)
Z3 = rows(1, 0, 1)
X34 = zeros((3, 4))
X234 = zeros((2, 3, 4))
ONEHOT = array(np.eye(3, dtype=np.float32)[[1, 2, 0]])


def bce(x, z):
    return jaxent.sigmoid_cross_entropy(x, z)


def weighted(reduce):
    return lambda losses, weights: reduce(losses, weights)


def masked(x, y, where):
    return jaxent.cross_entropy(x, y, where=where)


ce, soft = jaxent.cross_entropy, jaxent.soft_cross_entropy
NO_BROADCAST = "Nothing is broadcast"

MUST_RAISE = [
    # id, function, arguments, error, what its message holds
    ("int: logits [3,3], labels [3,1]", ce, (X3, Y3[:, None]), ValueError,
     ["labels must", "[3];", "int32[3, 1]", "float32[3, 3]", "labels[..., 0]"]),
    ("int: logits [3,3], labels [1,3]", ce, (X3, Y3[None]), ValueError,
     ["labels must", "[3];", "int32[1, 3]", "float32[3, 3]", "labels[0]"]),
    ("int: logits [3,3], labels [1]", ce, (X3, Y3[:1]), ValueError,
     ["labels must", "[3];", "int32[1]", "float32[3, 3]", "broadcast_to(labels, [3])"]),
    ("int: logits [3,3], labels scalar", ce, (X3, Y3[0]), ValueError,
     ["labels must", "[3];", "int32[]", "float32[3, 3]", "broadcast_to(labels, [3])"]),
    ("int: logits [3,3], labels [2]", ce, (X3, Y3[:2]), ValueError,
     ["labels must", "[3];", "int32[2]", "float32[3, 3]", NO_BROADCAST]),
    ("int: one-hot int [3,3]", ce, (X3, ONEHOT.astype(jnp.int32)), ValueError,
     ["labels must", "int32[3, 3]", "float32[3, 3]", "argmax(labels, -1)", "soft_cross_entropy"]),
    ("int: one-hot float [3,3]", ce, (X3, ONEHOT), TypeError,
     ["labels must be integer", "float32[3, 3]", "argmax(labels, -1)", "soft_cross_entropy"]),
    ("int: one-hot bool [3,3]", ce, (X3, ONEHOT > 0), TypeError,
     ["labels must be integer", "bool[3, 3]", "argmax(labels, -1)"]),
    ("int: logits [2,3,4], labels [2,1]", ce, (X234, zeros((2, 1), jnp.int32)), ValueError,
     ["labels must", "[2, 3];", "int32[2, 1]", "float32[2, 3, 4]", NO_BROADCAST]),
    ("int: logits [2,3,4], labels [6]", ce, (X234, zeros(6, jnp.int32)), ValueError,
     ["labels must", "int32[6]", "jnp.reshape(labels, [2, 3])"]),
    ("int: logits [2,3,4], labels [3,2]", ce, (X234, zeros((3, 2), jnp.int32)), ValueError,
     ["labels must", "int32[3, 2]", "labels.T"]),
    ("class axis=1, logits [2,4,3]", ce, (zeros((2, 4, 3)), zeros((2, 3), jnp.int32)),
     ValueError, ["labels must", "[2, 4];", "int32[2, 3]", "moveaxis(logits, 1, -1)"]),
    ("labels float32 [1., 2.]", ce, (X3, rows(1, 2, 0)), TypeError,
     ["labels must be integer", "float32[3]", "astype(jnp.int32)", "soft_cross_entropy"]),
    ("labels bool, V=2", ce, (zeros((2, 2)), array([True, False])), TypeError,
     ["labels must be integer", "bool[2]", "astype(jnp.int32)", "sigmoid_cross_entropy"]),
    ("integer logits (int32)", ce, (zeros((3, 3), jnp.int32), Y3), TypeError,
     ["logits must be floating", "int32[3, 3]", "(logits, labels)", "astype(jnp.float32)"]),
    ("swapped arguments", ce, (Y3, X3), TypeError,
     ["logits must be floating", "int32[3]", "(logits, labels)"]),
    ("complex logits", ce, (X3.astype(jnp.complex64), Y3), TypeError,
     ["logits must be floating", "complex64[3, 3]"]),
    ("V=0", ce, (X3[:, :0], Y3), ValueError, ["logits must", "num_classes", "float32[3, 0]"]),
    ("logits rank 0", ce, (X3[0, 0], Y3[0]), ValueError,
     ["logits must", "num_classes", "float32[]", "sigmoid_cross_entropy"]),
    ("soft: logits [3,3], labels [3] (broadcast)", soft, (X3, W3), ValueError,
     ["targets must", "[3, 3];", "float32[3]", "broadcast_to(targets, [3, 3])"]),
    ("soft: logits [3,3], labels [3,1]", soft, (X3, W3[:, None]), ValueError,
     ["targets must", "[3, 3];", "float32[3, 1]", "broadcast_to(targets, [3, 3])"]),
    ("soft: logits [3], labels [3,3]", soft, (X3[0], X3), ValueError,
     ["targets must", "[3];", "float32[3, 3]", NO_BROADCAST]),
    ("soft: integer labels", soft, (X34, Y3), ValueError,
     ["targets must", "[3, 4];", "int32[3]", "cross_entropy(logits, labels)"]),
    ("soft: integer logits", soft, (Y3, X3), TypeError, ["logits must be floating", "int32[3]"]),
    ("soft: complex targets", soft, (X3, X3.astype(jnp.complex64)), TypeError,
     ["targets must be real", "complex64[3, 3]"]),
    ("kl: logits [3,3], targets [3]", jaxent.kl_divergence, (X3, W3), ValueError,
     ["targets must", "[3, 3];", "float32[3]"]),
    ("bce: logits [3,1], labels [3] -> [3,3]", bce, (W3[:, None], Z3), ValueError,
     ["targets must", "[3, 1];", "float32[3]", "targets[..., None]"]),
    ("bce: logits [3], labels [3,1] -> [3,3]", bce, (W3, Z3[:, None]), ValueError,
     ["targets must", "[3];", "float32[3, 1]", "targets[..., 0]"]),
    ("bce: logits [3,4], labels [4]", bce, (X34, X34[0]), ValueError,
     ["targets must", "[3, 4];", "float32[4]", "broadcast_to(targets, [3, 4])"]),
    ("bce: integer logits", bce, (Y3, Z3), TypeError,
     ["logits must be floating", "int32[3]", "(logits, targets)"]),
    ("bce: pos_weight [3], logits [3,4]",
     lambda x, w: jaxent.sigmoid_cross_entropy(x, x, pos_weight=w), (X34, W3), ValueError,
     ["pos_weight must", "[3, 4]", "float32[3]"]),
    ("sigmoid_stats: labels float", jaxent.sigmoid_stats, (W3, Z3), TypeError,
     ["labels must be 0 or 1", "float32[3]", "sigmoid_cross_entropy"]),
    ("sigmoid_stats: labels [3], logits [3,4]", jaxent.sigmoid_stats, (X34, Y3), ValueError,
     ["labels must", "[3, 4]", "int32[3]", NO_BROADCAST]),
    *[
        (f"weights [3,1] with losses [3], {reduce.__name__}", weighted(reduce),
         (W3, W3[:, None]), ValueError,
         ["weights must", "[3];", "float32[3, 1]", "weights[..., 0]"])
        for reduce in (
            jaxent.weighted_sum, jaxent.weighted_mean, jaxent.nonzero_mean, jaxent.plain_mean
        )
    ],
    ("weights [2] with losses [3]", jaxent.weighted_mean, (W3, W3[:2]), ValueError,
     ["weights must", "[3];", "float32[2]", "class_weights(labels, table)"]),
    ("weights [2] with losses [2,3]", jaxent.weighted_mean, (X234[..., 0], W3[:2]), ValueError,
     ["weights must", "[2, 3];", "float32[2]", "broadcast_to(weights[..., None], [2, 3])"]),
    ("weights scalar with losses [3]", jaxent.weighted_mean, (W3, W3[0]), ValueError,
     ["weights must", "[3];", "float32[]", "broadcast_to(weights, [3])"]),
    ("weights complex", jaxent.weighted_mean, (W3, W3.astype(jnp.complex64)), TypeError,
     ["weights must be real", "complex64[3]"]),
    ("losses integer", jaxent.weighted_mean, (Y3, W3), TypeError,
     ["losses must be floating", "int32[3]", "(losses, weights)"]),
    ("where float", masked, (X3, Y3, W3), TypeError,
     ["where must be boolean", "float32[3]", "where != 0", "weights"]),
    ("where [3,3]: classes", masked, (X3, Y3, X3 > 0), ValueError,
     ["where must", "[3];", "bool[3, 3]", "jnp.where(mask, logits, -jnp.inf)"]),
    ("where [3,1]", masked, (X3, Y3, Y3[:, None] > 0), ValueError,
     ["where must", "[3];", "bool[3, 1]", "where[..., 0]"]),
    ("where scalar", masked, (X3, Y3, Y3[0] > 0), ValueError,
     ["where must", "[3];", "bool[]", "broadcast_to(where, [3])"]),
    ("table [3,3]", jaxent.class_weights, (Y3, X3), ValueError,
     ["table must", "[classes]", "float32[3, 3]"]),
    ("table empty", jaxent.class_weights, (Y3, W3[:0]), ValueError,
     ["table must", "at least one class", "float32[0]"]),
    ("table and labels swapped", jaxent.class_weights, (W3, Y3), TypeError,
     ["labels must be integer", "float32[3]"]),
    ("cost matrix [3,4]", jaxent.expected_cost, (X3, Y3, X34), ValueError,
     ["cost_matrix must", "[3, 3]", "float32[3, 4]"]),
    ("cost matrix of 3 classes, logits of 4", jaxent.expected_cost, (X34, Y3, X3), ValueError,
     ["cost_matrix must", "[4, 4]", "float32[3, 3]"]),
    ("cost matrix [3]", jaxent.expected_cost, (X3, Y3, W3), ValueError,
     ["cost_matrix must", "[num_classes, num_classes]", "row = true class", "float32[3]"]),
    ("cost_weights: predictions [2]", jaxent.cost_weights, (Y3, Y3[:2], X3), ValueError,
     ["predictions must", "[3]", "int32[2]"]),
    ("cost_weights: logits for predictions", jaxent.cost_weights, (Y3, X3, X3), TypeError,
     ["predictions must be integer", "float32[3, 3]", "argmax(scores, -1)"]),
    ("counts: float labels", lambda y: jw.counts(y, 3), (W3,), TypeError,
     ["labels must be integer", "float32[3]"]),
    ("counts: where [2]", lambda y, w: jw.counts(y, 3, where=w), (Y3, Y3[:2] > 0), ValueError,
     ["where must", "[3];", "bool[2]"]),
    ("recipe of counts [3,4]", jw.balanced, (X34,), ValueError,
     ["counts must", "[classes]", "float32[3, 4]"]),
    ("positive of two shapes", jw.positive, (W3, W3[:2]), ValueError,
     ["num_negative and num_positive", "float32[3]", "float32[2]"]),
]  # fmt: skip


def assert_raises(error, holding, call):
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    assert [part for part in holding if part not in str(raised.value)] == [], str(raised.value)


@pytest.fixture
def _chex_disabled():
    chex.disable_asserts()
    yield
    chex.enable_asserts()


must_raise = pytest.mark.parametrize(
    ("f", "args", "error", "holding"),
    [pytest.param(*case[1:], id=f"A1.D {case[0]}") for case in MUST_RAISE],
)


@must_raise
def test_must_raise(f, args, error, holding):
    """At the call, and while tracing."""
    assert_raises(error, holding, lambda: f(*args))
    assert_raises(error, holding, lambda: jax.eval_shape(f, *args))


@must_raise
@pytest.mark.usefixtures("_chex_disabled")
def test_must_raise_without_chex_asserts(f, args, error, holding):
    assert_raises(error, holding, lambda: f(*args))


def test_must_raise_under_vmap():
    """Inside vmap the shapes are the example's."""
    with pytest.raises(ValueError, match=r"got int32\[1\]"):
        jax.vmap(jaxent.cross_entropy)(X3, Y3[:, None])


NOT_ARRAYS = [
    ("labels None", lambda: ce(X3, None), "labels must be an array of numbers; got NoneType"),
    ("labels str", lambda: ce(X3, "xyz"), "labels must be an array of numbers; got str"),
    (
        "labels ragged",
        lambda: ce(X3, [[1], [2, 0]]),
        "labels must be an array of numbers; got list",
    ),
    (
        "labels objects",
        lambda: ce(X3, np.array([1, None, 2], object)),
        r"labels must be an array of numbers; got object\[3\]",
    ),
    (
        "labels too large for int32 in a list",
        lambda: ce(X3, [2**40, 0, 1]),
        "labels must be an array of numbers; got list",
    ),
    ("logits None", lambda: ce(None, Y3), "logits must be an array of numbers; got NoneType"),
    ("logits dict", lambda: ce({}, Y3), "logits must be an array of numbers; got dict"),
    (
        "losses WeightedSum",
        lambda: jaxent.weighted_mean(jaxent.weighted_sum(W3)),
        "losses must be an array of numbers; got WeightedSum",
    ),
    (
        "weights a reduction string",
        lambda: jaxent.weighted_mean(W3, "mean"),
        "weights must be an array of numbers; got str",
    ),
    ("gamma None", lambda: focal(None), "gamma must be an array of numbers; got NoneType"),
    ("gamma bool", lambda: focal(True), r"gamma must be a real number; got bool\[\]"),
    ("counts dict", lambda: jw.balanced({0: 1}), "counts must be an array of numbers; got dict"),
]


def focal(gamma):
    return jaxent.focal(jaxent.softmax_stats(X3, Y3), gamma=gamma)


@pytest.mark.parametrize(
    ("call", "message"), [pytest.param(*case[1:], id=f"A1.D {case[0]}") for case in NOT_ARRAYS]
)
def test_what_is_no_array_raises(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_64_bit_numbers_do_not_wrap():
    """A1.D: NumPy's integers above int32, which jnp.asarray would wrap to negative ones."""
    with pytest.raises(ValueError, match=r"weights must fit 32-bit.*int64\[2\] holding 4294967296"):
        jaxent.weighted_sum(rows(1, 1), np.array([2**32, 1]))
    n = [3_000_000_000, 1_000_000_000]
    assert_close(jw.balanced(np.array(n)), [2 / 3, 2], 1e-6)
    assert_close(jw.balanced(n), [2 / 3, 2], 1e-6)
    assert_close(jw.positive(*n), 3, 1e-6)


# --- A1.D: shapes that are fine ------------------------------------------------------------------


def test_empty_batch():
    """A1.D empty batch N=0, per-example and mean: [] and 0, gradient included."""
    x, y, q = zeros((0, 3)), zeros(0, jnp.int32), zeros((0, 3))
    losses = {
        "cross_entropy": lambda x: jaxent.cross_entropy(x, y),
        "every loss": lambda x: all_losses(jaxent.softmax_stats(x, y)),
        "soft": lambda x: jaxent.soft_cross_entropy(x, q),
        "kl": lambda x: jaxent.kl_divergence(x, q),
        "sigmoid": lambda x: jaxent.sigmoid_cross_entropy(x, q),
        "expected_cost": lambda x: jaxent.expected_cost(x, y, COSTS),
    }
    reducers = (jaxent.weighted_mean, jaxent.nonzero_mean, jaxent.plain_mean)

    @jax.jit
    def answers(x):
        per_example = {name: f(x) for name, f in losses.items()}
        means = [
            jax.value_and_grad(lambda x, f=f, r=r: r(f(x)))(x)
            for f in losses.values()
            for r in reducers
        ]
        weights = jaxent.class_weights(y, TABLE), jaxent.cost_weights(y, y, COSTS)
        return per_example, means, weights, jw.counts(y, 3)

    per_example, means, weights, n = answers(x)
    assert {name: v.shape[0] for name, v in per_example.items()} == dict.fromkeys(losses, 0)
    assert all(value == 0 and slope.shape == x.shape for value, slope in means)
    assert [w.shape for w in weights] == [(0,), (0,)]
    np.testing.assert_array_equal(n, [0, 0, 0])
    for reduce in reducers:
        assert reduce(zeros(0)) == 0
        assert reduce(zeros(0), zeros(0)) == 0


@pytest.mark.parametrize("how", ["compiled", "mapped"])
def test_one_class(how):
    """A1.D V=1: loss 0, gradient 0."""
    x = rows([5], [0], [-BIG])
    for f, rest in (
        (jaxent.cross_entropy, zeros(3, jnp.int32)),
        (jaxent.soft_cross_entropy, rows([1], [1], [1])),
    ):
        loss, slope = value_and_slope(f, how, x, rest)
        assert_close(loss, [0, 0, 0], 0)
        assert_close(slope, [[0], [0], [0]], 0)


def test_rank_1():
    """A1.D logits rank 1, label scalar."""
    loss, slope = jax.value_and_grad(jaxent.cross_entropy)(rows(1, 2, 0.5, -1), 1)
    assert loss.shape == ()
    assert_close(loss, 0.49518, 2e-5)
    assert_close(slope, nll_slope([1, 2, 0.5, -1], 1), 1e-5)


def test_class_axis_1():
    """A1.D class axis=1, logits [2,4,3]: ``moveaxis``, or ``vmap`` over the rest."""
    x = np.float32([[[1, 2, 0.5, -1]] * 3, [[0, 0, 3, 1]] * 3]).swapaxes(1, 2)
    x += np.float32(np.arange(3) * np.arange(4)[:, None])
    y = np.int32([[3, 3, 0], [0, 1, 2]])
    moved = np.moveaxis(x, 1, -1)
    truth = [
        [-np.log(softmax(r)[k]) for r, k in zip(*b, strict=True)]
        for b in zip(moved, y, strict=True)
    ]
    assert_close(jax.jit(jaxent.cross_entropy)(moved, y), truth, 2e-5)
    mapped = jax.vmap(jaxent.cross_entropy, in_axes=(-1, -1), out_axes=-1)
    assert_close(jax.jit(mapped)(x, y), truth, 2e-5)


def test_one_hot_targets_of_any_real_dtype():
    """A1.D soft: integer one-hot labels [3,3]."""
    truth = [0.40761, 0.094923, 1.0986]
    for dtype in (jnp.int32, jnp.uint8, jnp.bool_, jnp.bfloat16, jnp.float32):
        assert_close(jaxent.soft_cross_entropy(X3, ONEHOT.astype(dtype)), truth, 2e-5)


# --- A1.E: soft targets --------------------------------------------------------------------------

Q = [0.2, 0.5, 0.3]
ROW = [1, 2, 0.5]
SOFT = [
    # name, logits, targets, loss, gradient
    ("proper distribution", ROW, Q, 1.11435, None),
    ("sums to 2", ROW, [0.4, 1.0, 0.6], 2.2287, None),
    ("sums to 0.5", ROW, [0.1, 0.25, 0.15], 0.557176, None),
    ("all-zero labels (masked row)", ROW, [0, 0, 0], 0, [0, 0, 0]),
    ("negative soft label", ROW, [-0.2, 0.9, 0.3], 0.71437, None),
    ("label 0 on a -inf class", [-inf, 2, 0], [0, 0.6, 0.4], 0.926928, None),
    ("label >0 on a -inf class", [-inf, 2, 0], [0.1, 0.5, 0.4], inf, None),
    ("one-hot, +3e38/-3e38", [BIG, -BIG, 0], [1, 0, 0], 0, [0, 0, 0]),
    ("one-hot on the loser, +3e38/-3e38", [BIG, -BIG, 0], [0, 1, 0], inf, [1, -1, 0]),
    ("all-zero labels on an all -inf row", [-inf] * 3, [0, 0, 0], "0 or NaN", None),
    ("NaN logit", [nan, 2, 0], Q, nan, NAN3),
    ("NaN target", ROW, [nan, 0.5, 0.5], nan, NAN3),
]


@functools.cache
def soft_rows(how):
    x, q = rows(*(case[1] for case in SOFT)), rows(*(case[2] for case in SOFT))
    return value_and_slope(jaxent.soft_cross_entropy, how, x, q)


@every_way
@pytest.mark.parametrize("i", case_ids("A1.E", SOFT))
def test_soft_targets(i, how):
    """The gradient is Σq·p − q for any row."""
    _, logits, targets, truth, slope_truth = SOFT[i]
    loss, slope = (answer[i] for answer in soft_rows(how))
    if truth == "0 or NaN":
        assert loss == 0 or np.isnan(loss)
        return
    assert_close(loss, truth, 2e-5)
    if slope_truth is None:
        q = np.float64(targets)
        slope_truth = q.sum() * softmax(logits) - q
    np.testing.assert_allclose(slope, slope_truth, rtol=1e-4, atol=1e-7)


def test_soft_targets_own_gradient():
    """A1.E: −log p of every class, 0 where a target of 0 meets a class ruled out."""
    x, q = rows([1, 2, 0.5], [-inf, 2, 0]), rows(Q, [0, 0.6, 0.4])
    slope = jax.jit(jax.grad(lambda q: jaxent.soft_cross_entropy(x, q).sum()))(q)
    assert_close(slope[0], -np.log(softmax(ROW)), 1e-5)
    assert_close(slope[1], [0, 0.126928, 2.126928], 1e-5)


# --- A1.F: label smoothing -----------------------------------------------------------------------

BASE_X = rows([1, 2, 0.5, -1], [0, 0, 3, 1])
BASE_Y = array([1, 2])


def smoothed(x, y, epsilon):
    return jaxent.smoothed_nll(jaxent.softmax_stats(x, y), label_smoothing=epsilon)


EPSILONS = {0: [0.49518, 0.211], 0.1: [0.63268, 0.411], 1: [1.8702, 2.211]}


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize(
    "epsilon", [pytest.param(e, id=f"A1.F label_smoothing={e}") for e in EPSILONS]
)
def test_label_smoothing(epsilon, how):
    """The gradient is p − (1 − ε) onehot − ε/C."""
    loss, slope = value_and_slope(smoothed, how, BASE_X, BASE_Y, jnp.float32(epsilon))
    assert_close(loss, EPSILONS[epsilon], 2e-5)
    targets = (1 - epsilon) * np.eye(4)[np.asarray(BASE_Y)] + epsilon / 4
    slope_truth = np.stack([softmax(r) for r in np.asarray(BASE_X)]) - targets
    np.testing.assert_allclose(slope, slope_truth, rtol=1e-4, atol=1e-7)


def test_label_smoothing_over_the_classes_allowed():
    """A1.F label_smoothing=0.1 with a -inf masked class."""
    x = BASE_X.at[:, 3].set(-inf)
    loss, slope = value_and_slope(lambda x, y: smoothed(x, y, 0.1), "compiled", x, BASE_Y)
    p = np.stack([softmax(r) for r in np.asarray(x)])[:, :3]
    onehot = np.eye(3)[np.asarray(BASE_Y)]
    truth = -np.sum((0.9 * onehot + 0.1 / 3) * np.log(p), -1)
    assert_close(loss, truth, 2e-5)
    np.testing.assert_allclose(slope[:, :3], p - 0.9 * onehot - 0.1 / 3, rtol=1e-4, atol=1e-7)
    assert (slope[:, 3] == 0).all()


# --- A1.G: weights and reductions ----------------------------------------------------------------

WEIGHTED = [
    # name, weights, weighted mean
    ("weighted mean, w=[1,3]", [1.0, 3.0], 0.282044),
    ("weighted mean, w=[1,0]", [1.0, 0.0], 0.495182),
    ("zero total weight w=[0,0]", [0.0, 0.0], 0.0),
    ("negative weight w=[1,-1]", [1.0, -1.0], 0.0),
    ("negative weight w=[3,-1]", [3.0, -1.0], 0.637275),
    ("integer weights w=[1,3] int32", [1, 3], 0.282044),
    ("bool weights w=[True,False]", [True, False], 0.495182),
    ("bool weights w=[False,False]", [False, False], 0.0),
    ("NaN weight", [nan, 1.0], nan),
]


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("i", case_ids("A1.G", WEIGHTED))
def test_weighted_mean(i, how):
    """Σ w·l / Σ w, 0 with zero gradient where Σ w is exactly 0."""
    _, weights, truth = WEIGHTED[i]

    def loss(x, w):
        return jaxent.weighted_mean(jaxent.cross_entropy(x, BASE_Y), w)

    w = array(weights)
    value, slope = HOW[how](jax.value_and_grad(loss))(BASE_X, w)
    assert_close(value, truth, 2e-5)
    if np.isnan(truth):
        assert np.isnan(slope).all()
    else:
        total = sum(weights) or inf
        slope_truth = [
            w / total * nll_slope(x, y)
            for w, x, y in zip(weights, np.asarray(BASE_X), np.asarray(BASE_Y), strict=True)
        ]
        np.testing.assert_allclose(slope, slope_truth, rtol=1e-4, atol=1e-8)


def test_zero_total_weight_has_no_gradient_in_the_weights_either():
    """A1.G zero total weight: the documented choice, in every mean."""
    losses = rows(1, 2)
    for w in (rows(0, 0), rows(1, -1)):
        assert (jax.grad(lambda w: jaxent.weighted_mean(losses, w))(w) == 0).all()
    for reduce in (jaxent.weighted_mean, jaxent.nonzero_mean, jaxent.plain_mean):
        assert reduce(losses, rows(0, 0)) == 0
    assert np.isnan(jaxent.weighted_sum(losses, rows(0, 0)).mean(empty=nan))


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_weight_0_times_loss_inf(how):
    """A1.G weight 0 x loss inf: the other row only, whichever way it is reduced."""
    x, y, w = rows([-inf, 1, 1, 1], [0, 0, 3, 1]), array([0, 2]), rows(0, 1)
    truth = {jaxent.weighted_mean: 1, jaxent.nonzero_mean: 1, jaxent.plain_mean: 2}
    for reduce, count in truth.items():

        def loss(x, w, reduce=reduce):
            return reduce(jaxent.cross_entropy(x, y), w)

        value, (slope, w_slope) = HOW[how](jax.value_and_grad(loss, (0, 1)))(x, w)
        assert_close(value, 0.211 / count, 3e-4)
        assert (slope[0] == 0).all()
        assert_close(slope[1], nll_slope([0, 0, 3, 1], 2) / count, 1e-4)
        assert not np.isnan(w_slope).any()


def test_ignored_samples_and_other_weights():
    """A1.G: ignoring, sample weights, class weights and smoothing multiply in one way."""
    where = array([True, False])
    table = rows(1, 2, 3, 4)
    losses = jaxent.cross_entropy(BASE_X, BASE_Y, where=where)
    assert_close(jaxent.weighted_mean(losses, jnp.where(where, rows(2, 5), 0)), 0.495182, 2e-5)
    by_class = jaxent.class_weights(BASE_Y, table, where=where)
    assert_close(jaxent.weighted_mean(losses, by_class), 0.495182, 2e-5)
    mean = jaxent.weighted_mean(smoothed(BASE_X, BASE_Y, 0.1), jaxent.class_weights(BASE_Y, table))
    assert_close(mean, (2 * 0.63268 + 3 * 0.411) / 5, 2e-4)


# --- A1.H: sigmoid cross entropy -----------------------------------------------------------------

SIGMOID = [
    # name, logit, target, pos_weight, loss
    ("x=100, matching label", 100, 1, 1, 0),  # 3.7e-44 is subnormal
    ("x=-100, matching label", -100, 0, 1, 0),
    ("x=80, matching label", 80, 1, 1, 1.8048513e-35),
    ("x=-80, matching label", -80, 0, 1, 1.8048513e-35),
    ("x=100, wrong label", 100, 0, 1, 100),
    ("x=-100, wrong label", -100, 1, 1, 100),
    ("x=3e38, label 1", BIG, 1, 1, 0),
    ("x=-3e38, label 0", -BIG, 0, 1, 0),
    ("x=3e38, label 0", BIG, 0, 1, BIG),
    ("x=+inf, label 1", inf, 1, 1, 0),
    ("x=-inf, label 0", -inf, 0, 1, 0),
    ("x=+inf, label 0", inf, 0, 1, inf),
    ("x=-inf, label 1", -inf, 1, 1, inf),
    ("x=-inf, label 0.5", -inf, 0.5, 1, inf),
    ("x=0 (tie), label 0", 0, 0, 1, math.log(2)),
    ("x=0 (tie), label 1", 0, 1, 1, math.log(2)),
    ("label 1.5 (out of [0,1])", 1, 1.5, 1, -0.186738),
    ("label -0.5 (out of [0,1])", 1, -0.5, 1, 1.813262),
    ("pos_weight=3, x=1", 1, 1, 3, 0.939785),
    ("pos_weight=3, x=-2", -2, 1, 3, 6.380784),
    ("pos_weight=0, label 1", 1, 1, 0, 0),
    ("pos_weight=0, label 0", -2, 0, 0, 0.126928),
    ("pos_weight=inf, label 0", 1, 0, inf, 1.313262),
    ("pos_weight=3, x=+inf, label 1", inf, 1, 3, 0),
    ("pos_weight=3, x=0, label 1", 0, 1, 3, 3 * math.log(2)),
    ("pos_weight=3, x=0, label 0", 0, 0, 3, math.log(2)),
    ("x=NaN", nan, 1, 1, nan),
    ("label NaN", 1, nan, 1, nan),
]


@functools.cache
def sigmoid_rows(how):
    x, z, w = (rows(*(case[k] for case in SIGMOID)) for k in (1, 2, 3))
    return value_and_slope(
        lambda x, z, w: jaxent.sigmoid_cross_entropy(x, z, pos_weight=w), how, x, z, w
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(max(x, -700)) / (1 + math.exp(x))


@every_way
@pytest.mark.parametrize("i", case_ids("A1.H", SIGMOID))
def test_sigmoid(i, how):
    """The gradient is (1 − z) σ(x) − w z σ(−x), 0 · inf = 0."""
    _, x, z, weight, truth = SIGMOID[i]
    loss, slope = (answer[i] for answer in sigmoid_rows(how))
    assert_close(loss, truth, 2e-5)
    positive = weight * z * sigmoid(-x) if z else 0
    np.testing.assert_allclose(slope, (1 - z) * sigmoid(x) - positive, rtol=1e-4, atol=1e-37)


@every_way
def test_sigmoid_stats_on_hard_logits(how):
    """A1.H for the statistics: the same loss and gradient where the label is 0 or 1."""
    chosen = [i for i, case in enumerate(SIGMOID) if case[2] in (0, 1) and case[3] == 1]
    x = rows(*(SIGMOID[i][1] for i in chosen))
    y = array([SIGMOID[i][2] for i in chosen])
    loss, slope = value_and_slope(lambda x, y: jaxent.sigmoid_stats(x, y).nll, how, x, y)
    assert_close(loss, [SIGMOID[i][4] for i in chosen], 2e-5)
    truth = [sigmoid(SIGMOID[i][1]) if SIGMOID[i][2] == 0 else -sigmoid(-SIGMOID[i][1])
             for i in chosen]  # fmt: skip
    assert_close(slope, truth, 1e-4)


# --- A1.I: from probabilities --------------------------------------------------------------------


@every_way
def test_from_probabilities(how):
    """A1.I by the idiom, ``cross_entropy(jnp.log(p), labels)``: no epsilon, no clip."""
    p = rows([0, 0.5, 0.5], [1, 0, 0], [1e-10, 0.5, 0.5], [0.2, 0.2, 0.2], [2, -1, 0.5])
    y = array([0, 0, 0, 1, 1])
    loss, slope = value_and_slope(jaxent.cross_entropy, how, jnp.log(p), y)
    assert_close(loss, [inf, 0, 23.02585, math.log(3), nan], 2e-5)
    assert_close(slope[0], [-1, 0.5, 0.5], 1e-5)
    assert_close(slope[1], [0, 0, 0], 0)
    assert np.isnan(slope[4]).all()  # scores for probabilities: NaN, never a number
    _, slope = value_and_slope(lambda p, y: jaxent.cross_entropy(jnp.log(p), y), how, p[:1], y[:1])
    assert_close(slope, [[-inf, 1, 1]], 1e-5)  # in the probabilities


def test_probabilities_passed_as_logits_are_named():
    """A1.I logits passed as probabilities, and the reverse: no loss can tell, jaxent.debug does."""
    (finding,) = jaxent.debug.diagnose(rows([0, 0.5, 0.5], [1e-10, 0.5, 0.5]), array([1, 2]))
    assert "logits are probabilities" in finding.message
    assert "jnp.log(p)" in finding.message


@every_way
def test_binary_from_probabilities(how):
    """A1.I bce p=0, p=1, p=1.5: the idiom is the logit."""
    p, z = rows(0, 1, 1.5, 0.25), rows(1, 1, 1, 0)

    def f(p, z):
        return jaxent.sigmoid_cross_entropy(jnp.log(p) - jnp.log1p(-p), z)

    loss, _ = value_and_slope(f, how, p, z)
    assert_close(loss, [inf, 0, nan, -math.log(0.75)], 2e-5)


# --- A1.J: KL divergence -------------------------------------------------------------------------

LOG_P = np.log([0.25, 0.25, 0.5]).tolist()
KL = [
    # name, log-probabilities, targets, loss
    ("target has a zero", LOG_P, [0, 0.5, 0.5], 0.5 * math.log(2)),
    ("log_pred -inf where target 0", [-inf, *np.log([0.5, 0.5])], [0, 0.5, 0.5], 0),
    ("log_pred -inf where target 0, other", [-inf, *np.log([0.25, 0.75])], [0, 0.5, 0.5], 0.143841),
    ("log_pred -inf where target >0", [-inf, *np.log([0.5, 0.5])], [0.2, 0.4, 0.4], inf),
    ("target equal to the prediction", LOG_P, [0.25, 0.25, 0.5], 0),
    ("negative target", LOG_P, [-0.1, 0.6, 0.5], nan),
]


@functools.cache
def kl_rows(how):
    x, q = (np.resize(np.float32([case[k] for case in KL]), (BATCH, 3)) for k in (1, 2))

    def both(x, q):
        values, pull = jax.vjp(jaxent.kl_divergence, x, q)
        return values, *pull(jnp.ones_like(values))

    return [np.asarray(answer) for answer in HOW[how](both)(jnp.asarray(x), jnp.asarray(q))]


@every_way
@pytest.mark.parametrize("i", case_ids("A1.J", KL))
def test_kl_divergence(i, how):
    name, logits, targets, truth = KL[i]
    loss, slope, target_slope = (answer[i] for answer in kl_rows(how))
    np.testing.assert_allclose(loss, truth, rtol=2e-5, atol=1e-7)
    if name == "negative target":
        assert np.isnan(slope).all()
    else:
        q = np.float64(targets)
        np.testing.assert_allclose(slope, q.sum() * softmax(logits) - q, rtol=1e-4, atol=1e-7)
        assert not np.isnan(target_slope).any()  # gradient wrt target at target=0: no NaN


# --- A1.K: focal loss ----------------------------------------------------------------------------

GAMMAS, FOCAL_X = (0.0, 0.5, 1.0, 2.0), (20.0, 100.0, -100.0, 0.0)


@functools.cache
def focal_rows(how):
    x = array(np.tile(np.float32(FOCAL_X), len(GAMMAS)))
    gamma = array(np.repeat(np.float32(GAMMAS), len(FOCAL_X)))

    def f(x, gamma):
        return jaxent.focal(jaxent.sigmoid_stats(x, jnp.ones_like(x, jnp.int32)), gamma=gamma)

    if how == "mapped":
        return value_and_slope(f, how, x, gamma)
    pairs = [value_and_slope(f, how, rows(*FOCAL_X), jnp.float32(gamma)) for gamma in GAMMAS]
    return tuple(np.concatenate(parts) for parts in zip(*pairs, strict=True))


@every_way
@pytest.mark.parametrize(
    "i", case_ids("A1.K", [(f"gamma={g:g}, x={x:g}, label 1",) for g in GAMMAS for x in FOCAL_X])
)
def test_focal(i, how):
    """q^γ u with u = −log p; d/dx = −q^(γ+1) (γ p u / q + 1), checked in float64."""
    gamma, x = GAMMAS[i // len(FOCAL_X)], FOCAL_X[i % len(FOCAL_X)]
    u = math.log1p(math.exp(-x)) if x > -50 else -x
    p, q = sigmoid(x), sigmoid(-x)
    loss, slope = (answer[i] for answer in focal_rows(how))
    assert_close(loss, q**gamma * u, 2e-5)
    assert_close(slope, -(q ** (gamma + 1)) * (gamma * p * u / q + 1), 1e-4)


# --- options -------------------------------------------------------------------------------------


def option_of(f):
    return lambda value: f(jaxent.softmax_stats(X3, Y3), value)


OPTIONS = {
    # name: (function of the option, a good value, bad values)
    "label_smoothing": (
        option_of(lambda s, v: jaxent.smoothed_nll(s, label_smoothing=v)),
        0.1,
        [-0.1, 1.1, 2.0, nan],
    ),
    "gamma": (option_of(lambda s, v: jaxent.focal(s, gamma=v)), 2.0, [-1.0, -0.001, nan, inf]),
    "epsilon": (option_of(lambda s, v: jaxent.poly1(s, epsilon=v)), 2.0, [-1.1, nan, inf]),
    "q": (option_of(lambda s, v: jaxent.generalized_cross_entropy(s, q=v)), 0.7, [-0.1, 1.1, nan]),
    "pos_weight": (
        lambda v: jaxent.sigmoid_cross_entropy(W3, rows(1, 1, 1), pos_weight=v),
        3.0,
        [-1.0, nan],
    ),
    "beta": (lambda v: jw.effective_number(W3, beta=v), 0.9, [-0.1, 1.0, 1.5, nan]),
}
BAD_OPTIONS = [(name, value) for name, (_, _, bad) in OPTIONS.items() for value in bad]


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(n, v, id=f"A1.F/H/K {n}={v:g}") for n, v in BAD_OPTIONS]
)
def test_bad_option_raises_where_it_is_known(name, value):
    """Eager, under jit as a literal, and under jit as a constant of any kind."""
    f = OPTIONS[name][0]
    message = rf"^{name} must (be|not be) .*{re.escape(str(value))}"
    for given in (value, np.float32(value), jnp.float32(value)):
        with pytest.raises(ValueError, match=rf"^{name} must"):
            f(given)
        with pytest.raises(ValueError, match=rf"^{name} must"):
            jax.eval_shape(lambda given=given: f(given))
    with pytest.raises(ValueError, match=message):
        f(value)


@pytest.mark.parametrize("name", OPTIONS)
def test_traced_option_is_not_retraced_and_is_nan_out_of_range(name):
    f, good, bad = OPTIONS[name]
    traces = []

    @jax.jit
    def traced(value):
        traces.append(value)
        return f(value)

    np.testing.assert_allclose(traced(good), f(good), rtol=1e-6)
    for value in bad:
        assert np.isnan(traced(value)).all(), value
    assert len(traces) == 1


@pytest.mark.parametrize("name", OPTIONS)
def test_good_option_may_be_a_constant_of_a_compiled_function(name):
    f, good, _ = OPTIONS[name]
    for given in (good, np.float32(good), jnp.float32(good)):
        np.testing.assert_allclose(jax.jit(lambda given=given: f(given))(), f(good), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"pos_weight"}))
def test_option_must_be_a_scalar(name):
    f, good, _ = OPTIONS[name]
    with pytest.raises(ValueError, match=rf"^{name} must be a scalar; got float32\[3\].*vmap"):
        f(rows(good, good, good))


def test_pos_weight_of_classes():
    """A1.H pos_weight per class: one bad entry is named."""
    x, pos_weight = zeros((2, 3)), rows(1, -1, 1)
    for call in (lambda f: f(), jax.eval_shape):
        with pytest.raises(ValueError, match=r"pos_weight must .*-1"):
            call(lambda: jaxent.sigmoid_cross_entropy(x, x, pos_weight=pos_weight))


# --- class counts --------------------------------------------------------------------------------

RECIPES = {
    "balanced": jw.balanced,
    "inverse_frequency": jw.inverse_frequency,
    "log_ratio": jw.log_ratio,
    "effective_number": lambda n: jw.effective_number(n, beta=0.9),
    "median_frequency": jw.median_frequency,
    "log_prior": jw.log_prior,
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_class_without_examples(recipe):
    """An error that names the class; infinite where it is traced, never a number."""
    n = [3.0, 0.0, 5.0]
    for given in (n, np.float32(n), array(n), array([3, 0, 5])):
        with pytest.raises(ValueError, match=r"class 1 has no examples.*counts \+ 1"):
            recipe(given)
    with pytest.raises(ValueError, match="class 1 has no examples"):
        jax.eval_shape(lambda: recipe(np.float32(n)))
    table = jax.jit(recipe)(array(n))
    assert not np.isfinite(table[1])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_labels_for_counts(recipe):
    """Integers may be labels, and the error says what to do with those; floats are none."""
    hint = r"If these are labels, pass counts\(labels, num_classes\)\."
    for labels in (np.array([0, 2, 1]), array([0, 2, 1]), [1, -100], np.array([[1, 2]])):
        with pytest.raises(ValueError, match=hint):
            recipe(labels)
    for not_labels in ([3.0, 0.0], np.ones((2, 2))):
        with pytest.raises(ValueError) as error:
            recipe(not_labels)
        assert "labels" not in str(error.value)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_negative_count(recipe):
    for bad in (-1.0, nan, np.inf):
        with pytest.raises(ValueError, match="counts must be finite and not negative"):
            recipe(rows(3, bad, 5))
        assert np.isnan(jax.jit(recipe)(rows(3, bad, 5))[1])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_counts_may_be_a_constant_of_a_compiled_function(recipe):
    n = rows(3, 2, 5)
    np.testing.assert_allclose(jax.jit(lambda: recipe(n))(), recipe(n), rtol=1e-6)


def test_counts_may_count_a_constant_of_a_compiled_function():
    np.testing.assert_array_equal(jax.jit(lambda: jw.counts(Y3, 3))(), [1, 1, 1])


@pytest.mark.parametrize("num_classes", [0, -1])
def test_no_classes_to_count(num_classes):
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        jw.counts(Y3, num_classes)


@pytest.mark.parametrize("num_classes", [3.0, None, "3"])
def test_number_of_classes_is_an_integer(num_classes):
    with pytest.raises(TypeError, match="num_classes must be a Python int; got"):
        jw.counts(Y3, num_classes)


def test_no_positives():
    with pytest.raises(ValueError, match="num_positive must be positive"):
        jw.positive(3, 0)
    with pytest.raises(ValueError, match="num_positive must be finite and not negative"):
        jw.positive(3, -1)


def test_unknown_normalisation():
    with pytest.raises(ValueError, match=r"normalize must be None.*'l2'"):
        jw.log_ratio(W3, normalize="l2")


@pytest.mark.parametrize("power", [nan, inf, -1])
def test_a_power_is_finite_and_not_negative(power):
    with pytest.raises(ValueError, match=f"power must be finite and at least 0; got {power}"):
        jw.inverse_frequency(W3, power=power)
    assert np.isnan(jax.jit(lambda p: jw.inverse_frequency(W3, power=p))(power)).all()


def test_options_of_tables_are_scalars():
    with pytest.raises(ValueError, match=r"power must be a scalar; got float32\[2\]"):
        jw.inverse_frequency(W3, power=jnp.ones(2))
    with pytest.raises(TypeError, match="clip must be an array of numbers; got str"):
        jw.log_ratio(W3, clip="1")
    with pytest.raises(ValueError, match="clip must be finite; got nan"):
        jw.log_ratio(W3, clip=nan)
    with pytest.raises(TypeError, match="empty must be an array of numbers; got str"):
        jaxent.weighted_sum(W3).mean("nan")


@pytest.mark.parametrize("name", ["nll", "z_loss", "focal", "poly1", "smoothed_nll"])
def test_a_loss_of_statistics_given_logits_says_what_it_wants(name):
    cure = rf"{name} takes the statistics .*got float32\[3, 4\].*softmax_stats\(logits, labels\)"
    with pytest.raises(TypeError, match=cure):
        getattr(jaxent, name)(zeros((3, 4)))


def test_a_traced_negative_pos_weight_is_nan_everywhere():
    losses = jax.jit(
        lambda w: jaxent.sigmoid_cross_entropy(zeros(3), rows(0, 0.5, 1), pos_weight=w)
    )
    assert np.isnan(losses(-1.0)).all() and np.isfinite(losses(0.0)).all()


def test_a_bad_label_leaves_no_statistic():
    def of(x):
        return jnp.stack(jax.tree.leaves(jaxent.softmax_stats(x, array([1, 9], np.int32))), -1)

    assert (np.isnan(of(zeros((2, 4)))) == np.array([[False], [True]])).all()
    gradients = jax.jacrev(of)(zeros((2, 4)))  # [example, statistic, example, class]
    assert (np.isnan(gradients[[0, 1], :, [0, 1]]) == np.array([False, True])[:, None, None]).all()


def test_bad_labels_that_jit_sees_as_a_constant_are_not_counted():
    with pytest.raises(ValueError, match=r"labels\[1\] = 9"):
        jax.jit(lambda: jw.counts(np.array([1, 9]), 3))()


# --- what is accepted ----------------------------------------------------------------------------

ACCEPTED = {
    "cross_entropy": (ce, X3, Y3),
    "cross_entropy with where": (masked, X3, Y3, Y3 > 0),
    "soft_cross_entropy": (soft, X3, ONEHOT),
    "kl_divergence": (jaxent.kl_divergence, X3, ONEHOT),
    "sigmoid_cross_entropy": (bce, X3, ONEHOT),
    "sigmoid_stats": (lambda x, y: jaxent.sigmoid_stats(x, y).nll, W3, Y3 % 2),
    "expected_cost": (jaxent.expected_cost, X3, Y3, jnp.asarray(COSTS)),
    "class_weights": (jaxent.class_weights, Y3, W3),
    "cost_weights": (jaxent.cost_weights, Y3, Y3, jnp.asarray(COSTS)),
    "weighted_mean": (jaxent.weighted_mean, W3, Z3),
    "nonzero_mean": (jaxent.nonzero_mean, W3, Z3),
    "plain_mean": (jaxent.plain_mean, W3, Z3),
    "counts": (lambda y: jw.counts(y, 3), Y3),
    "balanced": (jw.balanced, W3),
    "positive": (jw.positive, W3, W3),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_lists_and_numpy_arrays_are_accepted(name):
    """A1.C labels as python list; NumPy's float64 and int64 are what NumPy makes by default."""
    f, *args = ACCEPTED[name]
    truth = f(*args)
    np.testing.assert_array_equal(f(*(x.tolist() for x in args)), truth)
    np.testing.assert_array_equal(f(*(np.asarray(x) for x in args)), truth)
    wide = {"f": np.float64, "i": np.int64, "b": bool}
    np.testing.assert_array_equal(f(*(np.asarray(x, wide[x.dtype.kind]) for x in args)), truth)
