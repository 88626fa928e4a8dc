"""Samplers have the distributions they say, sampled losses the values and gradients they say."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxent
from jaxent import sampled
from jaxent.sampled import samplers

RNG = np.random.default_rng(11)
LOG_UNIFORM = {v: np.log1p(1 / (np.arange(v) + 1.0)) / np.log(v + 1.0) for v in (4, 12, 50)}
SKEWED = np.array([0.7, 0.0, 0.2, 1e-3, 0.05, 0.049, 0.0, 0.0, 1e-4])
SKEWED /= SKEWED.sum()


def fits(counts, probabilities, at_least=1e-4):
    """Chi-squared, cells of expectation below 5 taken together."""
    expected = np.asarray(probabilities, float) * counts.sum()
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    pool = [expected[rare].sum()] if expected[rare].sum() > 0 else []
    expected = np.concatenate([expected[~rare], pool])
    counts = np.concatenate([counts[~rare], [counts[rare].sum()] if pool else []])
    p = scipy.stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue
    assert p > at_least, (p, counts, expected)


# --- samplers: with replacement -------------------------------------------------------------------

KEY = jax.random.key(0)
TABLES = {
    "skewed": sampled.unigram_table(SKEWED),
    "distorted": sampled.unigram_table(np.array([3.0, 0, 16, 81]), distortion=0.75),
    "reserved": sampled.unigram_table([1, 2, 5], num_reserved_ids=2),
    "learned": sampled.observe(sampled.learned_unigram(5), jnp.array([[3, 3, 1], [3, 0, 3]])),
}
WEIGHTS = {
    "skewed": SKEWED,
    "distorted": np.array([3.0, 0, 16, 81]) ** 0.75,
    "reserved": [0, 0, 1, 2, 5],
    "learned": [2, 2, 1, 5, 1],
}


@pytest.mark.parametrize("name", ["uniform", "log_uniform", *TABLES])
def test_frequencies_with_replacement(name):
    num_sampled, labels = 1 << 17, jnp.array([0, 3], jnp.int8)
    options = {"num_sampled": num_sampled, "unique": False}
    if name in TABLES:
        s = sampled.unigram(jax.random.key(1), labels, TABLES[name], **options)
        p = np.asarray(WEIGHTS[name], float) / np.sum(WEIGHTS[name])
        np.testing.assert_allclose(TABLES[name].probabilities(), p, rtol=3e-7)
    else:
        s = getattr(sampled, name)(jax.random.key(1), labels, num_classes=50, **options)
        p = LOG_UNIFORM[50] if name == "log_uniform" else np.full(50, 1 / 50)
    fits(np.bincount(s.ids, minlength=p.size), p)
    np.testing.assert_allclose(s.expected_true, p[[0, 3]] * num_sampled, rtol=1e-6)
    np.testing.assert_allclose(s.expected_sampled, p[np.asarray(s.ids)] * num_sampled, rtol=1e-6)
    assert s.ids.dtype == jnp.int32 and s.expected_true.dtype == jnp.float32


def test_log_uniform_reaches_every_class_of_a_million_alike():
    """In float32 the textbook inverse ⌊(V + 1)^u⌋ − 1 leaves out most of the last classes."""
    num_classes, n = 10**6, 1 << 21
    labels = jnp.array([0, num_classes - 1])
    s = sampled.log_uniform(
        jax.random.key(2), labels, num_sampled=n, num_classes=num_classes, unique=False
    )
    ids = np.asarray(s.ids)
    assert ids.min() == 0 and ids.max() < num_classes
    edges = np.unique(np.geomspace(1, num_classes + 1, 300).astype(int)) - 1
    p = np.diff(np.log(edges + 1.0)) / np.log(num_classes + 1)
    fits(np.histogram(ids, edges)[0], p)
    last = ids[ids >= 900_000] - 900_000  # about 16,000, all but uniform
    fits(np.bincount(last % 1000, minlength=1000), np.full(1000, 1e-3))
    different = 1e5 * -np.expm1(-last.size / 1e5)
    assert abs(len(np.unique(last)) - different) < 0.015 * different
    np.testing.assert_allclose(
        s.expected_true, n * np.log1p([1.0, 1e-6]) / np.log(1e6 + 1), rtol=1e-6
    )


# --- samplers: without replacement ----------------------------------------------------------------


def orders(p, n):
    """Every order of n different classes as the first of a sequence of draws, its probability, and
    the shares of draws that are new after each."""
    for order in itertools.permutations(np.flatnonzero(p), n):
        left = 1 - np.concatenate([[0], np.cumsum(p[list(order)])[:-1]])
        yield order, np.prod(p[list(order)] / left), left


def tries_distribution(p, n, length):
    """P(tries = t), t < length: 1 and then a geometric wait for each further class."""
    total = np.zeros(length)
    for _, probability, left in orders(p, n):
        pmf = np.eye(1, length)[0]
        for share in left:
            wait = np.append(0, share * (1 - share) ** np.arange(length - 1))
            pmf = np.convolve(pmf, wait)[:length]
        total += probability * pmf
    return total


@pytest.mark.parametrize(
    ("p", "n"),
    [
        pytest.param(LOG_UNIFORM[12], 2, id="blocks"),
        pytest.param(LOG_UNIFORM[4], 4, id="all"),
        pytest.param(np.full(5, 0.2), 3, id="uniform"),
    ],
)
def test_order_and_number_of_tries_without_replacement(p, n):
    """The ids are the first different ones of a sequence of draws, tries is its length."""
    runs, labels = 20_000, jnp.array([0, 2])

    def run(key):
        sampler = sampled.uniform if p[0] == p[-1] else sampled.log_uniform
        return sampler(key, labels, num_sampled=n, num_classes=p.size)

    s = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(3), runs))
    ids = np.asarray(s.ids)
    assert all(len(set(row)) == n for row in ids[:500].tolist())
    code = p.size ** np.arange(n)
    wanted = np.zeros(p.size**n)
    for order, probability, _ in orders(p, n):
        wanted[np.dot(order, code)] = probability
    fits(np.bincount(ids @ code, minlength=wanted.size), wanted)

    tries = np.log1p(-np.float64(s.expected_true[:, 1])) / np.log1p(-p[2])
    expected = np.minimum(np.float64(s.expected_sampled), 1 - 1e-9)
    tries_of_ids = np.log1p(-expected) / np.log1p(-p[ids])
    few = tries < 19.5  # beyond, 1 − expected has no digits left
    np.testing.assert_allclose(tries[few], np.round(tries[few]), rtol=1e-4)
    rare = (p[ids] < 0.25) & few[:, None]
    np.testing.assert_allclose(tries_of_ids[rare], (0 * ids + tries[:, None])[rare], rtol=1e-4)
    pmf = tries_distribution(p, n, 20)
    found = np.bincount(np.round(tries[few]).astype(int), minlength=20)
    fits(np.append(found, runs - found.sum()), np.append(pmf, 1 - pmf.sum()))


@pytest.mark.parametrize(
    ("rare", "block"), [([3, 7, 8, 12, 15], None), ([3, 17, 18, 30, 36], 1)], ids=["one", "blocks"]
)
def test_blocks_of_draws_give_up_on_a_skewed_table_and_the_rest_is_still_right(
    rare, block, monkeypatch
):
    """Class 0 takes 99.9 % of the draws: 32 rounds of blocks find the others in few runs. These
    then arrive in one block of 16 classes, or in three: 16, 16 and 5."""
    if block:
        monkeypatch.setattr(samplers, "_BLOCK", block)
    p = np.array([0.999, *np.zeros(rare[-1])])
    p[rare] = np.array([5, 4, 3, 2, 1]) / 15e3
    table = sampled.unigram_table(p)
    keys = jax.random.split(jax.random.key(4), 4000)
    s = jax.jit(jax.vmap(lambda k: sampled.unigram(k, jnp.array(3), table, num_sampled=4)))(keys)
    assert (np.diff(np.sort(s.ids)) > 0).all()
    first = {order: (q, left) for order, q, left in orders(p, 4)}
    classes = np.flatnonzero(p)
    wanted = [sum(q for order, (q, _) in first.items() if order[-1] == c) for c in classes]
    fits(np.bincount(np.searchsorted(classes, s.ids[:, -1]), minlength=6), wanted)
    tries = np.log1p(-np.float64(s.expected_true)) / np.log1p(-p[3])
    mean = sum(q * (1 / left).sum() for q, left in first.values())
    assert abs(tries.mean() - mean) < 5 * tries.std() / np.sqrt(tries.size)


def test_a_sample_of_nearly_all_classes():
    n = 3999
    s = sampled.log_uniform(jax.random.key(5), jnp.array(0), num_sampled=n, num_classes=n + 1)
    assert len(np.unique(s.ids)) == n and s.ids.max() <= n and s.ids.min() >= 0
    assert np.isfinite(s.expected_sampled).all() and (s.expected_sampled > 0.2).all()
    np.testing.assert_allclose(s.expected_true, 1, rtol=1e-6)


def test_samplers_under_jit_and_vmap_and_per_key():
    labels = jnp.array([[1, 2], [3, 40]], jnp.uint8)

    def run(key, labels):
        return sampled.log_uniform(key, labels, num_sampled=8, num_classes=41)

    keys = jax.random.split(jax.random.key(6), 2)
    raw = jax.random.key_data(keys)  # keys of the old kind
    mapped = jax.jit(jax.vmap(run))(keys, labels)
    assert (mapped.ids[0] != mapped.ids[1]).any()
    for i in range(2):
        for got, wanted in zip(run(raw[i], labels[i]), mapped, strict=True):
            np.testing.assert_allclose(got, wanted[i], rtol=1e-6)
    with jax.enable_x64(True):
        wide = run(keys[0], labels[0].astype(jnp.int64))
    assert wide.ids.dtype == jnp.int32 and wide.expected_true.dtype == jnp.float64
    np.testing.assert_array_equal(wide.ids, mapped.ids[0])
    np.testing.assert_allclose(wide.expected_true, mapped.expected_true[0], rtol=1e-5)


def test_learned_unigram_counts_the_stream():
    observe = jax.jit(sampled.observe)
    table, seen = sampled.learned_unigram(13), np.ones(13)
    for i in range(3):
        labels = RNG.integers(0, 13, (4, 5)).astype(np.int16)
        where = RNG.uniform(size=labels.shape) < 0.7
        table = observe(table, np.where(where, labels, -100), where=where)
        seen += np.bincount(labels[where], minlength=13)
        assert int(table.tree[1]) == seen.sum(), i
    np.testing.assert_allclose(table.probabilities(), seen / seen.sum(), rtol=3e-7)
    assert (observe(table, jnp.array([13, -1])).tree == table.tree).all()  # traced: not counted


@pytest.mark.parametrize("num_classes", [1, 2, 15, 16, 17, 1000])
def test_observe_keeps_the_sums_right(num_classes):
    labels = RNG.integers(0, num_classes, 300)
    table = sampled.observe(sampled.learned_unigram(num_classes), labels)
    counts, tree = 1 + np.bincount(labels, minlength=num_classes), np.asarray(table.tree)
    np.testing.assert_array_equal(tree[table.first :][:num_classes], counts)
    assert tree[0] == tree[table.first + num_classes :].sum() == 0
    np.testing.assert_array_equal(tree[1 : table.first], tree[2:].reshape(-1, 2).sum(-1))


def test_unigram_needs_no_memory_of_the_tables_size():
    def temporary(num_classes):
        table = jax.eval_shape(lambda: sampled.learned_unigram(num_classes))
        run = jax.jit(lambda key, table: sampled.unigram(key, [1], table, num_sampled=64))
        return run.lower(KEY, table).compile().memory_analysis().temp_size_in_bytes

    assert temporary(10**7) < 1.1 * temporary(10**5)


def test_a_class_cannot_be_sampled_that_the_table_does_not_have():
    """Where too few classes are positive and that is not visible, expected counts are NaN."""
    run = jax.jit(lambda n: sampled.unigram(jax.random.key(0), jnp.array([0]), n, num_sampled=3))
    for num_classes in (4, 40):
        counts = np.zeros(num_classes, np.float32)
        counts[:3] = 1, 2, 3
        assert set(np.asarray(run(counts).ids).tolist()) == {0, 1, 2}
        counts[1] = 0
        assert np.isnan(run(counts).expected_sampled).all()
    s = sampled.unigram(jax.random.key(0), jnp.array([1]), [1, 0, 1], num_sampled=1, unique=False)
    rows = sampled.Rows(jnp.ones([1, 2]), jnp.ones([1, 2]))
    assert np.isnan(sampled.sampled_softmax_stats(jnp.ones([1, 2]), [1], s, rows).nll).all()


# --- losses: the formulas -------------------------------------------------------------------------

N, T, S, D, V = 4, 3, 6, 5, 9
HIDDEN = RNG.normal(size=(N, D)) * 2
TABLE = RNG.normal(size=(V, D))
BIAS = RNG.normal(size=V) * 3
LABELS = np.array([[0, 3, 5], [8, 1, 2], [3, 4, 6], [7, 7, 0]], np.int32)
IDS = np.array([3, 0, 8, 4, 3, 2], np.int32)  # 3 twice; hits in every row
Q = RNG.uniform(0.05, 1.5, V)


def samples_of(labels, ids=IDS, dtype=np.float32):
    return sampled.Samples(ids, *(jnp.asarray(Q, dtype)[x] for x in (labels, ids)))


def textbook(hidden, table, bias, labels, ids=IDS, *, hits, log_q, kind, where=None):
    """TensorFlow's definition in plain arithmetic; ``where`` leaves labels out."""
    labels = labels.reshape(len(labels), -1)
    where = np.ones(labels.shape, bool) if where is None else where
    columns = np.concatenate([labels, np.broadcast_to(ids, (len(labels), ids.shape[-1]))], 1)
    is_hit = (columns[:, :, None] == np.where(where, labels, -1)[:, None, :]).any(-1) & hits
    is_hit[:, : labels.shape[1]] = ~where
    logits = (hidden[:, None] * table[columns]).sum(-1) + bias[columns] - log_q * np.log(Q)[columns]
    targets = np.zeros(columns.shape)
    targets[:, : labels.shape[1]] = where / np.maximum(where.sum(-1, keepdims=True), 1)
    if kind == "softmax":
        log_z = jax.nn.logsumexp(jnp.where(is_hit, -jnp.inf, logits), -1, keepdims=True)
        return (targets * (log_z - logits)).sum(-1)
    return jnp.where(is_hit, 0, jnp.logaddexp(0, logits) - targets * logits).sum(-1)


