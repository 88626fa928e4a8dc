"""jaxent.compat.tensorflow beside tf.nn and tf.compat.v1.losses."""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import agree, cotangents, distributions, draw, is_float, ours, rounded

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")

from jaxent import sampled  # noqa: E402
from jaxent.compat import tensorflow as dialect  # noqa: E402

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
V1 = tf.compat.v1.losses
MINE, THEIRS = {"nn": dialect.nn, "losses": dialect.losses}, {"nn": tf.nn, "losses": V1}
REDUCTIONS = dialect.losses.Reduction.all()


def tensor(x, dtype):
    return tf.constant(x, dtype) if is_float(x) else tf.constant(x)


def dense(gradient):
    return tf.cast(tf.convert_to_tensor(gradient), tf.float64).numpy()


def reference(function, primals, dtype, **fixed):
    """As parity.ours; the primals are keyword arguments, like all of TensorFlow's here."""
    names, primals = zip(*primals.items(), strict=True)
    primals = [tensor(p, dtype) for p in primals]
    fixed = {k: tensor(v, dtype) if isinstance(v, np.ndarray) else v for k, v in fixed.items()}
    with tf.GradientTape() as tape:
        tape.watch(primals)
        value = function(**dict(zip(names, primals, strict=True)), **fixed)
        weighed = tf.reduce_sum(value * tf.constant(cotangents(tuple(value.shape)), value.dtype))
    gradients = tape.gradient(weighed, primals, unconnected_gradients="zero")
    return tf.cast(value, tf.float64).numpy(), value.dtype.name, [dense(g) for g in gradients]


def named(function, names):
    return lambda *primals, **fixed: function(**dict(zip(names, primals, strict=True)), **fixed)


def check(module, name, primals, dtype="float32", compiled=True, **fixed):
    primals = {k: rounded(p, dtype) for k, p in primals.items()}
    fixed = {k: rounded(v, dtype) for k, v in fixed.items()}
    function = named(getattr(MINE[module], name), primals)
    agree(
        ours(function, primals.values(), dtype, compiled, **fixed),
        reference(getattr(THEIRS[module], name), primals, dtype, **fixed),
        dtype,
        (name, {k: p.shape for k, p in primals.items()}, dtype, fixed),
    )


SHAPES = [((6, 5), -1), ((5,), 0), ((3, 4, 2), 1), ((2, 3, 2, 3), 0), ((2, 2, 3, 1, 2), 2)]


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_softmax(shape, axis):
    x, q = draw(1, *shape), distributions(2, *shape, axis=axis)
    check("nn", "softmax_cross_entropy_with_logits", {"labels": q, "logits": x}, axis=axis)
    y = np.random.default_rng(3).integers(0, shape[-1], shape[:-1])
    check("nn", "sparse_softmax_cross_entropy_with_logits", {"logits": x}, labels=y)


def test_no_axis_is_the_last():
    x, q = draw(1, 2, 3, 4), distributions(2, 2, 3, 4)
    check("nn", "softmax_cross_entropy_with_logits", {"labels": q, "logits": x}, axis=None)


def test_broadcast_labels():
    x, q = draw(1, 6, 5), distributions(2, 1, 5)
    check("nn", "softmax_cross_entropy_with_logits", {"logits": x}, labels=q)
    check("nn", "softmax_cross_entropy_with_logits", {"logits": x}, labels=q[0])
    check("nn", "softmax_cross_entropy_with_logits", {"logits": x}, labels=np.full((6, 1), 0.2))


