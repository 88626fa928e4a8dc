"""jaxent.compat.optax beside optax.losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import agree, cotangents, distributions, draw, ours, rounded

optax = pytest.importorskip("optax", minversion="0.2.8")  # whose axes and errors these are

from jaxent.compat import optax as dialect  # noqa: E402

theirs = optax.losses
INTEGER = "softmax_cross_entropy_with_integer_labels"


def reference(function, primals, dtype, **fixed):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return ours(function, primals, dtype, **fixed)


def check(name, primals, dtype="float32", **fixed):
    primals = [rounded(p, dtype) for p in primals]
    fixed = {k: rounded(v, dtype) for k, v in fixed.items()}
    agree(
        ours(getattr(dialect, name), primals, dtype, **fixed),
        reference(getattr(theirs, name), primals, dtype, **fixed),
        dtype,
        (name, [p.shape for p in primals], dtype, fixed),
    )


CASES = [  # the logits' shape, the class axes
    ((5,), None),
    ((5, 6), 0),
    ((3, 4, 2), (0, 2)),
    ((2, 3, 2, 3), 1),
    ((2, 2, 3, 1, 2), (4, 0, 1)),
]


def flags(seed, shape):
    return np.random.default_rng(seed).uniform(size=shape) < 0.7


def batch(shape, axis):
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return tuple(s for a, s in enumerate(shape) if a not in [b % len(shape) for b in axes])


@pytest.mark.parametrize(("shape", "axis"), CASES, ids=str)
def test_dense_labels(shape, axis):
    """Without gradients in the labels where classes are left out: they are NaN there."""
    x, q = draw(1, *shape), distributions(2, *shape)
    check("softmax_cross_entropy", [x, q], axis=axis)
    check("softmax_cross_entropy", [x], labels=q, axis=axis, where=flags(2, shape))
    if axis is not None:
        whole = flags(1, batch(shape, axis))
        check("softmax_cross_entropy", [x], labels=q, axis=axis, where=whole)
    check("poly_loss_cross_entropy", [x], labels=q, axis=axis, where=flags(2, shape), epsilon=-0.5)


@pytest.mark.parametrize(("shape", "axis"), [c for c in CASES if c[1] is not None], ids=str)
def test_integer_labels(shape, axis):
    classes = int(np.prod(shape)) // int(np.prod(batch(shape, axis)))
    y = np.random.default_rng(4).integers(0, classes, batch(shape, axis))
    check(INTEGER, [draw(1, *shape)], labels=y, axis=axis)
    check(INTEGER, [draw(1, *shape)], labels=y, axis=axis, where=flags(1, y.shape))
    if isinstance(axis, int):  # the label's own class is kept: without it the loss there is < 0
        own = np.moveaxis(np.arange(classes) == y[..., None], -1, axis)
        check(INTEGER, [draw(1, *shape)], labels=y, axis=axis, where=flags(2, shape) | own)


@pytest.mark.parametrize(("shape", "axis"), CASES, ids=str)
def test_divergences_and_smoothing(shape, axis):
    """Of log-probabilities that need not be normalised."""
    x, q, where = draw(1, *shape), distributions(2, *shape), flags(2, shape)
    check("kl_divergence", [x, q], axis=axis)
    check("kl_divergence", [x, q], axis=axis, where=where)
    check("kl_divergence_with_log_targets", [x, np.log(q)], axis=axis, where=where)
    check("generalized_kl_divergence", [x, q], axis=axis, where=where)
    check("smooth_labels", [q], alpha=0.1, axis=axis)
    check("smooth_labels", [q], alpha=0.1, axis=axis, where=where | (q == q.max()))


def test_broadcasting():
    x, q = draw(1, 2, 3, 5), distributions(2, 3, 5)
    check("softmax_cross_entropy", [x, q])
    check("softmax_cross_entropy", [x, q[:1]])
    check("softmax_cross_entropy", [x[0], distributions(2, 2, 3, 5)])
    check("softmax_cross_entropy", [x, q[:, :1]])
    column = np.array([True, True, False, True, True])[None, None]
    check("softmax_cross_entropy", [x], labels=q, where=column)
    check("poly_loss_cross_entropy", [x, q])
    check("kl_divergence", [x, q])
    check(
        "kl_divergence",
        [x[0], distributions(2, 2, 3, 5)],
        where=np.array([[True], [False], [True]]),
    )
    check(INTEGER, [x], labels=np.array([[1], [4]]))
    check(INTEGER, [x[:1]], labels=np.array([[1, 2, 0], [4, 3, 1]]))
    check("sigmoid_binary_cross_entropy", [x, q])
    check("sigmoid_focal_loss", [x[0], q[0]], alpha=np.linspace(0.1, 0.9, 5))
    check("safe_softmax_cross_entropy", [x, q])


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes(dtype):
    x, q = draw(4, 6, 5), distributions(5, 6, 5)
    check(INTEGER, [x], dtype, labels=np.arange(6, dtype=np.int8) % 5)
    check("softmax_cross_entropy", [x, q], dtype)
    check("sigmoid_binary_cross_entropy", [x, q], dtype)
    check("sigmoid_focal_loss", [x, q], dtype, alpha=0.25)
    check("poly_loss_cross_entropy", [x, q], dtype)
    check("kl_divergence", [np.log(q), distributions(6, 6, 5)], dtype)


@pytest.mark.parametrize("labels", [np.uint8, np.int16, np.uint32, np.int64])
def test_dtypes_of_labels(labels):
    check(INTEGER, [draw(1, 2, 300)], labels=np.array([100, 200]).astype(labels))


def test_bool_labels():
    check("sigmoid_binary_cross_entropy", [draw(1, 3, 4)], labels=flags(1, (3, 4)))


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_binary_cross_entropy"])
def test_mixed_dtypes(name):
    """Dense labels promote the loss of a softmax, and not that of a sigmoid."""
    x, q = (
        jnp.asarray(draw(1, 3, 4), jnp.bfloat16),
        jnp.asarray(distributions(2, 3, 4), jnp.float32),
    )
    with jax.numpy_dtype_promotion("standard"):
        wanted = getattr(theirs, name)(x, q)
    mine = getattr(dialect, name)(x, q)
    assert mine.dtype == wanted.dtype
    np.testing.assert_allclose(mine.astype("f4"), wanted.astype("f4"), rtol=0.05, atol=0.02)


def test_focal():
    x = np.concatenate([draw(1, 2, 6), [np.linspace(-30, 30, 6)]])
    hard, soft = (np.arange(18).reshape(3, 6) % 2).astype(float), distributions(2, 3, 6)
    for gamma in (0.0, 0.5, 5.0):
        check("sigmoid_focal_loss", [x], labels=hard, gamma=gamma)
        check("sigmoid_focal_loss", [x, soft], gamma=gamma, alpha=0.25)


OPTIONS = [  # each beside logits [2, 3, 4]
    *((), (1,), (4,), (3, 1), (2, 1, 1), (1, 3, 4), (2, 3, 4)),
    *((5, 1, 1, 1), (5, 2, 3, 4), (2, 1, 1, 3, 1)),  # these widen the result
]


@pytest.mark.parametrize("shape", OPTIONS, ids=str)
def test_options_that_are_arrays(shape):
    """Of every shape that broadcasts, traced, with gradients in the options too."""
    x, hard = draw(1, 2, 3, 4), np.eye(4)[[[0, 1, 3], [2, 2, 0]]]
    option = np.random.default_rng(5).uniform(0.1, 0.9, shape).reshape(shape)

    def focal(module):
        return lambda x, gamma, alpha, z: module.sigmoid_focal_loss(x, z, gamma=gamma, alpha=alpha)

    def poly(module):
        return lambda x, e, q: module.poly_loss_cross_entropy(x, q, epsilon=e)

    def smooth(module):
        return lambda q, alpha: module.smooth_labels(q, alpha, axis=(0, 2))

    soft = distributions(3, 2, 3, 4)
    for made, primals, fixed in (
        (focal, [x, 4 * option, option], {"z": hard}),
        (focal, [x, 4 * option, option.ravel()[:1]], {"z": soft[:1]}),
        (focal, [x[0], option.ravel()[:1], option], {"z": soft[0]}),
        (poly, [x, 3 * option[..., 0] - 1 if shape else option], {"q": soft}),
        (smooth, [soft, option], {}),
    ):
        primals = [np.asarray(p) for p in primals]
        mine = ours(made(dialect), primals, "float32", **fixed)
        agree(mine, reference(made(theirs), primals, "float32", **fixed), "float32", shape)


def test_dtypes_of_options():
    """An array's dtype promotes the losses', a number's does not."""
    x, q = (jnp.asarray(f(1, 2, 3), jnp.bfloat16) for f in (draw, distributions))
    for option in (2, jnp.float32(0.5), jnp.full(3, 0.5, jnp.bfloat16)):
        few = option[:2] if jnp.ndim(option) else option
        for call in (
            lambda m, o=option: m.sigmoid_focal_loss(x, q, gamma=o),
            lambda m, o=option: m.sigmoid_focal_loss(x, q, alpha=o),
            lambda m, o=few: m.poly_loss_cross_entropy(x, q, epsilon=o),
            lambda m, o=option: m.smooth_labels(q, o),
        ):
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                wanted = call(theirs)
            assert call(dialect).dtype == wanted.dtype
            np.testing.assert_allclose(*(np.float32(v) for v in (call(dialect), wanted)), rtol=0.03)