def ours(hidden, table, bias, labels, ids=IDS, *, hits, log_q, kind):
    s = samples_of(labels, ids, hidden.dtype)
    rows = sampled.gather_rows(table, labels, s, bias=bias)
    flags = {"remove_accidental_hits": hits, "subtract_log_q": log_q}
    if kind == "softmax":
        nll = sampled.sampled_softmax_stats(hidden, labels, s, rows, **flags).nll
        return nll.mean(-1) if labels.ndim == hidden.ndim else nll
    return sampled.nce_loss(hidden, labels, s, rows, **flags)


@pytest.mark.parametrize("kind", ["softmax", "nce"])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:, 0]], ids=["three", "one"])
def test_values_and_gradients_are_those_of_tensorflow(kind, labels):
    settings = [(True, True), (False, False), (True, False)][: 1 + labels.ndim]
    weights = RNG.normal(size=(len(settings), N))  # one for each loss, all in one gradient

    def run(of, dtype):
        def total(hidden, table, bias):
            losses = [
                of(hidden, table, bias, labels, hits=hits, log_q=log_q, kind=kind)
                for hits, log_q in settings
            ]
            return (jnp.stack(losses) * weights.astype(dtype)).sum(), losses

        arguments = (jnp.asarray(x, dtype) for x in (HIDDEN, TABLE, BIAS))
        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arguments)

    got = run(ours, np.float32)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wanted = run(textbook, np.float64)
        wide = run(ours, np.float64) if kind == "softmax" else wanted
    for ours32, ours64, truth in zip(*map(jax.tree.leaves, (got, wide, wanted)), strict=True):
        scale = np.abs(truth).max()
        np.testing.assert_allclose(ours32, truth, rtol=2e-5, atol=2e-5 * scale)
        assert ours64.dtype == np.float64
        np.testing.assert_allclose(ours64, truth, rtol=1e-10, atol=1e-12 * scale)


