"""A linear head without its logits is the head with its logits, in float64: values, derivatives of
every order and operand, bad rows; and what it may cost in memory, matmuls and messages.
"""

import math
import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxent
from jaxent.linear import inputs, linear_cross_entropy, linear_stats, reference

# --- the truth: float64, all logits, plain autodiff, nothing of jaxent ----------------------------


def true_losses(p, labels, logits):
    """Smoothed cross-entropy + focal loss + z-loss."""
    log_z = jax.nn.logsumexp(logits, -1)
    log_p = logits - log_z[..., None]
    nll = -jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    smooth = (1 - p["epsilon"]) * nll - p["epsilon"] * log_p.mean(-1)
    focal = (1 - jnp.exp(-nll)) ** p["gamma"] * nll
    return smooth + 0.5 * focal + 0.01 * log_z**2


def soft_cap(p, logits):
    return 5 * jnp.tanh(logits / (5 * p["temperature"])) + p["prior"][None]


def true_objective(p, labels, where):
    hidden, labels, where = (x.reshape(-1, *x.shape[2:]) for x in (p["hidden"], labels, where))
    logits = soft_cap(p, hidden @ p["head"] + p["bias"][None])
    weights = jnp.where(where, p["weights"].reshape(-1), 0)
    total = jnp.sum(weights * true_losses(p, labels, logits))
    return total / weights.sum() + 0.1 * total**2


def our_loss(p, s):
    smooth = jaxent.smoothed_nll(s, label_smoothing=p["epsilon"])
    return smooth + 0.5 * jaxent.focal(s, gamma=p["gamma"]) + 0.01 * jaxent.z_loss(s)


def finish(part):
    return part.mean() + 0.1 * part.total**2


def objective(p, labels, where, chunk_size=8):
    return finish(
        linear_cross_entropy(
            p["hidden"],
            p["head"],
            labels,
            p["weights"],
            loss=partial(our_loss, p),
            bias=p["bias"],
            where=where,
            logit_fn=partial(soft_cap, p),
            chunk_size=chunk_size,
        )
    )


def objective_of_stats(p, labels, where, chunk_size=8):
    s = linear_stats(
        p["hidden"],
        p["head"],
        labels,
        bias=p["bias"],
        where=where,
        logit_fn=partial(soft_cap, p),
        chunk_size=chunk_size,
    )
    return finish(jaxent.weighted_sum(our_loss(p, s), jnp.where(where, p["weights"], 0)))


BATCH, D, V = (3, 9), 5, 53


def problem(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    operands = {
        "hidden": rng.normal(size=(*BATCH, D)),
        "head": rng.normal(size=(D, V)),
        "bias": rng.normal(size=V),
        "weights": rng.uniform(-0.5, 2, BATCH),
        "prior": rng.normal(size=V),
        "temperature": 1.3,
        "epsilon": 0.1,
        "gamma": 1.7,
    }
    labels, where = rng.integers(0, V, BATCH), rng.random(BATCH) < 0.8
    # float32 numbers, so that all precisions are about the same problem
    operands = {k: np.asarray(np.asarray(v, np.float32), dtype) for k, v in operands.items()}
    return operands, labels.astype(np.int32), where


def inner(a, b):
    return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


TRANSFORMS = {
    "value and gradient": lambda f, v: jax.value_and_grad(f),
    "jvp": lambda f, v: lambda p: jax.jvp(f, (p,), (v,))[1],
    "forward over reverse": lambda f, v: lambda p: jax.jvp(jax.grad(f), (p,), (v,))[1],
    "reverse over forward": lambda f, v: jax.grad(lambda p: jax.jvp(f, (p,), (v,))[1]),
    "reverse over reverse": lambda f, v: jax.grad(lambda p: inner(jax.grad(f)(p), v)),
}


def in_float64(f, *args):
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        return jax.tree.map(np.asarray, jax.jit(f)(*jax.tree.map(jnp.asarray, args)))


def assert_close(got, truth, tolerance, what=""):
    """Relative to the norm of each operand's derivative, and a little to the largest of them."""
    truth = jax.tree.map(lambda x: np.asarray(x, np.float64), truth)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(truth))

    def compare(path, x, y):
        error = np.linalg.norm(np.asarray(x, np.float64) - y)
        limit = tolerance * (np.linalg.norm(y) + 1e-2 * scale)
        assert error <= limit, f"{what}{jax.tree_util.keystr(path)}: {error:.2g} > {limit:.2g}"

    jax.tree_util.tree_map_with_path(compare, got, truth)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transformation_in_every_operand(name):
    """Also in what ``loss`` and ``logit_fn`` close over."""
    p, labels, where = problem()
    v, _, _ = problem(seed=1)
    transform = TRANSFORMS[name]
    truth = in_float64(
        lambda p, v: transform(lambda p: true_objective(p, labels, where), v)(p), p, v
    )
    p, v = (jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree) for tree in (p, v))
    ours = jax.jit(
        lambda p, v: [
            transform(lambda p, f=f: f(p, labels, where), v)(p)
            for f in (objective, objective_of_stats)
        ]
    )(p, v)
    for got, what in zip(ours, ("linear_cross_entropy", "linear_stats"), strict=True):
        assert_close(got, truth, 3e-6, what)


