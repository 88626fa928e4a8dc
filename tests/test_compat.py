"""The dialects without their originals: laws all of them obey. Parity is in tests/peers."""

import inspect
import json
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxent import compat

F, optax, keras, nn, tf1 = (
    compat.torch,
    compat.optax,
    compat.keras,
    compat.tensorflow.nn,
    compat.tensorflow.losses,
)

# Logits [2, 3, 4]: flat, confident, hopeless, with an offset.
LOGITS = np.array(
    [
        [[0.0, 0.0, 0.0, 0.0], [9.0, 1.0, 0.0, 2.0], [0.5, -1.0, 30.0, 0.0]],
        [[1e3, 1001.0, 999.0, 1e3], [-3.0, 2.0, 2.0, 0.0], [20.0, 0.0, -20.0, 5.0]],
    ],
    np.float32,
)
LABELS = np.array([[3, 0, 2], [1, 3, 2]], np.int32)
ONEHOT = np.eye(4, dtype=np.float32)[LABELS]
SOFT = (ONEHOT + 0.25).astype(np.float32)  # rows sum to 2
BINARY = (LOGITS > 0.4).astype(np.float32)
TABLE = np.array([0.5, 2.0, 1.0, 4.0], np.float32)
ROWS = np.array([[1.0], [0.0], [2.0]], np.float32)
HEAD = np.array([[1, 0, -1, 2], [0, 3, 1, 0], [2, -1, 0, 1], [-2, 0, 1, 0.5]], np.float32)
SAMPLE = (np.array([3, 0, 1]), np.full((3, 1), 0.4, np.float32), np.float32([0.3, 0.9, 0.7]))
VALUES = (3, 4, 1, SAMPLE)


def of_probs(loss):
    """Of logits, through a softmax that keeps to (0, 1)."""
    return lambda x, *more: loss(jax.nn.softmax(x / 64), *more)