def test_all_classes_are_the_full_softmax_to_its_own_accuracy():
    """Confident, hopeless and flat rows; an offset of 10^6; exact where dense is exact."""
    margins = np.array([[30.0, 0, 0, 0, 0], [0, 87, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 60, 1]])
    labels = np.array([0, 1, 4, 0])
    samples = sampled.all_classes(labels, num_classes=5)

    def losses(s):
        smoothed = jaxent.smoothed_nll(s, label_smoothing=0.1)
        return jaxent.nll(s), jaxent.z_loss(s), jaxent.focal(s, gamma=2.0), smoothed

    @jax.jit
    def of(offset):
        def stats(rows):
            return sampled.sampled_softmax_stats(jnp.asarray(margins), labels, samples, rows)

        bias = jnp.full(5, offset)
        rows = sampled.gather_rows(jnp.eye(5), labels, samples, bias=bias)
        gradient, s = jax.grad(lambda r: (stats(r).nll.sum(), stats(r)), has_aux=True)(rows)
        return s.nll, gradient.sampled_bias, losses(s)

    dense = jax.jit(lambda x: losses(jaxent.softmax_stats(x, labels)))(jnp.asarray(margins))
    nll, gradient, found = of(0.0)
    for got, wanted in zip(found, dense, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=3e-6)
    moved_nll, moved_gradient, _ = of(1e6)
    np.testing.assert_array_equal(moved_nll, nll)
    np.testing.assert_array_equal(moved_gradient, gradient)