def test_vmap_of_grad_scan_checkpoint_and_jacobians():
    p, labels, where = problem()
    many = {k: np.stack([v, 0.5 * v, -v] if k == "head" else [v] * 3) for k, v in p.items()}
    truth = in_float64(jax.vmap(jax.grad(lambda p: true_objective(p, labels, where))), many)
    scalars = "temperature", "epsilon", "gamma"
    true_hessian = in_float64(
        lambda p: jax.hessian(lambda s: true_objective(p | s, labels, where))(
            {k: p[k] for k in scalars}
        ),
        p,
    )

    def ours(p, many):
        of = lambda p: objective(p, labels, where)  # noqa: E731
        _, scanned = jax.lax.scan(lambda c, p: (c, jax.grad(jax.checkpoint(of))(p)), 0, many)
        hessian = jax.hessian(lambda s: of(p | s))({k: p[k] for k in scalars})
        return jax.vmap(jax.grad(of))(many), scanned, hessian

    p, many = (jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), t) for t in (p, many))
    mapped, scanned, hessian = jax.jit(ours)(p, many)
    assert_close(mapped, truth, 3e-6)
    assert_close(scanned, truth, 3e-6)
    assert_close(hessian, true_hessian, 1e-5)


def test_float64_is_float64_and_both_layouts_are_one():
    p, labels, where = problem()
    truth = in_float64(jax.value_and_grad(lambda p: true_objective(p, labels, where)), p)

    def flipped(p, of, **options):
        part = of(
            p["hidden"], p["head"].T, labels, where=where, bias=p["bias"],
            logit_fn=partial(soft_cap, p), classes_axis=0, chunk_size=4, **options,
        )  # fmt: skip
        return part

    def stats(p):
        losses = our_loss(p, flipped(p, linear_stats))
        return finish(jaxent.weighted_sum(losses, jnp.where(where, p["weights"], 0)))

    def total(p):
        options = {"weights": p["weights"], "loss": partial(our_loss, p)}
        return finish(flipped(p, linear_cross_entropy, **options))

    straight = in_float64(jax.value_and_grad(lambda p: objective(p, labels, where)), p)
    assert_close(straight, truth, 1e-13)
    assert_close(in_float64(jax.value_and_grad(stats), p), truth, 1e-13)
    assert_close(in_float64(jax.value_and_grad(total), p), truth, 1e-13)


# --- what other linear heads got wrong ------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [1, 7, 127, 128, 129, 2047, 2049])
def test_no_class_is_added_to_the_vocabulary(num_classes):
    """Flat logits would show it; peaked ones hide it."""
    hidden, labels = jnp.zeros((5, 4)), jnp.zeros(5, jnp.int32)
    head = jnp.ones((4, num_classes))
    for bias in (0.0, -1e4):
        losses = linear_stats(
            hidden, head, labels, bias=jnp.full(num_classes, bias), chunk_size=2
        ).nll
        np.testing.assert_allclose(losses, np.log(num_classes), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_no_worse_than_full_logits_of_the_same_dtype_however_many_chunks(dtype):
    """Error against float64, value and gradients, 1,024 chunks of one row as well as one chunk."""
    rng = np.random.default_rng(3)
    n, d, v = 1024, 16, 37
    labels = rng.integers(0, v, n).astype(np.int32)

    def truth(h, w):
        logits = h @ w
        picked = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - picked)

    def of(form, **options):
        return jax.value_and_grad(lambda h, w: form(h, w, labels, **options).mean(), (0, 1))

    def of_stats(h, w):
        return linear_stats(h, w, labels, chunk_size=1).nll.mean()

    @jax.jit
    def run(h, w):
        return [
            of(reference.linear_cross_entropy)(h, w),
            of(linear_cross_entropy, chunk_size=1)(h, w),
            of(linear_cross_entropy, chunk_size=1024)(h, w),
            jax.value_and_grad(of_stats, (0, 1))(h, w),
        ]

    def error(x, y):
        return np.linalg.norm(np.asarray(x, np.float64) - y) / np.linalg.norm(y)

    eps = float(jnp.finfo(dtype).eps)
    for scale in (1e-3, 1.0, 40.0):  # flat logits; usual ones; up to 640 and peaked
        hidden = jnp.asarray(rng.uniform(-1, 1, (n, d)) + 0.1, dtype)
        head = jnp.asarray(rng.normal(size=(d, v)) * scale, dtype)
        wide = [np.asarray(x, np.float64) for x in (hidden, head)]
        assert scale < 40 or 300 < np.abs(wide[0] @ wide[1]).max() < 900
        exact, exact_grads = in_float64(jax.value_and_grad(truth, (0, 1)), *wide)
        full, *ours = run(hidden, head)
        for value, grads in ours:
            assert value.dtype == jnp.float32
            assert [g.dtype for g in grads] == [dtype, dtype]
            assert error(value, exact) <= 2 * error(full[0], exact) + 4e-7
            for got, other, true in zip(grads, full[1], exact_grads, strict=True):
                assert error(got, true) <= 1.2 * error(other, true) + 0.3 * eps + 1e-6


def test_a_common_offset_changes_nothing():
    rng = np.random.default_rng(4)
    hidden, head = rng.integers(-8, 8, (9, 4)) / 2, rng.integers(-8, 8, (4, 21)) / 2
    labels = jnp.asarray(rng.integers(0, 21, 9))
    hidden, head = (jnp.asarray(x, jnp.float32) for x in (hidden, head))

    def of(offset):
        def loss(s):
            return jaxent.smoothed_nll(s, label_smoothing=0.1)

        return jax.value_and_grad(
            lambda h, w: (
                linear_cross_entropy(
                    h, w, labels, bias=jnp.full(21, offset), loss=loss, chunk_size=4
                ).total
            ),
            (0, 1),
        )(hidden, head)

    plain = of(0.0)
    for offset in (1e4, -1e4, 2.0**20):  # of which the logits, quarters, lose nothing
        assert_close(of(offset), plain, 1e-6)


