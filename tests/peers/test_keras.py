"""jaxent.compat.keras beside keras.losses on the JAX backend, and inside model.fit."""

import functools
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import agree, cotangents, distributions, draw, ours, rounded

os.environ["KERAS_BACKEND"] = "jax"
keras = pytest.importorskip("keras")

from jaxent.compat import keras as dialect  # noqa: E402

theirs = keras.losses
EPSILON = 1e-7


def in_standard_jax(function):
    @functools.wraps(function)
    def run(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return run


reference = in_standard_jax(ours)


def labelled(function, y):
    return lambda x, **options: function(y, x, **options)


def check(name, y, x, dtype="float32", atol=None, mine=None, **options):
    """A function of ``y_pred``; ``mine`` are options of ours alone."""
    x, y = rounded(x, dtype), rounded(y, dtype)
    agree(
        *(
            run(labelled(getattr(module, name), y), [x], dtype, **options, **more)
            for run, module, more in ((ours, dialect, mine or {}), (reference, theirs, {}))
        ),
        dtype,
        (name, x.shape, dtype, options),
        atol,
    )


SHAPES = [(5,), (6, 5), (3, 2, 4), (2, 2, 3, 3), (2, 1, 2, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ranks(shape):
    """Logits and probabilities; the gradient in probabilities is that of their sum too."""
    x, p, q = draw(1, *shape), distributions(2, *shape), distributions(3, *shape)
    y = np.random.default_rng(4).integers(0, shape[-1], shape[:-1])
    for pred, from_logits in ((x, True), (p, False), (2 * p, False)):
        options = {"from_logits": from_logits}
        if len(shape) > 1:  # the original's squeezes need a batch
            check("sparse_categorical_crossentropy", y, pred, **options)
        check("categorical_crossentropy", q, pred, label_smoothing=0.1, **options)
        check("categorical_focal_crossentropy", q, pred, gamma=1.5, **options)
    z = np.random.default_rng(5).uniform(size=shape)
    check("kl_divergence", q, 0.7 * p)  # taken as they are: their sum is no matter
    for pred, from_logits in ((x, True), (p, False)):
        check("binary_crossentropy", z, pred, from_logits=from_logits, label_smoothing=0.1)
        check("binary_focal_crossentropy", z, pred, from_logits=from_logits)


def test_options():
    x, p, q = draw(1, 6, 5), distributions(2, 6, 5), distributions(3, 6, 5)
    y, z = np.array([0, 4, 2, 2, 1, 3]), np.eye(5)[[0, 4, 2, 2, 1, 3]]
    check("sparse_categorical_crossentropy", y[:, None], x, from_logits=True)
    check("sparse_categorical_crossentropy", y, x, from_logits=True, ignore_class=2)
    check("sparse_categorical_crossentropy", np.where(y == 2, -1, y), p, ignore_class=-1)
    check("sparse_categorical_crossentropy", y.astype(np.float32), p)
    check("categorical_crossentropy", q, x, from_logits=True, axis=0)
    check("categorical_crossentropy", q.T, p.T, axis=0)
    check("categorical_focal_crossentropy", z, x, alpha=[0.1, 0.2, 0.3, 0.4, 0.5], from_logits=True)
    check("categorical_focal_crossentropy", q, p, gamma=0.0, label_smoothing=0.1)
    check("binary_focal_crossentropy", z, x, apply_class_balancing=True, from_logits=True)
    check("binary_focal_crossentropy", z, p, apply_class_balancing=True, alpha=0.4, gamma=0.5)
    check("binary_crossentropy", z, x, from_logits=True, axis=0)
    for power in (0.3, 0.7):
        check("categorical_generalized_cross_entropy", y, p, q=power)


def test_the_clip_that_is_asked_for():
    """Values and gradients of probabilities beyond it, too."""
    p = np.array([[1e-9, 0.5, 0.5], [1.0, 1e-10, 0.0], [0.0, 0.0, 1.0]])
    y, mine = np.array([0, 1, 2]), {"epsilon": EPSILON}
    check("sparse_categorical_crossentropy", y, p, mine=mine)
    check("sparse_categorical_crossentropy", y, p, mine=mine, ignore_class=1)
    check("categorical_crossentropy", np.eye(3)[y], p, mine=mine, label_smoothing=0.1)
    check("categorical_focal_crossentropy", np.eye(3)[y], p, mine=mine)
    check("binary_crossentropy", np.eye(3)[y], p, mine=mine)
    check("kl_divergence", np.eye(3)[y], p, mine=mine)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes(dtype):
    x, p, q = draw(1, 6, 5), distributions(2, 6, 5), distributions(3, 6, 5)
    y = np.array([0, 4, 2, 2, 1, 3])
    check("sparse_categorical_crossentropy", y, x, dtype, from_logits=True)
    check("categorical_crossentropy", q, x, dtype, from_logits=True)
    if dtype != "float16":  # gradients of −inf there
        check("kl_divergence", q, p, dtype)
    if dtype != "float64":  # a mean in float32 there
        check("binary_crossentropy", np.eye(5)[y], x, dtype, from_logits=True)
    if dtype == "float64":  # 1 − 1e-7 is 1 in 16 bits, and a probability of 1 a loss of inf
        check("categorical_crossentropy", q, p, dtype)
        check("categorical_focal_crossentropy", q, p, dtype)


# --- classes ------------------------------------------------------------------------------------

REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None)
CLASSES = {
    "SparseCategoricalCrossentropy": np.array([0, 4, 2, 2, 1, 3]),
    "CategoricalCrossentropy": distributions(3, 6, 5),
    "BinaryCrossentropy": np.eye(5)[[0, 4, 2, 2, 1, 3]],
    "CategoricalFocalCrossentropy": distributions(3, 6, 5),
    "BinaryFocalCrossentropy": np.eye(5)[[0, 4, 2, 2, 1, 3]],
}


def check_class(name, y, x, weights=None, compiled=False, **options):
    def of(module):
        return labelled(getattr(module, name)(**options), y)

    weights = {} if weights is None else {"sample_weight": np.asarray(weights)}
    agree(
        ours(of(dialect), [x], "float32", compiled, **weights),
        reference(of(theirs), [x], "float32", compiled, **weights),
        "float32",
        (name, options, weights),
    )


SPARSE = "SparseCategoricalCrossentropy"
WEIGHTS = np.array([2.0, 0.0, 0.5, 1.0, 0.0, 3.0])


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    x, p, y = draw(1, 6, 5), distributions(2, 6, 5), CLASSES[name]
    check_class(name, y, x, WEIGHTS, compiled=True, from_logits=True)
    check_class(name, y, p, compiled=True)
    if name != SPARSE:
        options = {"label_smoothing": 0.2, "reduction": "sum"}
        check_class(name, y, x, compiled=True, from_logits=True, **options)


def test_the_generalized_class():
    y, p = np.array([0, 3, 3]), distributions(2, 3, 4)
    check_class("CategoricalGeneralizedCrossEntropy", y, p, WEIGHTS[:3], compiled=True, q=0.3)
    column = dialect.CategoricalGeneralizedCrossEntropy()(y[:, None], jnp.asarray(p))
    np.testing.assert_allclose(column, (2 - 2 * np.sqrt(p[[0, 1, 2], y])).mean(), rtol=1e-5)


def test_the_divergence():
    q, p = distributions(3, 6, 5), distributions(2, 6, 5)
    check("kl_divergence", q[:1], p)
    check("kl_divergence", q, p[:1])
    for options in ({}, {"reduction": "mean_with_sample_weight"}):
        check_class("KLDivergence", q, p, WEIGHTS, compiled=True, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(reduction):
    x, y = draw(1, 6, 5), CLASSES[SPARSE]
    options = {"from_logits": True, "reduction": reduction}
    for weights in (None, WEIGHTS, WEIGHTS[:, None], np.zeros(6), np.arange(6)):
        check_class(SPARSE, y, x, weights=weights, **options)
        check_class(SPARSE, y, x, weights=weights, ignore_class=2, **options)
    check_class(SPARSE, y * 0 + 2, x, ignore_class=2, **options)
    x, y = x.reshape(2, 3, 5), y.reshape(2, 3)
    check_class(SPARSE, y, x, weights=WEIGHTS.reshape(2, 3), **options)
    if reduction != "mean_with_sample_weight":  # divides by a sum that is not broadcast there
        check_class(SPARSE, y, x, weights=WEIGHTS[:2, None], **options)
        check_class(SPARSE, y, x, weights=2.0, **options)


def test_a_batch_of_nothing():
    """Functions agree; a class returns its empty losses there whatever its reduction, here 0."""
    nothing, y = np.zeros((0, 5)), np.zeros(0, int)
    check("sparse_categorical_crossentropy", y, nothing, from_logits=True)
    check("categorical_crossentropy", nothing, nothing, from_logits=True)
    for reduction in ("sum_over_batch_size", "sum", "mean_with_sample_weight"):
        loss = dialect.SparseCategoricalCrossentropy(True, reduction=reduction)
        assert loss(y, jnp.asarray(nothing, jnp.float32)) == 0


def test_binary_labels_without_their_axis():
    y, x = np.array([0, 1, 1]), draw(1, 3, 1)
    check_class("BinaryCrossentropy", y, x, compiled=True, from_logits=True)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_classes_return_float32(dtype):
    y, x = CLASSES["SparseCategoricalCrossentropy"], rounded(draw(1, 6, 5), dtype)
    with jax.enable_x64(dtype == "float64"):
        for module, run in ((dialect, ours), (theirs, reference)):
            loss = module.SparseCategoricalCrossentropy(from_logits=True)
            assert run(labelled(loss, y), [x], dtype)[1] == "float32"


X, Y, Q = np.zeros((3, 4), np.float32), np.array([0, 1, 2]), np.full((3, 4), 0.25, np.float32)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("sparse_categorical_crossentropy", (Y[:2], X), {}),
        ("sparse_categorical_crossentropy", (Q, X), {}),
        ("sparse_categorical_crossentropy", (Y[0], X), {}),
        ("sparse_categorical_crossentropy", (Y[None], X), {}),
        ("categorical_crossentropy", (Q[:2], X), {}),
        ("categorical_crossentropy", (Q[0], X), {}),
        ("categorical_crossentropy", (Y, X), {}),
        ("categorical_crossentropy", (Q, X), {"axis": True}),
        ("categorical_crossentropy", (Q, X), {"axis": 3}),
        ("categorical_focal_crossentropy", (Q[:2], X), {}),
        ("categorical_focal_crossentropy", (Q, X), {"axis": True}),
        ("binary_crossentropy", (Q[:2], X), {}),
        ("binary_crossentropy", (Q[0], X), {}),
        ("binary_focal_crossentropy", (Q[0], X), {}),
        ("kl_divergence", (Q[:2], X), {}),
        ("KLDivergence", (), {"reduction": "avg"}),
        ("CategoricalGeneralizedCrossEntropy", (), {"q": 1.0}),
        ("SparseCategoricalCrossentropy", (), {"reduction": "avg"}),
        ("BinaryCrossentropy", (), {"reduction": "weighted_mean"}),
    ],
)
def test_the_same_misuse_raises(name, arguments, options):
    """jnp's TypeError of shapes that do not broadcast is a ValueError here."""
    with pytest.raises((TypeError, ValueError)):
        in_standard_jax(getattr(theirs, name))(*arguments, **options)
    with pytest.raises(ValueError):
        getattr(dialect, name)(*arguments, **options)


def test_one_class_warns():
    for module in (dialect, theirs):
        with pytest.warns(SyntaxWarning):
            in_standard_jax(module.categorical_crossentropy)(X[:, :1], X[:, :1] + 1)


# --- model.fit ----------------------------------------------------------------------------------


OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def fitted(loss, x, y, **fit):
    """The weights of a small model, trained for three epochs from the same start."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss=loss)
    history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, **fit)
    return [*model.get_weights(), np.array(history.history["loss"])]


RNG = np.random.default_rng(0)
FEATURES, CLASS = RNG.normal(size=(24, 4)).astype("f4"), RNG.integers(0, 3, 24)
FITS = {
    "plain": {},
    "class weights": {"class_weight": {0: 1.0, 1: 4.0, 2: 0.25}},
    "sample weights": {"sample_weight": np.arange(24.0) / 12},
}


@OLD_NUMPY
@pytest.mark.parametrize("fit", FITS)
@in_standard_jax
def test_fit(fit):
    """Every way to hand a loss over trains the same model as Keras' own loss."""
    wanted = fitted(
        theirs.SparseCategoricalCrossentropy(from_logits=True), FEATURES, CLASS, **FITS[fit]
    )
    mine = dialect.SparseCategoricalCrossentropy(from_logits=True)
    function = functools.partial(dialect.sparse_categorical_crossentropy, from_logits=True)
    for loss in (function, dialect.compiled_loss(mine, keras)):
        for got, want in zip(fitted(loss, FEATURES, CLASS, **FITS[fit]), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@OLD_NUMPY
@in_standard_jax
def test_fit_with_an_ignored_class():
    labels = np.where(np.arange(24) % 3 == 0, -1, CLASS)
    losses = [
        module.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
        for module in (theirs, dialect)
    ]
    wanted = fitted(losses[0], FEATURES, labels)
    for got, want in zip(
        fitted(dialect.compiled_loss(losses[1], keras), FEATURES, labels), wanted, strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


ARGUMENTS = {
    "SparseCategoricalCrossentropy": {"from_logits": True, "ignore_class": 2, "axis": -1},
    "CategoricalCrossentropy": {"label_smoothing": 0.1, "dtype": "bfloat16"},
    "CategoricalFocalCrossentropy": {"alpha": jnp.array([0.5, 1.0, 2.0]), "gamma": 1.5},
    "CategoricalGeneralizedCrossEntropy": {"q": 0.25, "reduction": "mean_with_sample_weight"},
    "BinaryCrossentropy": {"from_logits": True, "reduction": "sum", "name": "mine"},
    "BinaryFocalCrossentropy": {"apply_class_balancing": True, "epsilon": 1e-3},
    "KLDivergence": {"epsilon": 1e-7},
}


@OLD_NUMPY
@pytest.mark.parametrize("name", ARGUMENTS)
@in_standard_jax
def test_a_saved_model_has_its_loss(name, tmp_path):
    loss = getattr(dialect, name)(**ARGUMENTS[name])
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    for given in (loss, dialect.compiled_loss(loss, keras)):
        model.compile(loss=given)
        model.optimizer.build(model.trainable_variables)
        model.save(tmp_path / "model.keras")
        found = keras.saving.load_model(tmp_path / "model.keras").loss
        assert type(found) is type(given)
        found = getattr(found, "loss", found)
        assert (type(found), found.get_config()) == (type(loss), loss.get_config())
    assert given.reduction == loss.reduction


@OLD_NUMPY
@in_standard_jax
def test_a_model_loaded_by_another_program(tmp_path):
    loss = dialect.BinaryCrossentropy(from_logits=True, label_smoothing=0.1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile(loss=dialect.compiled_loss(loss, keras))
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    code = (
        "import keras; from jaxent.compat import keras as klosses; klosses.register(keras);"
        f"print(keras.saving.load_model({str(tmp_path / 'model.keras')!r}).loss.loss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(loss)


def test_class_weights():
    from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

    table, onehot = {1: 4.0}, np.eye(3, dtype="f4")[CLASS]
    for y in (
        CLASS,
        CLASS - 1e-3,
        CLASS[:, None],
        CLASS[:, None] * 1.0,
        onehot,
        0.8 * onehot + 0.1,
    ):
        for of in (lambda f: f, jax.jit):
            mine = of(lambda y: dialect.class_weight_to_sample_weights(y, table))
            np.testing.assert_array_equal(mine(y), class_weight_to_sample_weights(y, table))
    for y in (onehot, onehot.astype(int)):
        np.testing.assert_array_equal(
            dialect.class_weight_to_sample_weights(y, table, -1),
            class_weight_to_sample_weights(y, table),
        )
    grid = CLASS.reshape(2, 3, 4)  # the argmax of each row there
    for y in (grid, grid[..., None]):
        weights = jax.jit(lambda y: dialect.class_weight_to_sample_weights(y, table))(y)
        np.testing.assert_array_equal(weights, np.array([1.0, 4.0, 1.0])[grid])


# --- where the original is wrong ----------------------------------------------------------------


def test_probabilities_are_not_clipped():
    """16.1 at most there, with a gradient of 0."""
    p, y = np.array([[1e-20, 1.0], [0.25, 0.75]]), np.array([0, 0])
    assert (
        reference(labelled(theirs.sparse_categorical_crossentropy, y), [p], "float32")[0][0] < 16.2
    )
    value, _, [gradient] = ours(
        labelled(dialect.sparse_categorical_crossentropy, y), [p], "float32"
    )
    np.testing.assert_allclose(value, [20 * np.log(10), np.log(4)], rtol=1e-6)
    truth = cotangents((2,))[:, None] * [[-1e20, 1], [-3, 1]]
    np.testing.assert_allclose(gradient, truth, rtol=1e-5)


def test_a_divergence_is_not_clipped():
    """16.1 at most there; a class of target 0 has a share of the gradient."""
    q, p = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1e-20, 0.5], [0.0, 0.5]])
    value, _, [gradient] = reference(labelled(theirs.kl_divergence, q), [p], "float32")
    assert value[0] < 16.2 and gradient[0, 0] == 0 and gradient[0, 1] != 0
    value, _, [gradient] = ours(labelled(dialect.kl_divergence, q), [p], "float32")
    np.testing.assert_allclose(value, [20 * np.log(10), np.log(2)], rtol=1e-6)
    truth = cotangents((2,))[:, None] * [[-1e20, 0], [0, -2]]
    np.testing.assert_allclose(gradient, truth, rtol=1e-5)


@pytest.mark.parametrize("name", ["categorical_crossentropy", "categorical_focal_crossentropy"])
def test_a_probability_of_zero(name):
    """It has an exact gradient where it is not the label's, and an infinite one where it is."""
    p, q = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), np.eye(3)[[0, 1]]
    value, _, [gradient] = ours(labelled(getattr(dialect, name), q), [p], "float32")
    assert np.isfinite(value[0]) and value[1] == np.inf
    assert np.isfinite(gradient[0]).all() and gradient[1, 1] == -np.inf
    assert not np.isnan(gradient).any()


def test_labels_out_of_range():
    """A loss of 0 there."""
    x, y = draw(1, 4, 3), np.array([-1, 3, 1.5, 1.0], np.float32)
    options = {"from_logits": True}
    value = reference(
        labelled(theirs.sparse_categorical_crossentropy, y), [x], "float32", **options
    )
    assert (value[0][:2] == 0).all()
    value, _, [gradient] = ours(
        labelled(dialect.sparse_categorical_crossentropy, y), [x], "float32", **options
    )
    np.testing.assert_array_equal(np.isnan(value), [True, True, True, False])
    np.testing.assert_array_equal(np.isnan(gradient).all(-1), np.isnan(value))


def test_any_axis():
    """Class indices need the last one there, and smoothing divides by the size of the last one."""
    x, y = draw(1, 2, 5, 3), np.random.default_rng(2).integers(0, 5, (2, 3))
    with pytest.raises(ValueError):
        in_standard_jax(theirs.sparse_categorical_crossentropy)(y, x, from_logits=True, axis=1)
    last = np.moveaxis(x, 1, -1)
    for name, labels, rows in (
        ("sparse_categorical_crossentropy", y, y),
        ("categorical_crossentropy", np.moveaxis(np.eye(5)[y], -1, 1), np.eye(5)[y]),
    ):
        options = {"label_smoothing": 0.1} if name.startswith("cat") else {}
        options |= {"from_logits": True}
        mine = ours(labelled(getattr(dialect, name), labels), [x], "float32", axis=1, **options)
        wanted = reference(labelled(getattr(theirs, name), rows), [last], "float32", **options)
        np.testing.assert_allclose(mine[0], wanted[0], rtol=1e-5)
        np.testing.assert_allclose(np.moveaxis(mine[2][0], 1, -1), wanted[2][0], atol=1e-5)


def test_an_ignored_class_beside_its_neighbour():
    """float16 logits drop 2048 with 2049 there."""
    x, y = np.zeros((2, 3000)), np.array([2048, 2049])
    options = {"from_logits": True, "ignore_class": 2049}
    mine = ours(labelled(dialect.sparse_categorical_crossentropy, y), [x], "float16", **options)
    np.testing.assert_allclose(mine[0], [np.log(3000), 0], rtol=1e-3)
    wrong = reference(
        labelled(theirs.sparse_categorical_crossentropy, y), [x], "float16", **options
    )
    assert (wrong[0] == 0).all()


def test_labels_of_a_16_bit_class():
    """Label 257 is 256 there."""
    x, y = jnp.zeros((1, 300)).at[0, 257].set(6.0), np.array([257])
    wrong, right = (
        in_standard_jax(m.SparseCategoricalCrossentropy(True, dtype="bfloat16"))(y, x)
        for m in (theirs, dialect)
    )
    assert wrong.dtype == right.dtype == jnp.bfloat16
    truth = np.log1p(299 * np.exp(-6.0))
    assert abs(float(wrong) - truth) > 5
    np.testing.assert_allclose(np.float32(right), truth, rtol=0.01)


def test_an_example_of_weight_zero_may_hold_nan():
    """NaN there."""
    x, y, w = jnp.array([[0.0, 0.0], [jnp.nan, 0.0]]), np.array([0, 1]), np.array([1.0, 0.0])
    wrong, right = (
        in_standard_jax(m.SparseCategoricalCrossentropy(True, reduction="sum"))(y, x, w)
        for m in (theirs, dialect)
    )
    assert np.isnan(wrong)
    np.testing.assert_allclose(right, np.log(2), rtol=1e-6)


def test_focal_losses_of_logits():
    """Through a clipped probability there: 16.1 for 100, and NaN gradients."""
    x, z = np.array([[-100.0], [100.0]]), np.array([[1.0], [1.0]])
    options = {"from_logits": True, "gamma": 0.5}
    wrong = reference(labelled(theirs.binary_focal_crossentropy, z), [x], "float32", **options)
    assert wrong[0][0] < 16.2 and np.isnan(wrong[2][0]).any()
    value, _, [gradient] = ours(
        labelled(dialect.binary_focal_crossentropy, z), [x], "float32", **options
    )
    np.testing.assert_allclose(value, [100, 0], atol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], cotangents((2,)) * [-1, 0], atol=1e-5)