@pytest.mark.parametrize("shape", [(), (5,), (6, 5), (2, 3, 2, 1, 5)], ids=str)
def test_sigmoid(shape):
    x, z = draw(7, *(shape or (1,))).reshape(shape), np.random.default_rng(8).uniform(size=shape)
    check("nn", "sigmoid_cross_entropy_with_logits", {"labels": z, "logits": x})
    for weight in (3.0, 0.0, *([np.linspace(0, 3, 5)] if shape else [])):
        check(
            "nn",
            "weighted_cross_entropy_with_logits",
            {"labels": z, "logits": x},
            pos_weight=weight,
        )


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_dtypes(dtype):
    x, q, y = draw(4, 6, 5), distributions(5, 6, 5), np.arange(6) % 5
    check("nn", "softmax_cross_entropy_with_logits", {"logits": x}, dtype, labels=q)
    check("nn", "sigmoid_cross_entropy_with_logits", {"labels": q, "logits": x}, dtype)
    for labels in (np.int32, np.int64):
        check(
            *("nn", "sparse_softmax_cross_entropy_with_logits", {"logits": x}, dtype),
            labels=y.astype(labels),
        )
    if dtype != "float64":  # rounded to float32 there
        check("losses", "sparse_softmax_cross_entropy", {"logits": x}, dtype, labels=y)
        check("losses", "sigmoid_cross_entropy", {"logits": x}, dtype, multi_class_labels=q)


@pytest.mark.parametrize("size", [None, 0, 12], ids=str)
def test_average_loss(size):
    options = {"global_batch_size": size, "compiled": False}
    for shape, weights in (
        ((6,), (6,)),
        ((6,), (6, 1)),
        ((6,), (1,)),
        ((6,), ()),
        ((6, 2), (6,)),
        ((6, 2), (6, 1)),
        ((6, 2), (1, 2)),
        ((2, 3, 2), (2, 3)),
        ((0,), (0,)),
    ):
        primals = {"per_example_loss": draw(1, *shape)}
        check("nn", "compute_average_loss", primals, **options)
        w = np.asarray(np.random.default_rng(2).uniform(size=weights))
        check("nn", "compute_average_loss", primals | {"sample_weight": w}, **options)
    check("nn", "compute_average_loss", {"per_example_loss": draw(1, 6)}, "float16", **options)
    flags = np.arange(6) % 2 == 0
    check("nn", "compute_average_loss", {"per_example_loss": draw(1, 6)}, sample_weight=flags)


def test_keras_losses():
    y, x = np.array([0, 4, 2]), jnp.asarray(draw(1, 3, 5), jnp.float32)
    mine = dialect.keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, x)
    # tf.keras would start Keras on TensorFlow in the process that tests its dialect on JAX
    there = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, np.asarray(x)))
    np.testing.assert_allclose(mine, there, rtol=1e-5)


def test_a_batch_of_nothing():
    nothing, y = np.zeros((0, 5)), np.zeros(0, int)
    check("nn", "softmax_cross_entropy_with_logits", {"labels": nothing, "logits": nothing})
    check("nn", "sparse_softmax_cross_entropy_with_logits", {"logits": nothing}, labels=y)
    check("nn", "sigmoid_cross_entropy_with_logits", {"labels": nothing, "logits": nothing})
    for reduction in REDUCTIONS:
        options = {"labels": y, "reduction": reduction}
        check("losses", "sparse_softmax_cross_entropy", {"logits": nothing}, **options)


# --- tf.losses ----------------------------------------------------------------------------------

WEIGHTS = [2.0, 0.0, np.array([2.0, 0.0, 0.5, 1.0, 0.0, 3.0]), np.array([-1.5])]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(reduction):
    loss = draw(1, 6)
    for weights in (*WEIGHTS, np.zeros(6), np.array([True, False] * 3), np.arange(6)):
        if is_float(weights):
            primals = {"losses": loss, "weights": weights}
            check("losses", "compute_weighted_loss", primals, reduction=reduction, compiled=False)
        else:
            primals = {"losses": loss}
            check(
                "losses",
                "compute_weighted_loss",
                primals,
                weights=weights,
                reduction=reduction,
                compiled=False,
            )
    grid, columns, rows = draw(2, 2, 3, 2), np.array([[[1.0, 0.0]]]), np.ones((2, 1, 1))
    for weights in (columns, rows, np.ones((1, 1, 1)), np.ones((2, 3, 2))):
        primals = {"losses": grid, "weights": weights}
        check("losses", "compute_weighted_loss", primals, reduction=reduction, compiled=False)
    primals = {"losses": np.zeros((0, 3))}
    check(
        "losses", "compute_weighted_loss", primals, weights=2.0, reduction=reduction, compiled=False
    )


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_losses(smoothing):
    x, q, y = draw(1, 6, 5), distributions(2, 6, 5), np.arange(6) % 5
    none = dialect.losses.Reduction.NONE
    for weights, reduction in itertools.product(WEIGHTS, (REDUCTIONS[0], none)):
        options = {"weights": weights, "reduction": reduction, "compiled": False}
        smooth = options | {"label_smoothing": smoothing}
        check("losses", "softmax_cross_entropy", {"logits": x, "onehot_labels": q}, **smooth)
        if not smoothing:
            check("losses", "sparse_softmax_cross_entropy", {"logits": x}, labels=y, **options)
    weights = np.array([[1.0], [0.0], [2.0], [1.0], [1.0], [0.5]])
    primals = {"logits": x, "multi_class_labels": q}
    check("losses", "sigmoid_cross_entropy", primals, weights=weights, label_smoothing=smoothing)