def test_gradients_that_nobody_scales_by_one():
    """A squared loss; a random cotangent for every row; an uneven mask; a mask of nothing."""
    p, labels, _ = problem(np.float32)
    cotangents = jnp.asarray(np.random.default_rng(5).normal(size=BATCH), jnp.float32)

    def rows(of):
        return lambda h, w: jnp.sum(cotangents * of(h, w, labels).nll ** 2)

    def both(h, w):
        return [
            jax.grad(rows(of), (0, 1))(h, w)
            for of in (partial(linear_stats, chunk_size=2), reference.linear_stats)
        ]

    ours, full = jax.jit(both)(p["hidden"], p["head"])
    assert_close(ours, full, 1e-6)

    def nothing(h, w):
        part = linear_cross_entropy(h, w, labels, where=jnp.zeros(BATCH, bool), chunk_size=2)
        return part.mean(), part

    (mean, part), grads = jax.jit(jax.value_and_grad(nothing, (0, 1), has_aux=True))(
        p["hidden"], p["head"]
    )
    assert (float(mean), float(part.total), float(part.weight)) == (0, 0, 0)
    assert not any(np.any(g) for g in grads)


def test_the_weight_of_a_part():
    p, labels, where = problem(np.float32)
    of = partial(linear_cross_entropy, p["hidden"], p["head"], labels, chunk_size=8)
    assert float(of().weight) == 27
    assert float(of(where=where).weight) == where.sum()
    assert float(of(where).weight) == where.sum()  # a mask as weights
    np.testing.assert_allclose(of(p["weights"]).weight, p["weights"].sum(), rtol=1e-6)
    got, want = of(p["weights"], where=where), np.where(where, p["weights"], 0)
    np.testing.assert_allclose(got.weight, want.sum(), rtol=1e-6)
    losses = np.asarray(linear_stats(p["hidden"], p["head"], labels).nll)
    np.testing.assert_allclose(of().total, losses.sum(), rtol=1e-6)  # no row is added
    part = of(where=where, loss=lambda s: s.nll + 1)  # nor is the loss of nothing
    np.testing.assert_allclose(part.total, (losses + 1)[where].sum(), rtol=1e-6)
    np.testing.assert_allclose(got.total, (want * losses).sum(), rtol=1e-5)


BAD_LABELS = [-1, -100, V, V + 1, 2**31 - 1]


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint32])
def test_a_label_out_of_range_is_nan_in_its_own_row(dtype):
    info = jnp.iinfo(dtype)
    bad = [y for y in BAD_LABELS if info.min <= y <= info.max]
    labels = jnp.asarray([5, *bad, 52, 0], dtype)
    rng = np.random.default_rng(6)
    hidden = jnp.asarray(rng.normal(size=(len(labels), D)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    wrong = np.array([False] + [True] * len(bad) + [False, False])

    @jax.jit
    def run(hidden, head):
        total = lambda h, **o: linear_cross_entropy(h, head, labels, chunk_size=2, **o).total  # noqa: E731
        losses = linear_stats(hidden, head, labels, chunk_size=2).nll
        value, grads = jax.value_and_grad(total)(hidden)
        masked = jax.value_and_grad(lambda h: total(h, where=jnp.asarray(~wrong)))(hidden)
        weights = jnp.asarray(~wrong, jnp.float32)  # padding of weight 0 is no fault
        weighted = jax.value_and_grad(lambda h: total(h, weights=weights))(hidden)
        return losses, value, grads, masked, weighted

    losses, value, grads, masked, weighted = run(hidden, head)
    np.testing.assert_array_equal(np.isnan(losses), wrong)
    np.testing.assert_array_equal(np.isnan(grads).all(-1), wrong)
    np.testing.assert_array_equal(np.isnan(grads).any(-1), wrong)
    assert np.isnan(value)
    for total, d_hidden in (masked, weighted):
        np.testing.assert_allclose(total, losses[~wrong].sum(), rtol=1e-6)
        assert not np.any(d_hidden[wrong])
        np.testing.assert_array_equal(d_hidden[~wrong], grads[~wrong])


def test_an_inert_row_adds_nothing_whatever_it_holds():
    p, labels, where = problem(np.float32)

    @jax.jit
    def run(p, labels):
        return [
            jax.value_and_grad(lambda p, f=f: f(p, labels, where))(p)
            for f in (objective, objective_of_stats)
        ]

    clean = run(p, labels)
    for what in (np.nan, np.inf, -np.inf):
        hidden = np.where(where[..., None], p["hidden"], what).astype(np.float32)
        weights = np.where(where, p["weights"], what).astype(np.float32)
        dirty = run(p | {"hidden": hidden, "weights": weights}, np.where(where, labels, -100))
        jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_a_weight_of_zero_drops_an_infinite_loss_and_a_class_may_be_impossible():
    hidden = jnp.ones((4, 2))
    head = jnp.asarray(np.random.default_rng(7).normal(size=(2, 6)), jnp.float32)
    impossible = jnp.asarray([0, 0, -jnp.inf, 0, 0, 0])
    labels, weights = jnp.array([0, 2, 5, 2]), jnp.array([1.0, 0, 2, 0])

    def total(head, of=linear_cross_entropy, **options):
        return of(
            hidden, head, labels, weights, logit_fn=lambda z: z + impossible[None], **options
        ).total

    ours = jax.value_and_grad(partial(total, chunk_size=3))(head)
    full = jax.value_and_grad(partial(total, of=reference.linear_cross_entropy))(head)
    assert np.isfinite(ours[0])
    assert not np.any(ours[1][:, 2])
    assert_close(ours, full, 1e-6)


def test_predictions_come_from_the_same_pass():
    p, labels, where = problem(np.float32)
    options = {"bias": p["bias"], "logit_fn": partial(soft_cap, p), "predictions": True}

    @jax.jit
    def run(p):
        def of(p):
            part, first = linear_cross_entropy(p["hidden"], p["head"], labels, **options)
            return part.mean(), first

        grads, first = jax.grad(of, has_aux=True)(p)
        s, second = linear_stats(p["hidden"], p["head"], labels, where=where, **options)
        jvp = jax.jvp(lambda h: linear_stats(h, p["head"], labels, **options)[0].nll.sum(),
                      (p["hidden"],), (p["hidden"],))  # fmt: skip
        return grads, first, s, second, jvp

    _, first, _, second, _ = run(p)
    logits = reference.linear_logits(jnp.asarray(p["hidden"]), jnp.asarray(p["head"]))
    best = soft_cap(p, (logits + p["bias"][None, None]).reshape(-1, V)).argmax(-1).reshape(BATCH)
    np.testing.assert_array_equal(first, best)
    np.testing.assert_array_equal(second, np.where(where, best, 0))
    assert first.dtype == second.dtype == jnp.int32
    ties = linear_stats(jnp.zeros((3, D)), p["head"], jnp.zeros(3, int), predictions=True)[1]
    np.testing.assert_array_equal(ties, 0)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 1, 3)])