def test_weights_of_the_leading_axes():
    """Of a square batch, the trailing axis there."""
    x, y, w = draw(1, 3, 3, 4), np.zeros((3, 3), int), np.array([1.0, 0.0, 0.0])
    loss = dialect.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    assert (np.asarray(loss(y, jnp.asarray(x), w))[1:] == 0).all()
    loss = dialect.SparseCategoricalCrossentropy(True, reduction="mean_with_sample_weight")
    each = dialect.sparse_categorical_crossentropy(y, jnp.asarray(x), from_logits=True)
    np.testing.assert_allclose(loss(y, jnp.asarray(x), w[:, None]), each[0].mean(), rtol=1e-5)


def test_weights_of_one_example():
    """Each multiplies its loss there."""
    y, x, w = np.array([0.0, 1.0, 1.0]), jnp.array([0.5, 1.0, 2.0]), np.array([1.0, 0.0, 5.0])
    one = float(dialect.BinaryCrossentropy(True)(y, x))
    there = in_standard_jax(theirs.BinaryCrossentropy(True))
    np.testing.assert_allclose(there(y, x, w), 2 * one, rtol=1e-6)
    with pytest.raises(ValueError, match="one example of 3 outputs"):
        dialect.BinaryCrossentropy(True)(y, x, w)
    agreeing = (m.BinaryCrossentropy(True)(y[:, None], x[:, None], w) for m in (theirs, dialect))
    np.testing.assert_allclose(*in_standard_jax(lambda: [*agreeing])(), rtol=1e-6)