@pytest.mark.parametrize("reduce_fn", [jnp.mean, jnp.sum, None])
def test_ranking(reduce_fn):
    x, q = draw(1, 4, 5), np.arange(20.0).reshape(4, 5) % 3
    where = flags(1, (4, 5)) & np.array([[True], [True], [False], [True]])
    for mask, weights in ((None, None), (where, q / 2 + 1)):
        check(
            "ranking_softmax_loss", [x], labels=q, where=mask, weights=weights, reduce_fn=reduce_fn
        )
    check("ranking_softmax_loss", [x], labels=q, where=where & False, reduce_fn=reduce_fn)


def test_a_batch_of_nothing():
    nothing = np.zeros((0, 5))
    check("softmax_cross_entropy", [nothing, nothing])
    check("softmax_cross_entropy_with_integer_labels", [nothing], labels=np.zeros(0, int))
    check("sigmoid_focal_loss", [nothing, nothing])
    x, none = draw(1, 3, 5), np.zeros(3, bool)
    check("softmax_cross_entropy", [x], labels=distributions(2, 3, 5), where=none)
    check("softmax_cross_entropy_with_integer_labels", [x], labels=np.arange(3), where=none)


X, Y, Q = np.zeros((3, 4), np.float32), np.array([0, 1, 2]), np.full((3, 4), 0.25, np.float32)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("softmax_cross_entropy", (X.astype(int), Q)),
        ("softmax_cross_entropy", (X, Q, 5)),
        ("softmax_cross_entropy", (X, Q[:2])),
        ("softmax_cross_entropy", (X[0, 0], Q[0, 0])),
        ("softmax_cross_entropy", (X, Q, -1, np.ones(3, np.float32))),
        ("softmax_cross_entropy", (X, Q, -1, np.ones(2, bool))),
        ("safe_softmax_cross_entropy", (X.astype(int), Q)),
        (INTEGER, (X.astype(int), Y)),
        (INTEGER, (X, Y.astype(np.float32))),
        (INTEGER, (X, Y > 0)),
        (INTEGER, (X, Q.astype(int))),
        (INTEGER, (X, Y[0])),
        (INTEGER, (X, Y[:2])),
        (INTEGER, (X, Y, None)),
        (INTEGER, (X, Y, [1])),
        (INTEGER, (X, Y, 5)),
        (INTEGER, (X, Y, -1, np.ones(2, bool))),
        ("sigmoid_binary_cross_entropy", (X.astype(int), Q)),
        ("sigmoid_binary_cross_entropy", (X, Q[:2])),
        ("sigmoid_focal_loss", (X.astype(int), Q)),
        ("poly_loss_cross_entropy", (X, Q.astype(int))),
        ("kl_divergence", (X, Q.astype(int))),
        ("kl_divergence", (X.astype(int), Q)),
        ("kl_divergence", (X, Q[:2])),
        ("kl_divergence_with_log_targets", (X, Q.astype(int))),
        ("smooth_labels", (Q.astype(int), 0.1)),
        ("ranking_softmax_loss", (X.astype(int), Q)),
    ],
)
def test_the_same_misuse_raises(name, arguments):
    arrays = [jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
    with jax.numpy_rank_promotion("allow"), pytest.raises((TypeError, ValueError)) as caught:
        getattr(theirs, name)(*arrays)
    # jnp says TypeError of shapes that do not broadcast in arithmetic, ValueError elsewhere.
    shapes = "broadcast" in str(caught.value)
    with pytest.raises(ValueError if shapes else caught.type):
        getattr(dialect, name)(*arrays)


# --- where the original is wrong ----------------------------------------------------------------


def test_labels_out_of_range():
    """−1 is the last class there, and the gradient of a 7 is a finite wrong one."""
    x, y = draw(1, 3, 4), np.array([-1, 2, 7])
    value, _, [gradient] = reference(getattr(theirs, INTEGER), [x], "float32", labels=y)
    assert np.isfinite(value[0]) and np.isfinite(gradient).all()
    value, _, [gradient] = ours(getattr(dialect, INTEGER), [x], "float32", labels=y)
    np.testing.assert_array_equal(np.isnan(value), [True, False, True])
    np.testing.assert_array_equal(np.isnan(gradient), np.isnan(value)[:, None] & np.ones(4, bool))


def test_an_offset():
    """From 0.1 % wrong at 1,000 to 0 at a million there."""
    x, y = np.array([[4.0, 0.0, 0.0]]) + 1e6, np.array([0])
    truth = np.log1p(2 * np.exp(-4))
    value, _, _ = reference(getattr(theirs, INTEGER), [x], "float32", labels=y)
    assert abs(value - truth) > 0.01
    value, _, _ = ours(getattr(dialect, INTEGER), [x], "float32", labels=y)
    np.testing.assert_allclose(value, [truth], rtol=1e-6)


def test_confident_examples():
    """Exactly 0 there, value and gradient, from a margin of 17."""
    x, y, q = np.array([[40.0, 0.0, 0.0]]), np.array([0]), np.eye(3)[:1]
    for name, labels in ((INTEGER, y), ("softmax_cross_entropy", q)):
        assert reference(getattr(theirs, name), [x], "float32", labels=labels)[0] == 0
        value, _, [gradient] = ours(getattr(dialect, name), [x], "float32", labels=labels)
        np.testing.assert_allclose(value, [2 * np.exp(-40.0)], rtol=1e-5)
        wanted = cotangents((1,)) * np.exp(-40.0) * np.array([[-2, 1, 1]])
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4)