def test_negatives_of_each_example_and_more_batch_axes():
    """Own ids an example; [2, 2, D] and mapped examples are the same examples."""
    h, table, bias = (jnp.asarray(x, jnp.float32) for x in (HIDDEN, TABLE, BIAS))
    own_ids = RNG.integers(0, V, (N, S)).astype(np.int64)

    def of(h, labels, ids, kind):
        return ours(h, table, bias, labels, ids, hits=True, log_q=True, kind=kind)

    for kind, labels in (("softmax", LABELS), ("nce", LABELS[:, 1])):

        @jax.jit
        def run(h, labels, kind=kind):
            own = of(h, labels, own_ids, kind)
            alone = jax.vmap(lambda h, y, ids: of(h, y, ids, kind))(h, labels, own_ids)
            deep = [x.reshape(2, 2, *x.shape[1:]) for x in (h, labels)]
            deep = of(*deep, IDS, kind), of(*deep, own_ids.reshape(2, 2, S), kind)
            return own, alone, of(h, labels, IDS, kind), *(x.ravel() for x in deep)

        own, alone, shared, deep, deep_own = run(h, labels)
        for got in (alone, deep_own):
            np.testing.assert_allclose(got, own, rtol=1e-5)
        np.testing.assert_allclose(deep, shared, rtol=1e-5)
        assert (np.abs(own - shared) > 1e-3).any()


# --- masks and bad labels -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["softmax", "nce"])
def test_masked_labels_are_inert_whatever_they_hold(kind):
    """A variable number of labels: the same as the labels that are left, alone."""
    where = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0]], bool)
    h, table, bias = (jnp.asarray(x, jnp.float32) for x in (HIDDEN, TABLE, BIAS))
    labels = np.where(where, LABELS, -100)
    shared = kind == "nce"  # otherwise, negatives of each example, which may be inert too
    own = samples_of(LABELS, IDS if shared else np.broadcast_to(IDS, (N, S)))

    def total(h, rows, q):
        s = own._replace(expected_true=q)
        if kind == "nce":
            losses = sampled.nce_loss(h, labels, s, rows, where=where)
        else:
            nll = sampled.sampled_softmax_stats(h, labels, s, rows, where=where).nll
            losses = jax.vmap(jaxent.weighted_mean)(nll, where)
        return losses.sum(), losses

    @jax.jit
    def derivatives(*x):
        curvature = jax.jacfwd(jax.grad(lambda h: total(h, *x[1:])[0]))(x[0])
        return *jax.grad(total, (0, 1), has_aux=True)(*x), curvature

    def truth(h):
        options = {"hits": kind == "softmax", "log_q": True, "kind": kind}
        losses = textbook(h, TABLE, BIAS, LABELS, where=where, **options)
        return jnp.where(where.any(-1), losses, 0).sum(), jnp.where(where.any(-1), losses, 0)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        d_truth, losses_truth = jax.jit(jax.grad(truth, has_aux=True))(jnp.asarray(HIDDEN))
    clean = sampled.gather_rows(table, LABELS, own, bias=bias)
    example = where.any(-1)
    for filler in (np.nan, np.inf, 1e30):
        rows = sampled.Rows(
            jnp.where(where[..., None], clean.true, filler),
            clean.sampled if shared else jnp.where(example[:, None, None], clean.sampled, filler),
            jnp.where(where, clean.true_bias, filler),
            clean.sampled_bias
            if shared
            else jnp.where(example[:, None], clean.sampled_bias, filler),
        )
        q = jnp.where(where, own.expected_true, filler)
        h_filled = jnp.where(example[:, None], h, filler)
        (d_h, d_rows), losses, curvature = derivatives(h_filled, rows, q)
        np.testing.assert_allclose(losses, losses_truth, rtol=1e-5)
        np.testing.assert_allclose(d_h, d_truth, rtol=1e-4, atol=1e-5)
        assert losses[2] == 0 and (d_h[2] == 0).all()
        assert (curvature[2] == 0).all() and (curvature[:, :, 2] == 0).all()
        assert (d_rows.true[~where] == 0).all() and (d_rows.true_bias[~where] == 0).all()
        assert shared or ((d_rows.sampled[2] == 0).all() and (d_rows.sampled_bias[2] == 0).all())
        assert all(np.isfinite(x).all() for x in (*d_rows, d_h, curvature, losses)), filler