@pytest.mark.parametrize("shape", [(), (5,), (6, 5), (2, 3, 5), (2, 1, 2, 1, 5)], ids=str)
def test_log_loss(shape):
    p, z = (np.asarray(u) for u in np.random.default_rng(8).uniform(size=(2, *shape)))
    weights = np.array([2.0, 0.0, 0.5, 1.0, 0.0, 3.0])[: shape[0]] if shape else np.array(2.0)
    weights = weights.reshape(shape[:1] + (1,) * (len(shape) - 1))
    primals = {"labels": z, "predictions": p, "weights": weights}
    check("losses", "log_loss", primals)
    for reduction in REDUCTIONS if len(shape) == 2 else ():
        check("losses", "log_loss", primals, reduction=reduction, epsilon=1e-2, compiled=False)


def test_log_loss_of_the_certain():
    """The epsilon is asked for by default, and ends the loss at 16.1; 0 is the truth."""
    p, z = np.array([0.0, 1.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0, 0.5])
    none = {"labels": z, "reduction": dialect.losses.Reduction.NONE}
    check("losses", "log_loss", {"predictions": p}, **none)
    check("losses", "log_loss", {"predictions": p.round() * 0.5 + 0.25}, epsilon=0, **none)
    value, _, [gradient] = ours(
        lambda p, labels: dialect.losses.log_loss(labels, p, epsilon=0, reduction="none"),
        *([p], "float32"),
        labels=z,
    )
    np.testing.assert_array_equal(value, [np.inf, np.inf, 0, 0, np.inf])
    np.testing.assert_allclose(gradient[2:4] / cotangents((5,))[2:4], [1, -1], rtol=1e-6)
    for dtype in ("float16", "bfloat16"):  # float32 there and here
        check("losses", "log_loss", {"predictions": 0.9 * z + 0.05}, dtype, labels=z)


def test_squeezed_axes():
    x, y, w = draw(1, 6, 5), np.arange(6)[:, None] % 5, np.arange(6.0)[:, None]
    check("losses", "sparse_softmax_cross_entropy", {"logits": x}, labels=y, weights=w)
    check("losses", "sparse_softmax_cross_entropy", {"logits": x[..., None]}, labels=y[:, 0])