def test_any_batch_shape(shape):
    hidden, head = jnp.ones((*shape, 2)), jnp.asarray([[1.0, 2.0, 4.0], [0.0, 0.5, 1.0]])
    labels = jnp.ones(shape, jnp.int32)
    s, guess = linear_stats(hidden, head, labels, predictions=True, chunk_size=2)
    want = -jax.nn.log_softmax(jnp.asarray([1.0, 2.5, 5.0]))[1]
    assert s.nll.shape == guess.shape == shape
    np.testing.assert_allclose(s.nll, np.full(shape, want), rtol=1e-6)
    grad = jax.grad(lambda h: linear_cross_entropy(h, head, labels, chunk_size=2).total)(hidden)
    assert grad.shape == hidden.shape


# --- programs: memory, matmuls, traces ------------------------------------------------------------

N, BIG_D, BIG_V = 512, 64, 3001


def shapes(dtype=jnp.float32):
    struct = jax.ShapeDtypeStruct
    return struct((N, BIG_D), dtype), struct((BIG_D, BIG_V), dtype), struct((N,), jnp.int32)


def total(chunk_size, **options):
    return lambda h, w, y: linear_cross_entropy(h, w, y, chunk_size=chunk_size, **options).mean()


def mean_nll(chunk_size):
    return lambda h, w, y: linear_stats(h, w, y, chunk_size=chunk_size).nll.mean()


def hvp(f):
    return lambda h, w, y: jax.jvp(lambda h, w: jax.grad(f, (0, 1))(h, w, y), (h, w), (h, w))[1]


def twice_reverse(f):
    def slope(h, w, y):
        return sum(jnp.sum(jnp.square(g)) for g in jax.grad(f, (0, 1))(h, w, y))

    return jax.grad(slope, (0, 1))


def test_memory_is_a_chunk_of_logits_and_the_gradient_of_the_head():
    chunk = 16
    logits, head = 4 * chunk * BIG_V, 4 * BIG_D * BIG_V
    rows = 8 * 4 * N * BIG_D  # features, their gradients and copies, as float32

    def temp(f):
        compiled = jax.jit(f).lower(*shapes()).compile()
        text = compiled.as_text()
        for n in (N, f"{N // chunk},{chunk}", f"{chunk},{N // chunk}"):
            assert f"[{n},{BIG_V}]" not in text
            assert f"[{BIG_V},{n}]" not in text
        assert "scatter(" not in text
        return compiled.memory_analysis().temp_size_in_bytes

    for f in (total(chunk), mean_nll(chunk)):
        assert temp(f) <= 2 * logits + rows
        gradient = temp(jax.value_and_grad(f, (0, 1)))
        assert gradient <= 1.15 * head + 2 * logits + rows
        assert temp(hvp(f)) <= 3 * gradient
        assert temp(twice_reverse(f)) <= 5 * gradient
    assert temp(jax.grad(total(chunk))) <= 2 * logits + rows  # a frozen head has no buffer


@pytest.fixture
def unsplit(monkeypatch):
    """As on one device: these tests run on several."""
    monkeypatch.setattr(inputs, "unsplit", lambda x: True)
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_memory_at_the_default_chunk(unsplit):
    """A sixth of that of full logits; a Hessian-vector product's is not three times as much."""
    struct = jax.ShapeDtypeStruct
    n, d, v = 2048, 512, 32000
    args = struct((n, d), jnp.float32), struct((d, v), jnp.float32), struct((n,), jnp.int32)

    def temp(f):
        return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes

    ours = temp(jax.value_and_grad(total(None), (0, 1)))
    assert ours <= 4 * (n * v // 4 + d * v // 4 + 4 * n * d)  # a chunk, some blocks, rows
    assert ours <= 0.2 * 8 * n * v  # full logits and their gradient
    assert temp(hvp(total(None))) <= 3 * ours


@pytest.mark.parametrize("classes_axis", [-1, 0])
@pytest.mark.parametrize("num_classes", [640, 701, 65])  # blocks of 64, the last one overlaps
def test_blocks_of_classes_change_nothing(monkeypatch, unsplit, num_classes, classes_axis):
    rng = np.random.default_rng(5)
    hidden = jnp.asarray(rng.normal(size=(16, 6)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(6, num_classes)), jnp.float32)
    labels, where = rng.integers(0, num_classes, 16), np.arange(16) != 3

    def loss(h, w):
        part = linear_cross_entropy(
            h, w, labels, where=where, chunk_size=4, classes_axis=classes_axis
        )
        return part.mean()

    def full_logits(h, w):
        log_p = jax.nn.log_softmax(h @ (w if classes_axis else w.T))
        return -log_p[jnp.arange(16), labels][where].mean()

    def derivatives(loss, *args):
        gradient = jax.grad(loss, (0, 1))
        slope = jax.grad(lambda *args: sum(jnp.sum(g**2) for g in gradient(*args)), (0, 1))
        return gradient(*args), jax.jvp(gradient, args, args)[1], slope(*args)

    args = hidden, head if classes_axis else head.T
    truth = in_float64(partial(derivatives, full_logits), *(np.asarray(x, float) for x in args))
    whole = jax.jit(partial(derivatives, loss))(*args)
    assert_close(whole, truth, 2e-6)
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 1)
    jax.clear_caches()
    program = jax.jit(partial(derivatives, loss)).lower(*args)
    assert f"tensor<4x{num_classes}xf32>" in program.as_text()
    assert "tensor<4x64xf32>" in program.as_text()
    assert_close(program.compile()(*args), whole, 1e-6)