LOSSES = {  # one loss of logits [..., 3, 4] and what else has a batch axis
    "optax integer": (optax.softmax_cross_entropy_with_integer_labels, LABELS),
    "optax dense": (optax.softmax_cross_entropy, SOFT),
    "optax where": (
        lambda x, y, m: optax.softmax_cross_entropy_with_integer_labels(x, y, where=m),
        *(LABELS, ONEHOT.astype(bool) | (LOGITS < 2)),
    ),
    "optax sigmoid": (optax.sigmoid_binary_cross_entropy, BINARY),
    "optax focal": (lambda x, z: optax.sigmoid_focal_loss(x, 0.8 * z + 0.1, alpha=0.3), BINARY),
    "optax focal options": (
        lambda x, z: optax.sigmoid_focal_loss(x, 0.8 * z + 0.1, alpha=TABLE / 4, gamma=TABLE),
        BINARY,
    ),
    "optax poly": (optax.poly_loss_cross_entropy, SOFT),
    "optax poly options": (
        lambda x, q: optax.poly_loss_cross_entropy(x, q, epsilon=TABLE[:3] - 1),
        SOFT,
    ),
    "optax kl": (of_probs(lambda p, q: optax.kl_divergence(jnp.log(p), q)), SOFT),
    "optax generalized kl": (
        lambda x, q: optax.generalized_kl_divergence(x / 64, q),
        SOFT,
    ),
    "optax ranking": (lambda x, q: optax.ranking_softmax_loss(x, q, where=x < 25), SOFT),
    "torch linear": (
        lambda x, y: F.linear_cross_entropy(x / 8, HEAD, y, linear_bias=TABLE, options=2),
        LABELS,
    ),
    "torch": (
        lambda x, y: F.cross_entropy(x, y, jnp.asarray(TABLE), label_smoothing=0.1),
        LABELS,
    ),
    "torch nll": (of_probs(lambda p, y: F.nll_loss(jnp.log(p), y)), LABELS),
    "torch probabilities": (F.cross_entropy, SOFT),
    "torch binary": (
        lambda x, z: F.binary_cross_entropy_with_logits(x, z, pos_weight=jnp.asarray(TABLE)),
        BINARY,
    ),
    "torch probs": (
        lambda x, z: F.binary_cross_entropy(jax.nn.sigmoid(x / 256), 0.8 * z + 0.1),
        BINARY,
    ),
    "torch soft margin": (lambda x, z: F.soft_margin_loss(x, 2 * z - 1), BINARY),
    "torch multilabel": (
        lambda x, z: F.multilabel_soft_margin_loss(x, z, jnp.asarray(TABLE)),
        BINARY,
    ),
    "torch kl": (of_probs(lambda p, q: F.kl_div(jnp.log(p), q, reduction="sum")), SOFT),
    "tf sparse": (lambda x, y: nn.sparse_softmax_cross_entropy_with_logits(y, x), LABELS),
    "tf axis": (lambda x, q: nn.softmax_cross_entropy_with_logits(q, x, axis=0), SOFT),
    "tf weighted": (lambda x, z: nn.weighted_cross_entropy_with_logits(z, x, 3.0), BINARY),
    "tf sampled": (
        lambda x, y: nn.sampled_softmax_loss(HEAD, TABLE, y[:, None], x / 8, *VALUES),
        LABELS,
    ),
    "tf nce": (lambda x, y: nn.nce_loss(HEAD, TABLE, y[:, None], x / 8, *VALUES), LABELS),
    "tf average": (
        lambda x, z: nn.compute_average_loss(
            nn.sigmoid_cross_entropy_with_logits(z, x), jnp.arange(3.0), 6
        ),
        BINARY,
    ),
    "tf1 sigmoid": (lambda x, z: tf1.sigmoid_cross_entropy(z, x, jnp.asarray(ROWS)), BINARY),
    "tf1": (
        lambda x, y: tf1.sparse_softmax_cross_entropy(y, x, jnp.asarray(TABLE)[y]),
        LABELS,
    ),
    "tf1 dense": (lambda x, q: tf1.softmax_cross_entropy(q, x, label_smoothing=0.1), ONEHOT),
    "tf1 log": (of_probs(lambda p, z: tf1.log_loss(z, p)), BINARY),
    "keras kl": (of_probs(lambda p, q: keras.kl_divergence(q, p)), SOFT),
    "keras sparse": (
        lambda x, y: compat.keras.SparseCategoricalCrossentropy(True, ignore_class=3)(y, x),
        LABELS,
    ),
    "keras probs": (of_probs(lambda p, y: keras.sparse_categorical_crossentropy(y, p)), LABELS),
    "keras dense": (of_probs(lambda p, q: keras.categorical_crossentropy(q, p)), SOFT),
    "keras binary": (of_probs(lambda p, z: keras.binary_crossentropy(z, p)), BINARY),
    "keras binary focal": (
        lambda x, z: keras.BinaryFocalCrossentropy(True, 0.3, 1.5, True, 0.1)(z, x),
        BINARY,
    ),
    "keras focal": (
        lambda x, q: keras.categorical_focal_crossentropy(q, x, gamma=1.5, from_logits=True),
        SOFT,
    ),
    "keras generalized": (
        of_probs(lambda p, y: keras.categorical_generalized_cross_entropy(y, p, 0.5)),
        LABELS,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_transformation(name):
    """jit of vmap is the loop; grad agrees with jvp, a Hessian-vector product with differences."""
    loss, *more = LOSSES[name]
    x, more = jnp.asarray(LOGITS), [jnp.asarray(m) for m in more]
    v = jnp.asarray(np.random.default_rng(0).normal(size=LOGITS.shape[1:]), jnp.float32)

    def total(x, *more):
        return jnp.sum(loss(x, *more))

    def along(x, *more):
        return jax.jvp(lambda x: total(x, *more), (x,), (v,))[1]

    def everything(x, *more):
        gradient = jax.grad(total)
        product = jax.jvp(lambda x: gradient(x, *more), (x,), (v,))[1]
        return (
            loss(x, *more),
            gradient(x, *more),
            along(x, *more),
            product,
            jax.grad(along)(x, *more),
        )

    mapped = jax.jit(jax.vmap(everything))(x, *more)
    assert all(np.isfinite(part).all() for part in mapped)
    value, gradient, tangent, product, of_tangent = mapped
    np.testing.assert_allclose(np.einsum("bic,ic->b", gradient, v), tangent, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(product, of_tangent, rtol=1e-3, atol=1e-5)
    one = jax.jit(loss)(x[1], *(m[1] for m in more))
    np.testing.assert_allclose(value[1], one, rtol=1e-5, atol=1e-6)


INTEGER_LABELS = {
    "optax": optax.softmax_cross_entropy_with_integer_labels,
    "torch": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "torch smoothed": lambda x, y: F.cross_entropy(
        x, y, jnp.asarray(TABLE), reduction="none", label_smoothing=0.1
    ),
    "torch nll": lambda x, y: F.nll_loss(x, y, reduction="none"),
    "tf": lambda x, y: nn.sparse_softmax_cross_entropy_with_logits(y, x),
    "tf1": lambda x, y: tf1.sparse_softmax_cross_entropy(y, x, reduction="none"),
    "keras": lambda x, y: compat.keras.sparse_categorical_crossentropy(y, x, from_logits=True),
    "keras probs": lambda x, y: compat.keras.sparse_categorical_crossentropy(y, jax.nn.softmax(x)),
}


@pytest.mark.parametrize("name", INTEGER_LABELS)
def test_labels_out_of_range_under_jit(name):
    """NaN in the value and the gradient of their rows, and nothing in the others."""
    y = jnp.array([-1, 2, 4, 2**31 - 1, -(2**31), 0])

    def value_and_gradient(x, y):
        value, pull = jax.vjp(lambda x: INTEGER_LABELS[name](x, y), x)
        return value, pull(jnp.ones_like(value))[0]

    x = jnp.asarray(LOGITS.reshape(6, 4)) / 8
    value, gradient = jax.jit(value_and_gradient)(x, y)
    bad = np.array([True, False, True, True, True, False])
    np.testing.assert_array_equal(np.isnan(value), bad)
    assert np.isnan(gradient[bad]).any(-1).all() and np.isfinite(gradient[~bad]).all()


@pytest.mark.parametrize(
    ("name", "error"),
    [("torch", IndexError), ("torch nll", IndexError), ("tf", ValueError), ("tf1", ValueError)],
)
def test_labels_out_of_range_where_they_can_be_seen(name, error):
    x = jnp.asarray(LOGITS.reshape(6, 4))
    with pytest.raises(error, match=r"\[5\] = 9"):
        INTEGER_LABELS[name](x, jnp.array([0, 0, 0, 0, 0, 9]))


@pytest.mark.parametrize(
    "loss",
    [
        *(getattr(keras, n) for n in keras.__all__ if n.lower().endswith(("entropy", "gence"))),
        *(getattr(nn, name) for name in nn.__all__ if name.endswith("with_logits")),
        *(getattr(tf1, name) for name in tf1.__all__ if name.endswith("cross_entropy")),
    ],
    ids=lambda loss: loss.__name__,
)
def test_labels_and_scores_in_the_other_order(loss):
    """Labels come first in Keras and TensorFlow, and the message does not say otherwise."""
    loss = loss() if isinstance(loss, type) else loss
    more = {name: 0.5 for name in ("q", "pos_weight") if name in inspect.signature(loss).parameters}
    order = r"The order is \((y_true, y_pred|labels, logits)\)"
    with pytest.raises(TypeError, match=order):
        loss(LOGITS[0], LABELS[0], **more)


def test_labels_of_any_integer_dtype():
    """Wider than the classes, narrower, unsigned: all the same label."""
    losses = [loss for name, loss in INTEGER_LABELS.items() if name != "torch smoothed"]
    x = jax.nn.log_softmax(jnp.zeros((2, 300)).at[0, 100].set(3.0))
    dtypes = (np.int8, np.uint8, np.int16, np.uint32)
    labels = [jnp.asarray(np.array([100, 5], dtype)) for dtype in dtypes]
    values = jax.jit(lambda x, labels: [[loss(x, y) for loss in losses] for y in labels])(x, labels)
    wanted = np.log([(299 + np.exp(3)) / np.exp(3), 300])
    np.testing.assert_allclose(values, np.broadcast_to(wanted, np.shape(values)), rtol=1e-5)


def test_options_are_traced():
    """One compilation for every value of a number."""
    x, y, q = jnp.asarray(LOGITS[0]), jnp.asarray(LABELS[0]), jnp.asarray(ONEHOT[0])
    traces = []

    @jax.jit
    def losses(epsilon, gamma):
        traces.append(1)
        return (
            F.cross_entropy(x, y, label_smoothing=epsilon),
            F.cross_entropy(x, q, label_smoothing=epsilon),
            tf1.softmax_cross_entropy(q, x, label_smoothing=epsilon),
            keras.binary_crossentropy(q, x, True, label_smoothing=epsilon),
            optax.sigmoid_focal_loss(x, q, gamma=gamma, alpha=epsilon),
            optax.poly_loss_cross_entropy(x, q, epsilon=gamma),
        )

    first, second = losses(0.1, 2.0), losses(0.2, 1.0)
    assert len(traces) == 1
    assert all(
        np.isfinite(a).all() and not np.array_equal(a, b)
        for a, b in zip(first, second, strict=True)
    )
    assert all(np.isnan(a).any() for a in losses(1.5, -2.0)[:4])


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int8])
def test_a_traced_ignore_index(dtype):
    """As one that is known; −100 is not uint8's 156. Probabilities have none."""
    x, y = jax.nn.log_softmax(jnp.zeros((3, 200))), jnp.asarray(np.array([0, 100, 1], dtype))
    for loss in (F.cross_entropy, F.nll_loss):
        traced = jax.jit(lambda i, loss=loss: loss(x, y, ignore_index=i, reduction="none"))
        for ignored in (-100, 100, 156):
            kept = np.array([True, ignored != 100, True])
            np.testing.assert_allclose(traced(ignored), np.log(200) * kept, rtol=1e-6)
            np.testing.assert_array_equal(
                traced(ignored), loss(x, y, ignore_index=ignored, reduction="none")
            )
    with pytest.raises(ValueError, match="ignore_index is for class indices"):
        jax.jit(lambda i: F.cross_entropy(x, x, ignore_index=i))(-100)


def test_classes_on_the_last_axis():
    with pytest.raises(ValueError, match=r"axis 1: jnp.moveaxis\(input, -1, 1\)"):
        F.cross_entropy(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int))
    with pytest.raises(ValueError, match="target must") as caught:
        F.cross_entropy(jnp.zeros((2, 3, 4)), jnp.zeros((2, 5), int))
    assert "moveaxis" not in str(caught.value)