X, Y, Q = np.zeros((3, 4), np.float32), np.array([0, 1, 2]), np.full((3, 4), 0.25, np.float32)
SPARSE = "sparse_softmax_cross_entropy"


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("nn", "softmax_cross_entropy_with_logits", {"labels": Q[:2], "logits": X}),
        ("nn", "softmax_cross_entropy_with_logits", {"labels": Q, "logits": X[0]}),
        ("nn", "softmax_cross_entropy_with_logits", {"labels": Q, "logits": X.astype(int)}),
        ("nn", "softmax_cross_entropy_with_logits", {"labels": Q, "logits": X, "axis": 3}),
        ("nn", "softmax_cross_entropy_with_logits", {"labels": Q, "logits": X, "axis": (0, 1)}),
        ("nn", SPARSE + "_with_logits", {"labels": Y[:2], "logits": X}),
        ("nn", SPARSE + "_with_logits", {"labels": Y[:, None], "logits": X}),
        ("nn", SPARSE + "_with_logits", {"labels": Y[0], "logits": X}),
        ("nn", SPARSE + "_with_logits", {"labels": Y.astype("f4"), "logits": X}),
        ("nn", SPARSE + "_with_logits", {"labels": Y > 0, "logits": X}),
        ("nn", SPARSE + "_with_logits", {"labels": Y + 2, "logits": X}),
        ("nn", SPARSE + "_with_logits", {"labels": Y - 1, "logits": X}),
        ("nn", SPARSE + "_with_logits", {"labels": Y, "logits": X[:, :0]}),
        ("nn", SPARSE + "_with_logits", {"labels": Y[0], "logits": X[0, 0]}),
        ("nn", "sigmoid_cross_entropy_with_logits", {"labels": Q[0], "logits": X}),
        ("nn", "sigmoid_cross_entropy_with_logits", {"labels": Q[:, :1], "logits": X}),
        ("nn", "sigmoid_cross_entropy_with_logits", {"labels": Q, "logits": X.astype(int)}),
        (
            *("nn", "weighted_cross_entropy_with_logits"),
            {"labels": Q[0], "logits": X, "pos_weight": 1.0},
        ),
        (
            *("nn", "weighted_cross_entropy_with_logits"),
            {"labels": Q, "logits": X, "pos_weight": Q[:, 0]},
        ),
        ("nn", "compute_average_loss", {"per_example_loss": X[0, 0]}),
        ("nn", "compute_average_loss", {"per_example_loss": X[0], "sample_weight": Y}),
        ("nn", "compute_average_loss", {"per_example_loss": X, "global_batch_size": -1}),
        ("nn", "compute_average_loss", {"per_example_loss": X, "global_batch_size": 2.0}),
        ("nn", "compute_average_loss", {"per_example_loss": X, "global_batch_size": Y}),
        ("losses", SPARSE, {"labels": Y, "logits": X, "weights": np.ones((1, 3, 1), "f4")}),
        ("losses", SPARSE, {"labels": Y, "logits": X, "weights": np.ones(2, "f4")}),
        ("losses", SPARSE, {"labels": Y, "logits": X, "weights": None}),
        ("losses", SPARSE, {"labels": None, "logits": X}),
        ("losses", SPARSE, {"labels": Y, "logits": None}),
        ("losses", SPARSE, {"labels": Y, "logits": X, "reduction": "mean"}),
        ("losses", SPARSE, {"labels": Y + 2, "logits": X}),
        ("losses", SPARSE, {"labels": Q.astype(int), "logits": X}),
        ("losses", "softmax_cross_entropy", {"onehot_labels": Q[:2], "logits": X}),
        ("losses", "softmax_cross_entropy", {"onehot_labels": Q[0], "logits": X}),
        ("losses", "softmax_cross_entropy", {"onehot_labels": Q, "logits": X, "weights": Q}),
        ("losses", "softmax_cross_entropy", {"onehot_labels": None, "logits": X}),
        ("losses", "sigmoid_cross_entropy", {"multi_class_labels": Q[0], "logits": X}),
        (
            *("losses", "sigmoid_cross_entropy"),
            {"multi_class_labels": Q, "logits": X, "weights": np.ones(3, "f4")},
        ),
        ("losses", "log_loss", {"labels": Q[0], "predictions": X}),
        ("losses", "log_loss", {"labels": None, "predictions": X}),
        ("losses", "log_loss", {"labels": Q, "predictions": None}),
        ("losses", "log_loss", {"labels": Q, "predictions": X, "weights": np.ones(3, "f4")}),
        ("losses", "log_loss", {"labels": Q, "predictions": X, "reduction": "mean"}),
        ("losses", "compute_weighted_loss", {"losses": Q, "weights": Q[0]}),
        ("losses", "compute_weighted_loss", {"losses": Q, "weights": Q[:2]}),
        ("losses", "compute_weighted_loss", {"losses": Q, "weights": None}),
        ("losses", "compute_weighted_loss", {"losses": Q, "reduction": "none of them"}),
    ],
)
def test_the_same_misuse_raises(module, name, arguments):
    """A ValueError where it is one there; of TensorFlow's own errors, a ValueError or TypeError."""
    with pytest.raises(Exception) as caught:
        getattr(THEIRS[module], name)(**arguments)
    with pytest.raises(ValueError if caught.type is ValueError else (TypeError, ValueError)):
        getattr(MINE[module], name)(**arguments)