@pytest.mark.parametrize(
    ("matmuls", "f"),
    {
        "value": (1, total),
        "gradients": (3, lambda c: jax.value_and_grad(total(c), (0, 1))),
        "frozen head": (2, lambda c: jax.value_and_grad(total(c), 0)),
        "frozen features": (2, lambda c: jax.value_and_grad(total(c), 1)),
        "statistics": (1, mean_nll),
        "gradients of statistics": (4, lambda c: jax.value_and_grad(mean_nll(c), (0, 1))),
        "statistics, frozen head": (3, lambda c: jax.value_and_grad(mean_nll(c), 0)),
    }.values(),
)
def test_number_of_matmuls(matmuls, f):
    """XLA counts a loop's body once: times the chunks."""
    chunks = 8
    flops = jax.jit(f(N // chunks)).lower(*shapes()).compile().cost_analysis()["flops"]
    assert matmuls <= chunks * flops / (2 * N * BIG_D * BIG_V) <= matmuls + 0.8


def dots(lowered):
    return re.findall(r"stablehlo.dot_general .*: \((\S+), (\S+)\) -> (\S+)", lowered.as_text())


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_elsewhere_and_half_precision_stays_so(platform):
    """No matmul of float32 operands, and sums in float32; nothing transposes or pads the head."""
    for classes_axis in (-1, 0):
        h, w, y = shapes(jnp.bfloat16)
        w = jax.ShapeDtypeStruct(w.shape[:: 1 if classes_axis else -1], w.dtype)
        step = jax.value_and_grad(total(64, classes_axis=classes_axis), (0, 1))
        lowered = jax.jit(step).trace(h, w, y).lower(lowering_platforms=(platform,))
        found = dots(lowered)
        assert len(found) == 3
        for x, y_, out in found:
            assert x.endswith("xbf16>")
            assert y_.endswith("xbf16>")
            assert out.endswith("xf32>")
        text = lowered.as_text()
        assert "scatter" not in text
        big = rf"tensor<(?:{BIG_D}x{BIG_V}|{BIG_V}x{BIG_D})x"
        assert not re.search(rf"stablehlo\.(?:transpose|pad|concatenate)[^\n]*-> {big}", text)


def test_half_precision_statistics_multiply_in_half_precision():
    lowered = jax.jit(jax.value_and_grad(mean_nll(64), (0, 1))).lower(*shapes(jnp.bfloat16))
    found = dots(lowered)
    assert len(found) == 4
    assert all("bf16" in x and "bf16" in y for x, y, _ in found)


def test_options_are_traced_and_functions_compile_once():
    p, labels, _ = problem(np.float32)
    traces = Counter()

    @jax.jit
    def step(p):
        traces["step"] += 1

        def loss(s):
            return our_loss(p, s)

        return linear_cross_entropy(
            p["hidden"], p["head"], labels, loss=loss, logit_fn=partial(soft_cap, p)
        ).mean()

    values = [step(p | {"gamma": jnp.float32(g), "temperature": jnp.float32(g)}) for g in (1, 2)]
    assert traces["step"] == 1
    assert values[0] != values[1]

    def loss(s):
        traces["loss"] += 1
        return s.nll

    for _ in range(3):  # outside jit: one look at what it closes over a call, one compilation
        linear_cross_entropy(p["hidden"], p["head"], labels, loss=loss)
    assert traces["loss"] <= 3 + 1


def small():
    rng = np.random.default_rng(3)
    hidden, head = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 3), (3, 5)))
    return hidden, head, jnp.arange(4)


class Scale:
    """Not hashable, as a dataclass is not."""

    __hash__ = None

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return x * self.scale

    def method(self, x):
        return x * self.scale