def test_a_large_vocabulary_of_16_bits():
    """A sum of 70,000 is inf in float16."""
    x, y = np.zeros((1, 70_000)), np.array([3])
    assert reference(getattr(theirs, INTEGER), [x], "float16", labels=y)[0] == np.inf
    value, _, [gradient] = ours(getattr(dialect, INTEGER), [x], "float16", labels=y)
    np.testing.assert_allclose(value, np.log(70_000), rtol=1e-3)
    assert (gradient[0, 4:] > 0).all()


def test_a_class_ruled_out():
    """NaN there where its target is 0; a negative loss where ``where`` takes the label itself."""
    x, q = np.array([[-np.inf, 2.0, 0.0]]), np.array([[0.0, 0.6, 0.4]])
    eager = reference(theirs.softmax_cross_entropy, [x, q], "float32", compiled=False)
    assert np.isnan(eager[0])
    value, _, gradients = ours(dialect.softmax_cross_entropy, [x, q], "float32")
    np.testing.assert_allclose(value, 0.4 * 2 + np.log1p(np.exp(-2)), rtol=1e-6)
    assert np.isfinite(gradients).all()
    x, y, where = np.array([[4.0, 0.0, 0.0]]), np.array([0]), np.array([[False, True, True]])
    assert reference(getattr(theirs, INTEGER), [x], "float32", labels=y, where=where)[0] < 0
    assert ours(getattr(dialect, INTEGER), [x], "float32", labels=y, where=where)[0] == np.inf