# --- sampled losses -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_true", [1, 2])
@pytest.mark.parametrize("name", ["sampled_softmax_loss", "nce_loss"])
def test_sampled_losses(name, num_true):
    table, bias, hidden = draw(1, 20, 4), draw(2, 20), draw(3, 6, 4, scale=1.0)
    y = np.random.default_rng(4).integers(0, 20, (6, num_true))
    values = tf.random.log_uniform_candidate_sampler(y, num_true, 8, True, 20, seed=1)
    values = tuple(v.numpy() for v in values)

    def sampled_by(function):
        return lambda *a, **k: function(*a, num_sampled=8, num_classes=20, num_true=num_true, **k)

    primals = {"weights": table, "biases": bias, "inputs": hidden}
    mine, theirs = (sampled_by(getattr(module, name)) for module in (dialect.nn, tf.nn))
    for removed in (False, True):
        options = {"labels": y, "sampled_values": values, "remove_accidental_hits": removed}
        agree(
            ours(named(mine, primals), primals.values(), "float32", **options),
            reference(theirs, primals, "float32", **options),
            "float32",
            options,
        )
    shards = [jnp.asarray(s, jnp.float32) for s in np.split(table, [7, 14])]
    whole = jnp.asarray(table, jnp.float32)
    rest = (jnp.asarray(bias, jnp.float32), y, jnp.asarray(hidden, jnp.float32))
    np.testing.assert_array_equal(
        mine(shards, *rest, sampled_values=values), mine(whole, *rest, sampled_values=values)
    )


@pytest.mark.parametrize("name", ["uniform", "log_uniform", "learned_unigram", "fixed_unigram"])
def test_samplers(name):
    """Expected counts with replacement; without, those of as many tries as each took."""
    name, y = f"{name}_candidate_sampler", np.array([[0, 5], [9, 3]])
    more = {"unigrams": [3.0, 1.0, 0.5, *range(1, 8)], "distortion": 0.75}
    more = more if "fixed" in name else {}
    theirs, mine, key = getattr(tf.random, name), getattr(dialect.random, name), jax.random.key(0)
    assert getattr(dialect.nn, name) is mine
    _, true, _ = theirs(y, 2, 4, False, 10, seed=1, **more)
    samples = mine(y, 2, 4, False, 10, key=key, **more)
    np.testing.assert_allclose(samples[1], true, rtol=1e-4)
    ids, true, _ = mine(y, 2, 10, True, 10, key=key, **more)
    np.testing.assert_array_equal(np.sort(ids), np.arange(10))
    assert (np.asarray(true) > 0.3).all()
    with pytest.raises(TypeError, match="key"):
        mine(y, 2, 4, False, 10, seed=1, **more)
    with pytest.raises(ValueError, match="true_classes"):
        mine(y[0], 2, 4, False, 10, key=key, **more)


def expected_counts(module, range_max, **options):
    """Of every class, of a sample of one: the distribution."""
    y = np.arange(range_max)[:, None]
    key = {} if module is tf.random else {"key": jax.random.key(0)}
    sampler = module.fixed_unigram_candidate_sampler
    ids, true, of_sampled = sampler(y, 1, 1, False, range_max, **options, **key)
    np.testing.assert_allclose(of_sampled, np.asarray(true)[np.asarray(ids), 0], rtol=1e-5)
    return np.asarray(true)[:, 0]


COUNTS = [1.0, 2.0, 0.0, 4.0, 5.0, 6.0, 7.0]


def test_shards_of_a_unigram():
    """Ids count the classes of the shard."""
    for num_shards, shard in ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (9, 4)):
        options = {"num_shards": num_shards, "shard": shard, "distortion": 0.75}
        options |= {"unigrams": COUNTS, "range_max": len(range(shard, 7, num_shards))}
        np.testing.assert_allclose(
            expected_counts(dialect.random, **options),
            expected_counts(tf.random, **options),
            rtol=1e-5,
        )