@pytest.mark.parametrize("kind", ["number", "NumPy array", "JAX array", "method", "callable"])
def test_functions_are_read_at_each_call(kind):
    """What they read may have changed since the last one: no program may hold it."""
    hidden, head, labels = small()
    own, array = Scale(1.0), np.ones((1, 5), np.float32)
    if kind == "JAX array":
        own.scale = jnp.ones((1, 5))
    functions = {"NumPy array": lambda x: x * array, "callable": own, "method": own.method}
    logit_fn = functions.get(kind, lambda x: x * own.scale)

    def loss(s):
        return s.nll * (array[0, 0] if kind == "NumPy array" else jnp.mean(own.scale))

    def calls(head):
        part = linear_cross_entropy(hidden, head, labels, logit_fn=logit_fn)
        return {
            "statistics": linear_stats(hidden, head, labels, logit_fn=logit_fn).nll.mean(),
            "objective": part.mean(),
            "of a loss": linear_cross_entropy(hidden, head, labels, loss=loss).mean(),
        }

    def gradient(head):
        return jax.grad(lambda head: sum(calls(head).values()))(head)

    first = calls(head), gradient(head)
    own.scale, array[:] = own.scale * 3, 3
    logits = 3 * (hidden @ head)
    for got in calls(head), jax.jit(calls)(head):
        truth = jaxent.cross_entropy(logits, labels).mean()
        np.testing.assert_allclose(got["statistics"], truth, rtol=1e-6)
        np.testing.assert_allclose(got["objective"], truth, rtol=1e-6)
        np.testing.assert_allclose(got["of a loss"], 3 * first[0]["of a loss"], rtol=1e-6)
    assert np.abs(gradient(head) - first[1]).max() > 0.1


CLOSING = {  # functions of an option whose derivative wants arrays as long as a chunk
    "a loss": lambda option: {"loss": lambda s: jaxent.poly1(s, epsilon=option)},
    "two losses": lambda option: {
        "loss": lambda s: jaxent.focal(s, gamma=option) * jnp.where(s.nll > 1, option, 1)
    },
    "logits": lambda option: {"logit_fn": lambda x: jnp.where(x > 0, x, option * x)},
    "both": lambda option: {
        "logit_fn": lambda x: x + option * jnp.ones_like(x) * x,
        "loss": lambda s: jaxent.smoothed_nll(s, label_smoothing=option / 4),
    },
}


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", CLOSING)
def test_second_derivatives_of_functions_that_close_over_a_traced_option(name, chunk_size, unsplit):
    hidden, head, labels = small()

    def ours(option, head):
        options = CLOSING[name](option) | {"chunk_size": chunk_size}
        return linear_cross_entropy(hidden, head, labels, **options).mean()

    def full(option, head):
        options = CLOSING[name](option)
        s = reference.linear_stats(hidden, head, labels, logit_fn=options.get("logit_fn"))
        return options.get("loss", jaxent.nll)(s).mean()

    for order in jax.hessian, lambda f, n: jax.jacrev(jax.jacrev(f, n), n):
        got, truth = (order(f, (0, 1))(jnp.float32(0.4), head) for f in (ours, full))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), got, truth)


def standard(x):
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


@pytest.mark.parametrize("chunk_size", [None, 3])  # of which the last has two rows that are added
@pytest.mark.parametrize("absent", ["where", "weight 0, label -100"])
def test_a_function_with_no_derivative_at_zero_has_one_beside_inert_rows(absent, chunk_size):
    hidden, head, labels = small()
    live = np.array([True, True, False, True])
    weights = None if absent == "where" else jnp.asarray(live, jnp.float32)
    padded = labels if absent == "where" else labels.at[2].set(-100)

    def loss(scale, s):
        return s.nll - scale * jnp.log(s.other_prob) + scale * jnp.log(s.nll) / s.log_normalizer

    def ours(scale, head):
        where = live if absent == "where" else None
        options = {"where": where, "logit_fn": standard, "loss": partial(loss, scale)}
        return linear_cross_entropy(
            hidden, head, padded, weights, chunk_size=chunk_size, **options
        ).mean()

    def full(scale, head):
        kept = standard(hidden[live] @ head)
        return loss(scale, jaxent.softmax_stats(kept, labels[live])).mean()

    for mode in jax.grad, jax.jacfwd:
        got, truth = (mode(f, (0, 1))(jnp.float32(0.1), head) for f in (ours, full))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), got, truth)


def test_forward_mode_in_python_numbers():
    hidden, head, labels = small()

    def tempered(t):
        part = linear_cross_entropy(hidden, head, labels, logit_fn=lambda x: x * t)
        return part.mean() + linear_stats(hidden, head, labels, logit_fn=lambda x: x * t).nll.mean()

    truth = 2 * jax.grad(lambda t: jaxent.cross_entropy(hidden @ head * t, labels).mean())(2.0)
    np.testing.assert_allclose(jax.jvp(tempered, (2.0,), (1.0,))[1], truth, rtol=1e-5)


def tempered_step(h, w, y, temperature):
    def of(h, w):
        part = linear_cross_entropy(h, w, y, logit_fn=lambda z: z / temperature, chunk_size=4)
        return part.mean()

    return jax.value_and_grad(of, (0, 1))(h, w)


def tempered_arguments():
    rng = np.random.default_rng(8)
    hidden, head = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 3), (3, 11)))
    return hidden, head, jnp.asarray(rng.integers(0, 11, 8), jnp.int32), jnp.float32(2)


def test_leaks_nothing(checking_leaks):
    jax.jit(tempered_step).trace(*tempered_arguments())


def test_exports():
    args = tempered_arguments()
    want = jax.jit(tempered_step)(*args)
    (rows,) = jax.export.symbolic_shape("rows")
    for n in (8, rows):  # of a number that is not known yet, one chunk
        shapes = [(n, 3), (3, 11), (n,), ()]
        structs = [jax.ShapeDtypeStruct(s, a.dtype) for s, a in zip(shapes, args, strict=True)]
        exported = jax.export.export(jax.jit(tempered_step))(*structs)
        assert_close(exported.call(*args), want, 1e-6)


# --- the size of a chunk --------------------------------------------------------------------------