@pytest.mark.parametrize("kind", ["softmax", "nce"])
def test_a_label_out_of_range_poisons_its_row_and_no_other(kind):
    h, table, bias = (jnp.asarray(x, jnp.float32) for x in (HIDDEN, TABLE, BIAS))

    @jax.jit
    def derivative(h, labels):
        s = sampled.log_uniform(jax.random.key(0), labels, num_sampled=4, num_classes=V)
        rows = sampled.gather_rows(table, labels, s, bias=bias)
        wrapped = rows._replace(true=table[labels % V], true_bias=bias[labels % V])

        def losses(h, rows):
            if kind == "nce":
                return sampled.nce_loss(h, labels, s, rows)
            return sampled.sampled_softmax_stats(h, labels, s, rows, subtract_log_q=False).nll

        return [jax.vjp(lambda h, r=r: losses(h, r), h) for r in (rows, wrapped)]

    for bad in (V, -1, 300):
        labels = LABELS[:, 1].copy()
        labels[2] = bad
        for value, pull in derivative(h, labels):
            (gradient,) = pull(jnp.ones(N))
            poisoned = np.arange(N) == 2
            np.testing.assert_array_equal(np.isnan(value), poisoned)
            np.testing.assert_array_equal(np.isnan(gradient).all(-1), poisoned)
            np.testing.assert_array_equal(np.isnan(gradient).any(-1), poisoned)


# --- transformations, dtypes, programs ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["softmax", "nce"])
def test_every_derivative_agrees(kind):
    """First order in four modes, products with the Hessian in three."""
    options = {"hits": True, "log_q": True, "kind": kind}
    x, along = (RNG.normal(size=N * D + V * D) for _ in range(2))

    def first_and_second(of, dtype):
        def total(x):
            h, table = x[: N * D].reshape(N, D), x[N * D :].reshape(V, D)
            return of(h, table, jnp.asarray(BIAS, dtype), LABELS, **options).sum()

        def slope(x):
            return jax.jvp(total, (x,), (along.astype(dtype),))[1]

        def all_of(x):
            v, gradient = jnp.asarray(along, dtype), jax.grad(total)(x)
            first = [gradient, jax.jacfwd(total)(x)]
            first.append(jax.vmap(jax.linearize(total, x)[1])(jnp.eye(x.size, dtype=dtype)))
            second = [jax.jvp(jax.grad(total), (x,), (v,))[1], jax.grad(slope)(x)]
            second.append(jax.grad(lambda x: jax.grad(total)(x) @ v)(x))
            return first, second

        return all_of

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        truth = jax.jit(first_and_second(textbook, np.float64))(jnp.asarray(x))
    got = jax.jit(first_and_second(ours, np.float32))(jnp.asarray(x, np.float32))
    for order, rtol in ((0, 1e-4), (1, 1e-3)):
        wanted = truth[order][0]
        for g in got[order]:
            np.testing.assert_allclose(g, wanted, rtol=rtol, atol=0.1 * rtol * np.abs(wanted).max())


def test_narrow_inputs_give_float32_losses_and_gradients_of_their_own_dtype(dtype=jnp.bfloat16):
    h, table, bias = (jnp.asarray(x, dtype) for x in (HIDDEN, TABLE, BIAS))
    wide = [x.astype(jnp.float32) for x in (h, table, bias)]
    s = samples_of(LABELS)

    @jax.jit
    def run(*x):
        def total(*x):
            rows = sampled.gather_rows(x[1], LABELS, s, bias=x[2])
            nce = sampled.nce_loss(x[0], LABELS, s, rows)
            losses = sampled.sampled_softmax_stats(x[0], LABELS, s, rows).nll.sum(-1) + nce
            return losses.sum(), losses

        return jax.grad(total, (0, 1, 2), has_aux=True)(*x)

    gradients, losses = run(h, table, bias)
    wanted, wide_losses = run(*wide)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, wide_losses, rtol=1e-5)
    eps = 4 * float(jnp.finfo(dtype).eps)  # one rounding a gathered row, then their sum
    for got, truth in zip(gradients, wanted, strict=True):
        assert got.dtype == dtype
        got = got.astype(jnp.float32)
        np.testing.assert_allclose(got, truth, rtol=eps, atol=eps * np.abs(truth).max())
    mixed_gradients, mixed = run(h, *wide[1:])
    np.testing.assert_allclose(mixed, losses, rtol=1e-5)
    assert [g.dtype for g in mixed_gradients] == [dtype, jnp.float32, jnp.float32]