def test_nothing_broadcasts_in_the_focal_loss():
    """In no other loss of dense labels there."""
    assert in_standard_jax(theirs.categorical_focal_crossentropy)(Q[:1], Q).shape == (3,)
    with pytest.raises(ValueError, match="y_true must have the shape of y_pred"):
        dialect.categorical_focal_crossentropy(Q[:1], Q)


def test_smoothing_out_of_range():
    for smoothing, q in itertools.product((-0.1, 1.1), (jnp.asarray(Q),)):
        with pytest.raises(ValueError, match="label_smoothing"):
            dialect.categorical_crossentropy(q, q, label_smoothing=smoothing)


def test_every_name_is_here_or_named_as_out_of_scope():
    names = {n for n in dir(theirs) if not n.startswith("_")}
    out = {
        *("CTC", "CategoricalHinge", "Circle", "CosineSimilarity", "Dice", "Hinge", "Huber"),
        *("LogCosh", "Loss", "MeanAbsoluteError", "MeanAbsolutePercentageError"),
        *("MeanSquaredError", "MeanSquaredLogarithmicError", "Poisson", "SquaredHinge", "Tversky"),
        *("categorical_hinge", "circle", "cosine_similarity", "ctc", "deserialize", "dice", "get"),
        *("hinge", "huber", "log_cosh", "mean_absolute_error", "mean_absolute_percentage_error"),
        *("mean_squared_error", "mean_squared_logarithmic_error", "poisson", "serialize"),
        *("squared_hinge", "tversky"),
    }
    assert {n for n in names if not hasattr(dialect, n)} == out