VOCABULARIES = [
    b"the,5\nof,3\nand,2\nto,1\n",
    b"the,5\r\n\nof,3\r\nand,2\nto,1",  # no line of its own for what is blank
    b'7,the, 5 \n"of,",1e1\n2\n\xff\xfe,+1.5\n',
]


@pytest.mark.parametrize("text", VOCABULARIES)
def test_a_vocabulary_file(text, tmp_path):
    path = tmp_path / "vocabulary.csv"
    path.write_bytes(text)
    for options in (
        {"range_max": 4},
        {"range_max": 6, "num_reserved_ids": 2, "distortion": 0.5},
        {"range_max": 2, "num_shards": 2, "shard": 1},
        {"range_max": 3, "num_shards": 2, "shard": 0, "num_reserved_ids": 1},
    ):
        options |= {"vocab_file": str(path)}
        np.testing.assert_allclose(
            expected_counts(dialect.random, **options),
            expected_counts(tf.random, **options),
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (b"a,1\nb,two\n", {}),
        (b"a,1\n \nb,2\n", {}),
        (b"a,1,\nb,2,\n", {}),
        (b"a,1\nb,2\nc,3\n", {}),
        (b"a,1\nb,2\n", {"unigrams": [1.0, 2.0]}),
        (b"", {}),
        (None, {}),
        (None, {"unigrams": COUNTS}),
        (None, {"unigrams": [1.0, 2.0], "num_reserved_ids": 1}),
        (None, {"unigrams": COUNTS[:4], "num_shards": 2, "shard": 2}),
        (None, {"unigrams": COUNTS[:4], "num_shards": 0}),
        (None, {"unigrams": COUNTS[:4], "num_shards": 2, "shard": -1}),
        (None, {"vocab_file": "no file"}),
    ],
)
def test_the_same_misuse_of_a_unigram_raises(text, options, tmp_path):
    if text is not None:
        (tmp_path / "vocabulary.csv").write_bytes(text)
        options = {"vocab_file": str(tmp_path / "vocabulary.csv")} | options
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.NotFoundError)):
        expected_counts(tf.random, 2, **options)
    with pytest.raises(OSError if "vocab_file" in options and text is None else ValueError):
        expected_counts(dialect.random, 2, **options)


@pytest.mark.parametrize("name", ["uniform", "log_uniform", "learned_unigram", "fixed_unigram"])
def test_true_classes_out_of_range(name):
    """They raise where they can be seen; under ``jit`` their expected counts are NaN."""
    name, more = f"{name}_candidate_sampler", {"unigrams": COUNTS} if "fixed" in name else {}
    theirs, mine = getattr(tf.random, name), getattr(dialect.random, name)
    key = jax.random.key(0)
    for y in (np.array([[7]]), np.array([[-1]])):
        with pytest.raises(tf.errors.InvalidArgumentError):
            theirs(y, 1, 2, True, 7, **more)
        with pytest.raises(ValueError, match="true_classes must be in"):
            mine(y, 1, 2, True, 7, key=key, **more)
    y = jnp.array([[7], [0], [-1]])
    _, true, _ = jax.jit(lambda y: mine(y, 1, 2, True, 7, key=key, **more))(y)
    np.testing.assert_array_equal(np.isnan(true[:, 0]), [True, False, True])


def test_all_candidates_are_the_full_softmax():
    table, hidden, y = draw(1, 7, 3), draw(2, 4, 3), np.array([[0], [6], [3], [3]])
    table, hidden = jnp.asarray(table, jnp.float32), jnp.asarray(hidden, jnp.float32)
    values = dialect.nn.all_candidate_sampler(y, 1, 7, True)
    loss = dialect.nn.sampled_softmax_loss(
        table, jnp.zeros(7), y, hidden, 7, 7, sampled_values=values
    )
    wanted = tf.nn.sparse_softmax_cross_entropy_with_logits(y[:, 0], np.asarray(hidden @ table.T))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert isinstance(values, sampled.Samples)


# --- where the original is wrong ----------------------------------------------------------------