def test_options_that_are_arrays_are_bounded_as_numbers_are():
    """They raise where they can be seen; elsewhere their elements are NaN."""
    x, q = jnp.asarray(LOGITS[0]), jnp.asarray(ONEHOT[0])
    for name, loss, option in (
        ("gamma", lambda g: optax.sigmoid_focal_loss(x, q, gamma=g), [1.0, -0.5, 2.0, 0.0]),
        ("gamma", lambda g: optax.sigmoid_focal_loss(x, q, gamma=g), [1.0, np.nan, 2.0, 0.0]),
        ("epsilon", lambda e: optax.poly_loss_cross_entropy(x, q, epsilon=e), [1.0, -1.5, 2.0]),
    ):
        option = jnp.array(option)
        with pytest.raises(ValueError, match=name):
            loss(option)
        bad = np.arange(option.size) == 1
        together = np.isnan(jax.jit(loss)(option)).reshape(-1, option.size)
        np.testing.assert_array_equal(together, np.broadcast_to(bad, together.shape))
        each = np.isnan(jax.vmap(loss)(option)).reshape(option.size, -1)
        np.testing.assert_array_equal(each, np.broadcast_to(bad[:, None], each.shape))
        with pytest.raises(ValueError, match="broadcast"):
            loss(jnp.ones(7))
        assert loss(jnp.ones((0, 1, 1))).size == 0


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x, y, q = (jnp.asarray(a) for a in (LOGITS[0].astype(np.float64), LABELS[0], ONEHOT[0]))
        q = q.astype(jnp.float64)
        for loss in (
            F.cross_entropy(x, y),
            F.cross_entropy(x, q),
            optax.sigmoid_focal_loss(x, q),
            tf1.softmax_cross_entropy(q, x),
            keras.categorical_crossentropy(q, x, from_logits=True),
        ):
            assert loss.dtype == np.float64
        truth = np.log1p(np.exp(-8.0) + np.exp(-9) + np.exp(-7))
        np.testing.assert_allclose(optax.softmax_cross_entropy(x, q)[1], truth, rtol=1e-12)
        loss = keras.sparse_categorical_crossentropy(y[1:2], jax.nn.softmax(x[1:2]))
        np.testing.assert_allclose(loss, [truth], rtol=1e-9)