def test_no_tracer_leaks(checking_leaks):
    h, table, bias = (jnp.asarray(x, jnp.float32) for x in (HIDDEN, TABLE, BIAS))
    step = jax.jit(lambda *a: sparse_step(*a, num_sampled=2))
    step.trace(table, bias, h, LABELS[:, 0], KEY)
    nce = jax.grad(lambda h: ours(h, table, bias, LABELS, hits=True, log_q=True, kind="nce").sum())
    jax.jit(nce).trace(h)
    table = TABLES["skewed"]
    jax.jit(lambda k: sampled.unigram(k, LABELS, table, num_sampled=2)).trace(KEY)


def sparse_step(table, bias, hidden, labels, key, num_sampled=64):
    samples = sampled.log_uniform(key, labels, num_sampled=num_sampled, num_classes=table.shape[0])
    rows = sampled.gather_rows(table, labels, samples, bias=bias)

    def loss(hidden, rows):
        s = sampled.sampled_softmax_stats(hidden, labels, samples, rows)
        return jaxent.weighted_mean(jaxent.nll(s))

    d_hidden, d_rows = jax.grad(loss, (0, 1))(hidden, rows)
    g = sampled.row_gradient(labels, samples, d_rows)
    table = table.at[g.ids].add(-0.1 * g.rows, mode="drop")
    return table, bias.at[g.ids].add(-0.1 * g.bias, mode="drop"), d_hidden


def test_a_step_neither_stores_nor_computes_anything_of_the_tables_size():
    def program(num_classes):
        shapes = [(num_classes, 32), (num_classes,), (128, 32)]
        arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
        labels = jax.ShapeDtypeStruct((128,), jnp.int32)
        step = jax.jit(sparse_step, donate_argnums=(0, 1))
        return step.lower(*arguments, labels, jax.random.key(0)).compile()

    small, large = program(10**4), program(10**6)
    assert large.memory_analysis().temp_size_in_bytes < 1.1 * (
        small.memory_analysis().temp_size_in_bytes
    )
    assert large.memory_analysis().alias_size_in_bytes >= 4 * 33 * 10**6  # updated in place
    assert large.cost_analysis()["flops"] < 1.1 * small.cost_analysis()["flops"]


def test_ids_and_rows_are_the_gradient_of_the_table():
    h, table, bias = (jnp.asarray(x, jnp.float32) for x in (HIDDEN, TABLE, BIAS))
    where = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 0]], bool)
    labels = np.where(where.any(-1, keepdims=True), LABELS, -100)
    s = samples_of(LABELS)

    def of_rows(rows):
        return sampled.sampled_softmax_stats(h, labels, s, rows, where=where).nll.sum()

    def of_table(table, bias):
        return of_rows(sampled.gather_rows(table, labels, s, bias=bias))

    @jax.jit
    def run(table, bias):
        d_rows = jax.grad(of_rows)(sampled.gather_rows(table, labels, s, bias=bias))
        g = sampled.row_gradient(labels, s, d_rows, where=where)
        once = sampled.sum_duplicates(g)
        sums = [
            (
                jnp.zeros([V, D]).at[x.ids].add(x.rows, mode="drop"),
                jnp.zeros(V).at[x.ids].add(x.bias, mode="drop"),
            )
            for x in (g, once)
        ]
        return jax.grad(of_table, (0, 1))(table, bias), sums, once.ids

    wanted, sums, ids = run(table, bias)
    used = ids[ids < V].tolist()
    assert sorted(set(used)) == used
    assert set(used) == {*LABELS[where].tolist(), *IDS.tolist()}
    for got in sums:
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_sharded_batch():
    h, table, bias = (jnp.asarray(x, jnp.float32) for x in (HIDDEN, TABLE, BIAS))
    where = np.array([True, True, False, True])

    def of(h, table, bias, labels, where):
        s = sampled.log_uniform(KEY, labels, num_sampled=2, num_classes=V)
        rows = sampled.gather_rows(table, labels, s, bias=bias)
        stats = sampled.sampled_softmax_stats(h, labels, s, rows, where=where)
        nce = sampled.nce_loss(h, labels, s, rows, where=where)
        t = sampled.unigram(KEY, labels, TABLES["skewed"], num_sampled=2, unique=False)
        losses = jaxent.smoothed_nll(stats, label_smoothing=0.1) + nce
        return jaxent.weighted_mean(losses, where), (losses, s.expected_true, t.expected_true)

    step = jax.jit(jax.value_and_grad(of, (0, 1, 2), has_aux=True))
    labels = LABELS[:, 0]
    wanted = step(h, table, bias, labels, where)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
        with jax.set_mesh(mesh):
            place = NamedSharding(mesh, PartitionSpec("data"))
            sharded = [jax.device_put(x, place) for x in (h, labels, where)]
            got = step(sharded[0], table, bias, *sharded[1:])
        for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
            np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=1e-6)