def test_chunks_cover_the_rows_and_are_no_larger_than_asked():
    for rows in (1, 2, 5, 24, 27, 97, 2048, 6000):
        for size in (1, 3, 8, 100, 4096):
            chunks = inputs.num_chunks(rows, size, 1)
            n = -(-rows // chunks)
            assert n <= size
            assert n >= min(rows, size) / 4  # nor needlessly small
            deal, gather, added = inputs.dealer((rows,), chunks)
            dealt = deal(jnp.arange(rows))
            assert dealt.shape == (chunks, n)
            assert added == (chunks * n > rows)
            np.testing.assert_array_equal(gather(dealt), np.arange(rows))
    for shards in (2, 8):  # an explicit mesh's rows stay where they are
        assert (48 // inputs.num_chunks(48, 10, shards)) % shards == 0


def test_the_rule_of_the_chunk_size():
    rule = partial(inputs.chunk_size, None)
    assert rule(4096, 128256, jnp.bfloat16, "gpu") == 4096
    assert rule(4096, 128256, jnp.float32, "tpu") == 2048
    assert rule(1024, 128256, jnp.bfloat16, "gpu") == 2048  # logits at most twice the gradient
    assert rule(512, 32000, jnp.float32, "cpu") == 512
    assert rule(64, 1000, jnp.float32, "cpu") == 8388  # no loop for a small vocabulary


# --- sharded over a mesh --------------------------------------------------------------------------


def sharded_parts(p, labels, where, **options):
    """The sums of both functions: (part, part)."""
    s = linear_stats(
        p["hidden"], p["head"], labels, bias=p["bias"], where=where, chunk_size=16, **options
    )
    losses = jnp.where(where, sharded_loss(p, s), 0)
    return jaxent.weighted_sum(losses, jnp.where(where, p["weights"], 0)), linear_cross_entropy(
        p["hidden"],
        p["head"],
        labels,
        p["weights"],
        loss=partial(sharded_loss, p),
        bias=p["bias"],
        where=where,
        logit_fn=lambda z: 9 * jnp.tanh(z / (9 * p["temperature"])),
        chunk_size=16,
        **options,
    )


def sharded_mean(p, labels, where):
    first, second = sharded_parts(p, labels, where)
    return first.mean() + 2 * second.mean()


def sharded_loss(p, s):
    return jaxent.smoothed_nll(s, label_smoothing=p["epsilon"]) + 0.01 * jaxent.z_loss(s)


def sharded_problem():
    rng = np.random.default_rng(9)
    d, v = 6, 40
    p = {
        "hidden": rng.normal(size=(8, 8, d)),
        "head": rng.normal(size=(d, v)),
        "bias": rng.normal(size=v),
        "weights": rng.uniform(0, 2, (8, 8)),
        "temperature": 1.3,
        "epsilon": 0.1,
    }
    p = {k: np.asarray(x, np.float32) for k, x in p.items()}
    return p, rng.integers(0, v, (8, 8)).astype(np.int32), rng.random((8, 8)) < 0.7


COLLECTIVE = re.compile(
    r"= (\S+|\([^)]*\)) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("
)
SPLIT = {
    "hidden": PartitionSpec("data"),
    "head": PartitionSpec(None, "model"),
    "bias": PartitionSpec("model"),
    "weights": PartitionSpec("data"),
    "temperature": PartitionSpec(),
    "epsilon": PartitionSpec(),
}
DATA = PartitionSpec("data")


def collectives(compiled):
    """Of each: its operation, the shapes it reduces, and whether it is in a loop."""
    for line in compiled.as_text().splitlines():
        for result, operation in COLLECTIVE.findall(line):
            shapes = re.findall(r"\[([\d,]*)\]", result)
            sizes = [tuple(int(x) for x in shape.split(",") if x) for shape in shapes]
            yield operation, sizes, "while/body" in line


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_over_a_mesh(kind):
    """Vocabulary over one axis, rows over the other: all-reduces, of rows and gradients only."""
    p, labels, where = sharded_problem()
    want = jax.jit(jax.value_and_grad(sharded_mean))(p, labels, where)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(getattr(AxisType, kind),) * 2)
    with jax.set_mesh(mesh):
        places = {k: NamedSharding(mesh, s) for k, s in SPLIT.items()}
        rows = NamedSharding(mesh, DATA)
        args = jax.device_put((p, labels, where), (places, rows, rows))
        compiled = jax.jit(jax.value_and_grad(sharded_mean)).lower(*args).compile()
        got = compiled(*args)
    assert_close(got, want, 2e-6)
    assert got[1]["head"].sharding.is_equivalent_to(places["head"], 2)
    n, d, v = 8, 6, 20  # rows of a chunk, features, classes, on one device
    for operation, sizes, _ in collectives(compiled):
        assert operation == "all-reduce"
        assert set(sizes) <= {(), (n,), (n, 1), (n, d), (d, v), (v, d), (v,)}


@pytest.mark.parametrize(("kind", "rows"), [("Auto", 512), ("Explicit", 1024)])
def test_the_default_chunk_is_that_of_one_device_where_axes_are_explicit(kind, rows):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(getattr(AxisType, kind),))
    n, d, v = 4096, 256, 2**15
    args = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in [
            ((n, d), jnp.float32, DATA),
            ((d, v), jnp.float32, PartitionSpec()),
            ((n,), jnp.int32, DATA),
        ]
    ]
    assert f"tensor<{rows}x{v}xf32>" in jax.jit(total(None)).lower(*args).as_text()