def test_gradients_in_labels_left_out():
    """NaN there."""
    x, q, where = draw(1, 2, 3), distributions(2, 2, 3), np.array([[True, True, False]] * 2)
    _, _, [_, in_q] = reference(theirs.softmax_cross_entropy, [x, q], "float32", where=where)
    np.testing.assert_array_equal(np.isnan(in_q), ~where)
    _, _, [_, in_q] = ours(dialect.softmax_cross_entropy, [x, q], "float32", where=where)
    np.testing.assert_array_equal(in_q != 0, where)


def test_examples_without_any_class():
    """A loss of 0 there and here; the gradient is NaN there."""
    x, where = draw(1, 3, 4), np.array([[True] * 4, [False] * 4, [True, True, False, True]])
    names = {"softmax_cross_entropy": distributions(2, 3, 4), INTEGER: np.array([0, 1, 3])}
    for name, labels in names.items():
        options = {"labels": labels, "where": where}
        wanted, _, _ = reference(getattr(theirs, name), [x], "float32", **options)
        value, _, [gradient] = ours(getattr(dialect, name), [x], "float32", **options)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        assert value[1] == 0 and (gradient[1] == 0).all() and np.isfinite(gradient).all()


def test_whole_examples_of_the_poly_loss():
    """Raises there."""
    x, q, where = draw(1, 3, 4), distributions(2, 3, 4), np.array([True, False, True])
    with pytest.raises(ValueError):
        reference(theirs.poly_loss_cross_entropy, [x, q], "float32", where=where)
    value, _, _ = ours(dialect.poly_loss_cross_entropy, [x, q], "float32", where=where)
    wanted, _, _ = reference(theirs.poly_loss_cross_entropy, [x, q], "float32")
    np.testing.assert_allclose(value, wanted * where, rtol=1e-5)