def test_shards_with_reserved_ids():
    """Of 3 reserved ids and the words 3 … 9, both shards have the words 3, 5, 7 and 9 there."""
    options = {"unigrams": COUNTS, "num_reserved_ids": 3, "num_shards": 2}
    odd, even = [0, *COUNTS[0::2]], [0, 0, *COUNTS[1::2]]
    for shard, (wrong, right) in enumerate((([0, *odd], even), (odd, odd))):
        value = expected_counts(tf.random, len(wrong), shard=shard, **options)
        np.testing.assert_allclose(value, np.divide(wrong, np.sum(wrong)), rtol=1e-5)
        value = expected_counts(dialect.random, len(right), shard=shard, **options)
        np.testing.assert_allclose(value, np.divide(right, np.sum(right)), rtol=1e-5)


def test_labels_that_do_not_sum_to_one():
    """The gradient there is p − q whatever the row sums to; a row of zeros trains."""
    x, q = draw(1, 3, 4), distributions(2, 3, 4) * np.array([[0.0], [0.5], [3.0]])
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    primals, ct = {"labels": q, "logits": x}, cotangents((3,))[:, None]
    name = "softmax_cross_entropy_with_logits"
    value, _, [_, wrong] = reference(getattr(tf.nn, name), primals, "float32")
    np.testing.assert_allclose(wrong, ct * (p - q), rtol=1e-4, atol=1e-6)
    mine, _, [_, right] = ours(
        named(getattr(dialect.nn, name), primals), primals.values(), "float32"
    )
    np.testing.assert_allclose(mine, value, rtol=1e-5)
    truth = ct * (q.sum(-1, keepdims=True) * p - q)
    np.testing.assert_allclose(right, truth, rtol=1e-4, atol=1e-6)


def test_a_positive_weight_at_zero():
    """Every example of a head that starts at zero: the gradient there is 0 for 3 · (−1/2)."""
    x, z = np.zeros(2), np.array([1.0, 0.0])
    primals, name = {"logits": x}, "weighted_cross_entropy_with_logits"
    options = {"labels": z, "pos_weight": 3.0}
    _, _, [wrong] = reference(getattr(tf.nn, name), primals, "float32", **options)
    assert wrong[0] == 0
    _, _, [right] = ours(named(getattr(dialect.nn, name), primals), [x], "float32", **options)
    np.testing.assert_allclose(right, cotangents((2,)) * [-1.5, 0.5], rtol=1e-6)


def test_a_class_ruled_out():
    """NaN there, as are the ±inf logits of a sigmoid."""
    x, q = np.array([[-np.inf, 2.0, 0.0]]), np.array([[0.0, 0.6, 0.4]])
    name = "softmax_cross_entropy_with_logits"
    assert np.isnan(reference(getattr(tf.nn, name), {"logits": x}, "float32", labels=q)[0])
    value, _, [gradient] = ours(
        lambda x: dialect.nn.softmax_cross_entropy_with_logits(q, x), [x], "float32"
    )
    np.testing.assert_allclose(value, 0.4 * 2 + np.log1p(np.exp(-2)), rtol=1e-6)
    assert gradient[0, 0] == 0 and np.isfinite(gradient).all()
    x, z = np.array([np.inf, -np.inf, -np.inf]), np.array([1.0, 0.0, 1.0])
    assert np.isnan(tf.nn.sigmoid_cross_entropy_with_logits(z, x)).any()
    value = dialect.nn.sigmoid_cross_entropy_with_logits(z, jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(value, [0, 0, np.inf])


def test_confident_examples():
    """Exactly 0 there, value and gradient, from a margin of 17."""
    x, q = np.array([[40.0, 0.0, 0.0]]), np.eye(3)[:1]
    for name, y in (
        ("sparse_softmax_cross_entropy_with_logits", np.array([0])),
        ("softmax_cross_entropy_with_logits", q),
    ):
        assert reference(getattr(tf.nn, name), {"logits": x}, "float32", labels=y)[0] == 0
        value, _, [gradient] = ours(
            lambda x, n=name, y=y: getattr(dialect.nn, n)(y, x), [x], "float32"
        )
        np.testing.assert_allclose(value, [2 * np.exp(-40.0)], rtol=1e-5)
        wanted = cotangents((1,)) * np.exp(-40.0) * np.array([[-2, 1, 1]])
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4)