@pytest.mark.parametrize("axis_name", [None, "model"])
def test_inside_shard_map(axis_name):
    """The head whole on every device, or split; either way its gradient is added up once."""
    p, labels, where = sharded_problem()
    want = jax.jit(jax.value_and_grad(sharded_mean))(p, labels, where)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = dict(SPLIT)
    if not axis_name:
        specs |= {"head": PartitionSpec(), "bias": PartitionSpec()}

    def mean(p, labels, where):
        parts = sharded_parts(p, labels, where, axis_name=axis_name)
        first, second = (part.psum("data") for part in parts)
        return first.mean() + 2 * second.mean()

    def sharded(f, out):
        return jax.shard_map(f, mesh=mesh, in_specs=(specs, DATA, DATA), out_specs=out)

    inside = jax.jit(sharded(jax.value_and_grad(mean), (PartitionSpec(), specs)))
    compiled = inside.lower(p, labels, where).compile()
    assert_close(compiled(p, labels, where), want, 2e-6)
    n, d, v = 16, 6, 20 if axis_name else 40
    for operation, sizes, loop in collectives(compiled):
        assert operation == "all-reduce"
        if loop:
            assert max(map(math.prod, sizes)) <= 4 * n
        else:
            assert set(sizes) <= {(), (n,), (2, n, d), (d, v), (v, d), (v,)}
    if axis_name:
        outside = jax.value_and_grad(sharded(mean, PartitionSpec()))
        assert_close(jax.jit(outside)(p, labels, where), want, 2e-6)

        def guess(p, labels, where):
            s, best = linear_stats(
                p["hidden"], p["head"], labels, predictions=True, axis_name=axis_name
            )
            return s.nll, best

        nll, best = jax.jit(sharded(guess, (DATA, DATA)))(p, labels, where)
        logits = p["hidden"] @ p["head"]
        np.testing.assert_array_equal(best, logits.argmax(-1))
        np.testing.assert_allclose(nll, jaxent.cross_entropy(logits, labels), rtol=1e-5)


def test_an_axis_name_that_is_not_there():
    p, labels, _ = sharded_problem()
    with pytest.raises(ValueError, match="axis_name 'model' is not bound here"):
        linear_stats(p["hidden"], p["head"], labels, axis_name="model")
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))
    whole = jax.shard_map(
        lambda h, w, y: linear_cross_entropy(h, w, y, axis_name="model").total,
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
    )
    with pytest.raises(ValueError, match="head must be split over axis_name 'model'"):
        jax.jit(whole)(p["hidden"], p["head"], labels)


# --- bad input ------------------------------------------------------------------------------------

H, W, Y = np.ones((4, 3), np.float32), np.ones((3, 5), np.float32), np.zeros(4, np.int32)

BAD = [
    ((H[0, 0], W, Y), {}, ValueError, "hidden must be floating-point features"),
    ((Y, W, H), {}, TypeError, r"hidden must be .*int32\[4\]. The order is"),
    ((H, W[:2], Y), {}, ValueError, r"head must be \[D, V\] with D = 3; got head float32\[2, 5\]"),
    ((H, W.T, Y), {}, ValueError, "pass classes_axis=0"),
    ((H, W, Y), {"classes_axis": 0}, ValueError, r"\[V, D\] with D = 3; .*pass classes_axis=-1"),
    ((H, W, Y), {"classes_axis": 2}, ValueError, r"classes_axis must be -1 \(or 1\)"),
    ((H, W[0], Y), {}, ValueError, "head must be a matrix"),
    ((H, W[:, :0], Y), {}, ValueError, "at least one class"),
    ((H, W.astype(jnp.bfloat16), Y), {}, TypeError, r"head.astype\(hidden.dtype\)"),
    ((H, np.ones((3, 5), int), Y), {}, TypeError, "head must be floating-point"),
    ((H, W, Y[:3]), {}, ValueError, r"labels must have .* \[4\]; got int32\[3\]"),
    ((H, W, Y.astype(np.float32)), {}, TypeError, "labels must be integer"),
    ((H, W, Y), {"bias": np.ones(4, np.float32)}, ValueError, r"bias .* \[5\]; got float32\[4\]"),
    ((H, W, Y), {"bias": np.ones(5, int)}, TypeError, "bias must be floating-point"),
    ((H, W, Y), {"where": Y}, TypeError, "where must be boolean"),
    ((H, W, Y), {"where": np.ones((4, 1), bool)}, ValueError, r"where .* \[4\]"),
    ((H, W, Y), {"logit_fn": lambda z: z[:, :4]}, ValueError, r"logit_fn must return .*\[4, 5\]"),
    ((H, W, Y), {"logit_fn": 3.0}, TypeError, "logit_fn must be a function; got 3.0"),
    ((H, W, Y), {"logit_fn": lambda z: (z, z)}, TypeError, "logit_fn must return one array"),
    ((H, W, Y), {"logit_fn": lambda z: z > 0}, TypeError, "logit_fn must return floating"),
    ((H, W, Y), {"chunk_size": 0}, ValueError, "chunk_size must be at least 1 row; got 0"),
    ((H, W, Y), {"chunk_size": 1.5}, TypeError, "chunk_size must be a whole number"),
]  # fmt: skip
BAD_OBJECTIVE = [
    ((H, W, Y), {"loss": lambda s: s.nll.mean()}, ValueError, "loss must return one loss a row"),
    ((H, W, Y), {"loss": lambda s: s}, TypeError, "loss must return one array"),
    ((H, W, Y, np.ones(3)), {}, ValueError, r"weights must have .*\[4\]"),
    ((H, W, Y, np.ones(5, np.float32)), {}, ValueError, "class_weights"),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), BAD + BAD_OBJECTIVE)
def test_bad_input_is_named_while_tracing(args, options, error, message):
    functions = [linear_cross_entropy]
    if not ("loss" in options or len(args) > 3):
        functions.append(linear_stats)
    for f in functions:
        with pytest.raises(error, match=message):
            jax.jit(lambda f=f: f(*args, **options))()