def test_no_dialect_imports_its_original():
    code = (
        "import sys; from jaxent.compat import torch as F, optax, keras, tensorflow as tf; "
        "assert F.cross_entropy and tf.nn and tf.losses and tf.keras.losses is keras; "
        "print(sorted({'torch', 'optax', 'keras', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


KERAS_CLASSES = [name for name in keras.__all__ if name[0].isupper()]


@pytest.mark.parametrize("name", KERAS_CLASSES)
def test_a_keras_class_can_be_copied(name):
    """Pickled, from its configuration, from what it prints."""
    loss = getattr(keras, name)(reduction="sum", name="mine")
    copies = [
        pickle.loads(pickle.dumps(loss)),
        type(loss).from_config(json.loads(json.dumps(loss.get_config()))),
        eval(repr(loss), vars(keras)),
    ]
    x = jnp.array([[0.5, 0.5], [0.25, 0.75]])
    y = jnp.array([0, 1]) if name.startswith(("Sparse", "CategoricalGen")) else jnp.eye(2)
    assert all(copy(y, x) == loss(y, x) > 0 for copy in copies)
    assert len({repr(each) for each in (loss, *copies)}) == 1


def test_what_a_keras_class_prints():
    loss = keras.SparseCategoricalCrossentropy(from_logits=True)
    assert repr(loss) == (
        "SparseCategoricalCrossentropy(from_logits=True, ignore_class=None, axis=-1, epsilon=0.0, "
        "reduction='sum_over_batch_size', name='sparse_categorical_crossentropy', dtype='float32')"
    )


@pytest.mark.parametrize("name", KERAS_CLASSES)
def test_weights_of_examples_that_are_one(name):
    """In Keras each weight multiplies the one loss of all three."""
    x = jnp.array([0.5, 0.25, 0.25])
    y = jnp.array(1) if name.startswith(("Sparse", "CategoricalGen")) else jnp.array([0.0, 1, 0])
    loss = getattr(keras, name)()
    with pytest.raises(ValueError, match=r"y_pred \[3\] is one example of 3 outputs; .* \[3, 1\]"):
        loss(y, x, jnp.array([1.0, 0.0, 5.0]))
    np.testing.assert_allclose(loss(y, x, jnp.array([2.0])), 2 * loss(y, x), rtol=1e-6)


def test_class_weights_of_labels_that_can_be_read_in_two_ways():
    """Rows of 0 and 1 as integers look one-hot; whole numbers above 1 as floats, like indices."""
    weights, table = keras.class_weight_to_sample_weights, {1: 3.0}
    onehot, grid = jnp.eye(3, dtype=int)[jnp.array([1, 0])], jnp.array([[2, 1], [0, 1]])
    for labels in (onehot, onehot.astype(bool)):
        with pytest.raises(ValueError, match="axis=-1 if they are one-hot"):
            weights(labels, table)
        np.testing.assert_array_equal(weights(labels, table, axis=-1), [3.0, 1.0])
    with pytest.raises(ValueError, match=r"integers, y.astype\(jnp.int32\)"):
        weights(grid.astype(jnp.float32), table)
    np.testing.assert_array_equal(weights(grid, table), [[1.0, 3.0], [1.0, 3.0]])


@pytest.mark.parametrize("name", [name for name in F.__all__ if name[0].isupper()])
def test_a_torch_class(name):
    """Frozen, pickled, printed; its options are the function's."""
    loss = getattr(F, name)(reduction="sum")
    x = jax.nn.log_softmax(jnp.array([[1.0, 2.0], [0.0, -3.0]]))
    x = jnp.exp(x) if name == "BCELoss" else x
    y = jnp.array([0, 1]) if name in ("CrossEntropyLoss", "NLLLoss") else jnp.eye(2)
    for copy in (pickle.loads(pickle.dumps(loss)), eval(repr(loss), vars(F))):
        assert copy(x, y) == loss(x, y) > 0
        assert repr(copy) == repr(loss)
    with pytest.raises(AttributeError):
        loss.reduction = "mean"
    assert [*vars(loss)] == [*inspect.signature(type(loss).function).parameters][2:]


DIALECTS = (
    F,
    optax,
    keras,
    nn,
    tf1,
    compat.tensorflow.random,
    compat.tensorflow.keras,
    compat.tensorflow,
)


@pytest.mark.parametrize("module", DIALECTS, ids=lambda m: m.__name__)
def test_other_names_of_the_original_say_so(module):
    """``F.sigmoid`` and ``F.linear`` would be modules of jaxent's, which nobody can call."""
    assert all(hasattr(module, name) for name in module.__all__)
    leaked = {
        name
        for name, value in vars(module).items()
        if inspect.ismodule(value) and value.__name__.startswith("jaxent.") and name[0] != "_"
    }
    parts = {name for name in leaked if vars(module)[name].__name__ == f"{module.__name__}.{name}"}
    assert leaked - parts <= {*module.__all__}
    for name in ("sigmoid", "linear", "adam"):
        assert not hasattr(module, name)
        with pytest.raises(AttributeError, match=f"cross-entropies of .* only; {name} .*stays in"):
            getattr(module, name)


MISUSE = {  # every cure is in the dialect's own names and order
    "dense Keras": (
        lambda x, y: compat.keras.categorical_crossentropy(y, x),
        "Integer labels go to sparse_categorical_crossentropy.",
    ),
    "dense TF1": (
        lambda x, y: compat.tensorflow.losses.softmax_cross_entropy(y, x),
        r"onehot_labels must .* go to sparse_softmax_cross_entropy\(labels, logits\)",
    ),
    "sigmoid of indices": (
        lambda x, y: compat.tensorflow.nn.sigmoid_cross_entropy_with_logits(y, x),
        r"labels must .* go to sparse_softmax_cross_entropy_with_logits\(labels, logits\)",
    ),
    "one-hot": (
        lambda x, y: compat.tensorflow.nn.sparse_softmax_cross_entropy_with_logits(
            jnp.eye(4, 3), x
        ),
        r"one-hot rows with jnp.argmax\(labels, -1\)",
    ),
    "a class too many": (
        lambda x, y: compat.torch.cross_entropy(x, y.at[3].set(3)),
        r"Label 3 needs 4 classes. If it marks padding, leave it out with ignore_index=3\.",
    ),
    "a class too many, no way to leave it out": (
        lambda x, y: compat.tensorflow.nn.sparse_softmax_cross_entropy_with_logits(
            y.at[3].set(3), x
        ),
        r"Label 3 needs 4 classes\.$",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_the_cure_is_in_the_dialects_names(name):
    call, message = MISUSE[name]
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call(jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0]))