def test_precision_of_the_sums():
    """There float64 losses are rounded to float32 on the way."""
    losses = 1 + 1e-9 * np.arange(4.0)
    wrong = reference(V1.compute_weighted_loss, {"losses": losses}, "float64")
    right = ours(dialect.losses.compute_weighted_loss, [losses], "float64")
    assert wrong[0] == 1 and abs(right[0] - losses.mean()) < 1e-15


def test_smoothing_out_of_range():
    for smoothing in (-0.1, 1.1):
        with pytest.raises(ValueError, match="label_smoothing"):
            dialect.losses.softmax_cross_entropy(Q, X, label_smoothing=smoothing)
        with pytest.raises(ValueError, match="label_smoothing"):
            dialect.losses.sigmoid_cross_entropy(Q, X, label_smoothing=smoothing)


def test_weight_zero_is_a_mask():
    """NaN there; a label of −1 raises there."""
    x = np.array([[1.0, 2.0, 0.5], [np.nan, -np.inf, np.inf], [0.0, 1.0, 0.0]])
    y, q, w = np.array([1, 0, -1]), np.eye(3)[[1, 0, 1]], np.array([1.0, 0.0, 0.0])
    assert np.isnan(V1.softmax_cross_entropy(q, x, w))
    truth = np.log(np.exp(x[0]).sum()) - 2
    for function, labels in (
        (dialect.losses.sparse_softmax_cross_entropy, y),
        (dialect.losses.softmax_cross_entropy, q),
    ):
        value, _, [gradient] = ours(lambda x, f=function, t=labels: f(t, x, w), [x], "float32")
        np.testing.assert_allclose(value, truth, rtol=1e-5)
        assert (gradient[1:] == 0).all() and np.isfinite(gradient).all()
    value, _, gradients = ours(
        lambda x, w: dialect.losses.sigmoid_cross_entropy(q, x, w), [x, w[:, None]], "float32"
    )
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    p, z, w = np.array([0.5, np.nan, 7.0, 0.25]), [1.0, 0.0, 0.0, np.nan], [1.0, 0.0, 0.0, 0.0]
    assert np.isnan(V1.log_loss(z, p, w))
    for epsilon in (0, 1e-7):
        value, _, [gradient] = ours(
            lambda p, e=epsilon: dialect.losses.log_loss(z, p, w, e), [p], "float32"
        )
        np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
        np.testing.assert_allclose(gradient / cotangents(()), [-2, 0, 0, 0], rtol=1e-6)


def test_gradients_in_a_weight_of_zero():
    """A weight of 0 keeps its own, where the loss is finite."""
    x, y, w = draw(1, 3, 4), np.arange(3), np.array([1.0, 0.0, 2.0])
    options = {"labels": y, "reduction": dialect.losses.Reduction.SUM}
    check("losses", SPARSE, {"logits": x, "weights": w}, **options)
    assert np.all(
        ours(lambda w: dialect.losses.sparse_softmax_cross_entropy(y, x, w), [w], "float32")[2][0]
    )


def test_second_derivatives_and_transformations():
    """The names that had none for years: each under jit, vmap and twice differentiated."""
    x, y = jnp.asarray(draw(1, 2, 3, 4), jnp.float32), jnp.array([[0, 3, 1], [2, 2, 0]])
    loss = dialect.losses.sparse_softmax_cross_entropy
    hessian = jax.jit(jax.vmap(jax.hessian(lambda x, y: loss(y, x))))(x, y)
    p = np.asarray(jax.nn.softmax(x))
    truth = np.eye(4) * p[..., None] - np.asarray(p)[..., None] * p[..., None, :]
    np.testing.assert_allclose(
        jnp.einsum("bniNj,nN->bnij", hessian, jnp.eye(3)) * 3, truth, atol=1e-5
    )


def test_a_negative_weight_of_the_positives():
    """Taken as it is there."""
    assert np.isfinite(tf.nn.weighted_cross_entropy_with_logits(Q, X, -1.0)).all()
    with pytest.raises(ValueError, match="pos_weight"):
        dialect.nn.weighted_cross_entropy_with_logits(Q, X, -1.0)