def test_targets_of_zero():
    """The divergence has a gradient of NaN in them there."""
    log_p, q = np.log([[0.25, 0.25, 0.5]]), np.array([[0.0, 0.5, 0.5]])
    _, _, [_, in_q] = reference(theirs.kl_divergence, [log_p, q], "float32")
    assert np.isnan(in_q).any()
    value, _, gradients = ours(dialect.kl_divergence, [log_p, q], "float32")
    np.testing.assert_allclose(value, np.log(2) / 2, rtol=1e-6)
    assert np.isfinite(gradients).all()


def test_infinite_logits_of_a_sigmoid():
    x, z = np.array([np.inf, -np.inf, -np.inf]), np.array([1.0, 0.0, 1.0])
    assert np.isnan(reference(theirs.sigmoid_binary_cross_entropy, [x, z], "float32")[0]).any()
    value, _, _ = ours(dialect.sigmoid_binary_cross_entropy, [x, z], "float32")
    np.testing.assert_array_equal(value, [0, 0, np.inf])


def test_every_name_is_here_or_named_as_out_of_scope():
    here = {n for n in dir(dialect) if callable(getattr(dialect, n)) and n in dir(theirs)}
    out = {
        *("binary_dice_loss", "cosine_distance", "cosine_similarity", "ctc_loss"),
        *("ctc_loss_with_forward_probs", "dice_loss", "hinge_loss", "huber_loss", "l2_loss"),
        *("log_cosh", "make_fenchel_young_loss", "multiclass_generalized_dice_loss"),
        *("multiclass_hinge_loss", "multiclass_perceptron_loss", "multiclass_sparsemax_loss"),
        *("ntxent", "perceptron_loss", "sparsemax_loss", "squared_error", "triplet_margin_loss"),
    }
    functions = {n for n in dir(theirs) if not n.startswith("_") and callable(getattr(theirs, n))}
    assert functions - here - out == set()
    assert not here & out