def test_export_of_a_step():
    arguments = [jnp.asarray(x, jnp.float32) for x in (TABLE, BIAS, HIDDEN)]
    step = jax.jit(lambda *a: sparse_step(*a, num_sampled=2))
    raw = jax.random.key_data(jax.random.key(0))
    exported = jax.export.export(step)(*arguments, LABELS[:, 0], raw)
    got = exported.call(*arguments, LABELS[:, 0], raw)
    for a, b in zip(got, step(*arguments, LABELS[:, 0], raw), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# --- estimates converge ---------------------------------------------------------------------------

WORDS = 60
WORD_LOGITS = jnp.asarray(np.random.default_rng(3).normal(size=WORDS) * 2 - np.arange(WORDS) / 20)
WORD_LABEL = 7


def over_samples(loss, num_sampled, runs, sampler, *, unique, logits=WORD_LOGITS):
    """The mean loss, and its mean gradient in the logits, over many samples."""

    def one(key):
        label = jnp.array(WORD_LABEL)
        s = sampler(key, label, num_sampled=num_sampled, num_classes=WORDS, unique=unique)

        def of(logits):
            rows = sampled.gather_rows(logits[:, None], label, s)
            return loss(jnp.ones(1), label, s, rows)

        return jax.value_and_grad(of)(logits)

    keys = jax.random.split(jax.random.key(8), runs)
    return jax.tree.map(lambda x: np.asarray(x.mean(0)), jax.jit(jax.vmap(one))(keys))


def tensorflow(hidden, label, s, rows):
    return sampled.sampled_softmax_stats(hidden, label, s, rows).nll


def label_for_certain(hidden, label, s, rows):
    """The label is in the sum for certain: its expected count is 1."""
    s = s._replace(expected_true=jnp.ones_like(s.expected_true))
    return sampled.sampled_softmax_stats(hidden, label, s, rows).nll


def shrinks(errors, last):
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < last, errors


@pytest.mark.parametrize(
    ("loss", "unique"), [(tensorflow, True), (label_for_certain, False)], ids=["unique", "certain"]
)
def test_sampled_softmax_tends_to_the_full_softmax_from_below(loss, unique):
    full, gradient = jax.value_and_grad(jaxent.cross_entropy)(WORD_LOGITS, jnp.array(WORD_LABEL))
    sizes = ((3, 2000), (24, 1000), (59, 200)) if unique else ((3, 2000), (60, 1000), (5000, 60))
    found = [over_samples(loss, *size, sampled.log_uniform, unique=unique) for size in sizes]
    below = [float(full - value) for value, _ in found]
    assert min(below[:2]) > 0
    shrinks(np.abs(below), 0.02)
    shrinks([np.abs(g - gradient).max() for _, g in found], 0.02)


def test_with_replacement_the_gradient_converges_if_hits_are_kept():
    """The loss does not: a label expected often has its logit lowered by the log of that."""

    def loss(*arguments):
        return sampled.sampled_softmax_stats(*arguments, remove_accidental_hits=False).nll

    full, gradient = jax.value_and_grad(jaxent.cross_entropy)(WORD_LOGITS, jnp.array(WORD_LABEL))
    value, found = over_samples(loss, 3000, 100, sampled.log_uniform, unique=False)
    np.testing.assert_allclose(found, gradient, atol=0.02)
    p = np.log1p(1 / (WORD_LABEL + 1)) / np.log(WORDS + 1)
    np.testing.assert_allclose(value, full + np.log(3000 * p), rtol=0.02)


def test_the_gradient_of_nce_tends_to_that_of_the_softmax():
    """For a normalised model, as Mnih and Teh show."""
    logits = jax.nn.log_softmax(WORD_LOGITS)
    gradient = jax.grad(jaxent.cross_entropy)(logits, jnp.array(WORD_LABEL))
    options = {"unique": False, "logits": logits}
    sizes = (8, 2000), (100, 1000), (6000, 50)
    found = [over_samples(sampled.nce_loss, *n, sampled.uniform, **options) for n in sizes]
    shrinks([np.abs(g - gradient).max() for _, g in found], 0.02)


# --- in-batch negatives ---------------------------------------------------------------------------


def test_in_batch_negatives():
    ids = np.array([5, 2, 5, 9], np.int8)
    q = np.array([0.4, 0.1, 0.4, 0.02], np.float32)
    where = np.array([True, True, True, False])
    queries, items = HIDDEN.astype(np.float32), TABLE[:N].astype(np.float32)
    items[3], queries[3] = np.nan, np.inf

    @jax.jit
    def run(queries, items):
        def total(queries, items):
            expected = jnp.where(where, q, -1)
            s = sampled.in_batch_softmax_stats(queries, items, ids, expected=expected, where=where)
            return s.nll.sum(), s.nll

        plain = sampled.in_batch_softmax_stats(queries[:3], items[:3]).nll
        return *jax.grad(total, (0, 1), has_aux=True)(queries, items), plain

    gradients, nll, plain = run(queries, items)
    logits = HIDDEN @ TABLE[:N].T - np.log(q)
    logits[0, 2] = logits[2, 0] = -np.inf
    truth = np.log(np.exp(logits[:3, :3]).sum(-1)) - np.diag(logits)[:3]
    np.testing.assert_allclose(nll, [*truth, 0], rtol=1e-5)
    for x in gradients:
        assert np.isfinite(x).all() and (x[3] == 0).all() and (x[:3] != 0).all()
    p = np.exp(HIDDEN[:3] @ TABLE[:3].T)
    np.testing.assert_allclose(plain, -np.log(np.diag(p) / p.sum(-1)), rtol=1e-5)


# --- what raises ----------------------------------------------------------------------------------

GOOD = samples_of(LABELS)
F32 = [x.astype(np.float32) for x in (HIDDEN, TABLE, BIAS)]
ROWS = sampled.gather_rows(F32[1], LABELS, GOOD)


def stats(hidden=F32[0], labels=LABELS, samples=GOOD, rows=ROWS, where=None):
    return sampled.sampled_softmax_stats(hidden, labels, samples, rows, where=where)


FAULTS = [
    (lambda: sampled.uniform(KEY, [1], num_sampled=6, num_classes=5), "at most 5.*unique=False"),
    (lambda: sampled.uniform(KEY, [1], num_sampled=0, num_classes=5), "num_sampled.*at least 1"),
    (
        lambda: sampled.uniform(KEY, [1], num_sampled=2.0, num_classes=5),
        "num_sampled must be a Python int; got float",
    ),
    (
        lambda: jax.eval_shape(
            lambda n: sampled.uniform(KEY, [1], num_sampled=n, num_classes=5), jnp.array(2)
        ),
        "num_sampled must be a Python int; got a traced value: mark it static",
    ),
    (
        lambda: sampled.log_uniform(0, [1], num_sampled=2, num_classes=5),
        r"key must be a key of jax.random, such as jax.random.key\(0\); got int\.",
    ),
    (
        lambda: sampled.unigram(np.array([0, 1]), [1], TABLES["skewed"], num_sampled=2),
        r"key must be a key of jax.random, such as .*; got int64\[2\]",
    ),
    (
        lambda: sampled.uniform(jax.random.split(KEY), [1], num_sampled=2, num_classes=5),
        r"key must be one key of jax.random; got key<fry>\[2\]\..*jax.vmap",
    ),
    (lambda: sampled.log_uniform(KEY, [1.0], num_sampled=2, num_classes=5), "labels must be int"),
    (lambda: sampled.unigram(KEY, [1], [1, 0, 1], num_sampled=3), "at most 2.*positive"),
    (lambda: sampled.unigram(KEY, [1], [1, 0, 1], num_sampled=4), "at most 3"),
    (lambda: sampled.unigram_table([1.0, -1.0]), "counts must be non-negative"),
    (lambda: sampled.unigram_table([[1.0]]), r"counts must have shape \[classes\]"),
    (lambda: sampled.unigram_table([1.0], num_reserved_ids=-1), "num_reserved_ids"),
    (lambda: sampled.observe(TABLES["skewed"], [1]), "learned_unigram"),
    (lambda: sampled.observe(TABLES["learned"], [1, 5]), r"labels\[1\] = 5"),
    (lambda: sampled.gather_rows(F32[2], LABELS, GOOD), r"table must have shape \[num_classes, D"),
    (
        lambda: sampled.gather_rows(F32[1], LABELS, GOOD, bias=F32[2][:3]),
        "bias must have the shape",
    ),
    (lambda: stats(labels=LABELS[:3]), "labels must have the shape of hidden"),
    (lambda: stats(labels=LABELS.astype(float)), "labels must be integer"),
    (lambda: stats(hidden=LABELS), "hidden must be floating-point"),
    (lambda: stats(where=np.ones(N, bool)), "where must have the shape of labels"),
    (lambda: stats(rows=ROWS._replace(true=ROWS.true[:, 0])), "rows.true must have the shape"),
    (lambda: stats(rows=ROWS._replace(sampled=ROWS.sampled.T)), "rows.sampled.*rows.sampled.T"),
    (lambda: stats(rows=ROWS._replace(true_bias=F32[2])), "both true_bias and sampled_bias"),
    (lambda: stats(samples=GOOD._replace(ids=IDS[:2])), "samples.expected_sampled must have"),
    (lambda: stats(samples=GOOD._replace(expected_true=jnp.ones(N))), "samples.expected_true"),
    (lambda: stats(samples=GOOD._replace(ids=IDS[:, None])), "one list an example"),
    (lambda: sampled.in_batch_softmax_stats(F32[0], F32[1]), "candidates must have the shape"),
]


@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_faults_name_the_argument(fault):
    call, message = FAULTS[fault]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("num_classes", [16, 200])  # sampled by arrival, and by draws
def test_each_device_its_own_sample_in_shard_map(num_classes, unique):
    """With a key a device, a device's sample is that of its key alone."""
    table = sampled.unigram_table(1 / (1 + jnp.arange(num_classes, dtype=jnp.float32)))
    labels, keys = jnp.arange(4, dtype=jnp.int32), jax.random.split(KEY, 4)
    options = {"num_sampled": 6, "unique": unique}
    samplers = {
        "uniform": lambda k, y: sampled.uniform(k, y, num_classes=num_classes, **options),
        "log": lambda k, y: sampled.log_uniform(k, y, num_classes=num_classes, **options),
        "unigram": lambda k, y: sampled.unigram(k, y, table, **options),
    }
    place = PartitionSpec("data")
    for name, sampler in samplers.items():

        def of_shard(keys, sampler=sampler):
            return jax.tree.map(lambda x: x[None], sampler(keys[0], labels))

        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        split = jax.shard_map(of_shard, mesh=mesh, in_specs=place, out_specs=place)
        got = jax.jit(split)(keys)
        wanted = jax.tree.map(lambda *x: np.stack(x), *(sampler(k, labels) for k in keys))
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=name)


def test_no_distribution_is_taken_for_another():
    """To JAX's caches, too."""
    some = samplers._Uniform(8), samplers._LogUniform(8), sampled.unigram_table(jnp.ones(8))
    structures = [jax.tree.structure(x) for x in some]
    assert all(a != b for a, b in itertools.combinations(structures, 2))
