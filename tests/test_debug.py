"""jaxent.debug names the mistake: what raises, what warns, what is left alone; the same in jit."""

import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

import jaxent
from jaxent import debug
from jaxent import weights as jw

inf, nan = np.inf, np.nan
rng = np.random.default_rng(0)
X = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
Y = jnp.array([0, 1, 2, 3, 0, 1, 2, 3])
PROBS = jax.nn.softmax(X)
ONES = jnp.ones(8)
BAD_Y = Y.at[0].set(-1)


def at(i, value):
    """The logits with another row i."""
    return X.at[i].set(jnp.array(value, jnp.float32))


# --- errors --------------------------------------------------------------------------------------

ERRORS = {
    # name: (arguments, keywords, the message)
    "one label out of range": (
        (X, Y.at[3].set(7)),
        {},
        "labels must be in [0, 4); 1 of 8 are not, the first is labels[3] = 7. "
        "Label 7 needs 8 classes. If it marks padding, leave it out with where=labels != 7.",
    ),
    "padding": (
        (X, Y.at[5:].set(-100)),
        {},
        "labels must be in [0, 4); 3 of 8 are not, the first is labels[5] = -100. "
        "Leave padding out with where=labels != -100.",
    ),
    "padding of two axes": (
        (X.reshape(2, 4, 4), Y.at[6].set(-1).reshape(2, 4)),
        {},
        "labels must be in [0, 4); 1 of 8 are not, the first is labels[1, 2] = -1. "
        "Leave padding out with where=labels != -1.",
    ),
    "padding with an incomplete mask": (
        (X, Y.at[5].set(-100).at[6].set(-1)),
        {"where": Y != 5},
        "labels must be in [0, 4); 2 of 8 are not, the first is labels[5] = -100. "
        "Leave padding out with where=labels != -100.",
    ),
    "classes counted from 1": (
        (X, Y + 1),
        {},
        "labels must be in [0, 4); 2 of 8 are not, the first is labels[3] = 4. "
        "If classes are counted from 1, use labels - 1.",
    ),
    "too few classes": (
        (X, Y.at[2].set(9).at[5].set(17)),
        {},
        "labels must be in [0, 4); 2 of 8 are not, the first is labels[2] = 9. "
        "Label 17 needs 18 classes.",
    ),
    "one example": (
        (X[0], 9),
        {},
        "labels must be in [0, 4); 1 of 1 are not, the first is labels = 9. "
        "Label 9 needs 10 classes. If it marks padding, leave it out with where=labels != 9.",
    ),
    "int8 labels": (
        (X, Y.astype(jnp.int8).at[0].set(-1)),
        {},
        "labels must be in [0, 4); 1 of 8 are not, the first is labels[0] = -1. "
        "Leave padding out with where=labels != -1.",
    ),
    "int64 labels of NumPy": (
        (X, np.asarray(Y, np.int64) + np.int64(2**32) * (np.arange(8) == 2)),
        {},
        "labels must be in [0, 4); 1 of 8 are not, the first is labels[2] = 4294967298. "
        "Leave padding out with where=labels != 4294967298.",
    ),
    "NaN logits": (
        (at(slice(6, 8), nan), Y),
        {},
        "logits hold NaN in 2 of 8 examples, the first is logits[6]. It arose before the loss: "
        "jax_debug_nans finds where.",
    ),
    "two +inf": (
        (at(2, [inf, inf, 0, 0]), Y),
        {},
        "logits hold more than one +inf in 1 of 8 examples, the first is logits[2]. float16 "
        "overflows at 65504: form them in bfloat16 or float32.",
    ),
    "no class left": (
        (at(2, -inf), Y),
        {},
        "logits rule out every class by -inf in 1 of 8 examples, the first is logits[2]. Leave "
        "such examples out by where=.",
    ),
    "label ruled out": (
        (at(2, [0, 0, -inf, 0]), Y),
        {},
        "logits rule out the label's own class by -inf in 1 of 8 examples, the first is logits[2] "
        "with label 2. Keep the labels in the mask of classes, or leave such examples out by "
        "where=.",
    ),
    "NaN weights": (
        (X, Y, ONES.at[1].set(nan)),
        {},
        "weights are not finite in 1 examples, the first is weights[1] = nan. "
        "class_weights(labels, table, where=where) is 0 for examples left out.",
    ),
    "infinite weights": (
        (X, Y, ONES.at[1].set(inf)),
        {},
        "weights are not finite in 1 examples, the first is weights[1] = inf. "
        "class_weights(labels, table, where=where) is 0 for examples left out.",
    ),
    "NaN weights where left out": (
        (X, Y.at[1].set(-100), jaxent.class_weights(Y.at[1].set(-100), jnp.ones(4))),
        {"where": Y.at[1].set(-100) >= 0},
        "weights are not finite in 1 examples, the first is weights[1] = nan. "
        "class_weights(labels, table, where=where) is 0 for examples left out.",
    ),
}
errors = pytest.mark.parametrize(
    ("args", "keywords", "message"), [pytest.param(*e, id=name) for name, e in ERRORS.items()]
)


@errors
def test_certain_faults_raise(args, keywords, message):
    with pytest.raises(ValueError) as raised:
        debug.check_inputs(*args, **keywords)
    assert str(raised.value) == message
    (finding,) = debug.diagnose(*args, **keywords)
    assert (finding.severity, str(finding)) == ("error", message)
    assert message.startswith(finding.argument)


@errors
def test_certain_faults_are_faults(args, keywords, message):
    """Each makes the loss NaN or infinite."""
    logits, labels, *weights = args
    losses = jaxent.cross_entropy(logits, labels, **keywords)
    assert not np.isfinite(jaxent.weighted_mean(losses, *weights))


def test_all_errors_are_reported_at_once():
    with pytest.raises(ValueError) as raised:
        debug.check_inputs(at(0, nan), Y.at[1].set(9), ONES.at[2].set(nan))
    assert [line.split()[0] for line in str(raised.value).splitlines()] == [
        "labels",
        "logits",
        "weights",
    ]


STATIC = {
    "one-hot labels": ((X, jax.nn.one_hot(Y, 4)), TypeError, r"jnp.argmax\(labels, -1\)"),
    "integer one-hot labels": (
        (X, jax.nn.one_hot(Y, 4, dtype=jnp.int32)),
        ValueError,
        r"jnp.argmax\(labels, -1\)",
    ),
    "swapped": ((Y, X), TypeError, r"the order is \(logits, labels\)"),
    "class axis first": ((X.T, Y), ValueError, r"jnp.moveaxis\(logits, 0, -1\)"),
    "labels [n, 1]": ((X, Y[:, None]), ValueError, r"labels\[..., 0\]"),
    "float labels": ((X, Y.astype(jnp.float32)), TypeError, "must be integer"),
    "a table for weights": ((X, Y, jnp.ones(4)), ValueError, r"class_weights\(labels, table\)"),
    "weights [n, 1]": ((X, Y, ONES[:, None]), ValueError, r"weights\[..., 0\]"),
}


@pytest.mark.parametrize(("args", "error", "cure"), STATIC.values(), ids=STATIC)
@pytest.mark.parametrize("check", [debug.check_inputs, debug.diagnose, debug.checkify_inputs])
def test_shapes_and_dtypes_raise_as_in_a_loss(check, args, error, cure):
    with pytest.raises(error, match=cure):
        check(*args)


# --- warnings ------------------------------------------------------------------------------------

COMMON = jnp.array([0] * 60 + [1] * 30 + [2] * 10)
COMMON_X = jnp.asarray(rng.normal(size=(100, 3)), jnp.float32)
COUNTS = jw.counts(COMMON, 3)
BY_COUNT = jaxent.class_weights(COMMON, COUNTS.astype(jnp.float32))
BALANCED = jaxent.class_weights(COMMON, jw.balanced(COUNTS))
SAMPLE = jnp.asarray(rng.uniform(0.5, 1.5, size=100), jnp.float32)

WARNINGS = {
    # name: (arguments, keywords, the argument at fault, what the message holds)
    "probabilities": ((PROBS, Y), {}, "logits", "are probabilities, every row sums to 1"),
    "bfloat16 probabilities": (
        (PROBS.astype(jnp.bfloat16), Y),
        {},
        "logits",
        "are probabilities, every row sums to 1",
    ),
    "probabilities and padding": (
        (PROBS.at[7].set(9), Y),
        {"where": jnp.arange(8) < 7},
        "logits",
        "are probabilities, every row sums to 1",
    ),
    "one-hot logits": ((jax.nn.one_hot(Y, 4), Y), {}, "logits", "The order is (logits, labels)"),
    "one class": ((X[:, :1], 0 * Y), {}, "logits", "a single class, whose loss is 0"),
    "one +inf": ((at(5, [0, inf, 0, 0]), Y), {}, "logits", "hold +inf in 1 of 8 examples"),
    "saturated": ((X * 1e4, Y), {}, "logits", "are saturated in"),
    "all masked": (
        (X, Y),
        {"where": jnp.zeros(8, bool)},
        "where",
        "No example counts, where leaves every example out",
    ),
    "all masked, in every bad way": (
        (jnp.full_like(X, nan), jnp.full_like(Y, -100)),
        {"where": jnp.zeros(8, bool)},
        "where",
        "No example counts, where leaves every example out",
    ),
    "empty batch": ((X[:0], Y[:0]), {}, "where", "No example counts, the batch is empty"),
    "weights all 0": ((X, Y, 0 * ONES), {}, "weights", "are 0 wherever an example counts"),
    "weights all False": ((X, Y, Y < 0), {}, "weights", "are 0 wherever an example counts"),
    "weights that cancel": (
        (X, Y, ONES.at[::2].set(-1)),
        {},
        "weights",
        "sum to 0 and cancel: weighted_mean is 0",
    ),
    "negative weights": ((X, Y, ONES.at[2].set(-1)), {}, "weights", "are negative in 1 of 8"),
    "weights of what is left out": (
        (X, Y, ONES),
        {"where": Y > 0},
        "weights",
        "count 2 examples that where leaves out",
    ),
    "weights proportional to counts": (
        (COMMON_X, COMMON, BY_COUNT),
        {},
        "weights",
        "weigh the majority up: class 0 with 60 examples has mean weight 60, "
        "class 2 with 10 has 10",
    ),
    "the same with sample weights": (
        (COMMON_X, COMMON, BY_COUNT * SAMPLE),
        {},
        "weights",
        "weigh the majority up",
    ),
}


@pytest.mark.parametrize(
    ("args", "keywords", "argument", "holding"), WARNINGS.values(), ids=WARNINGS
)
def test_doubts_are_warned_of(args, keywords, argument, holding):
    with pytest.warns(debug.JaxentInputWarning) as warned:
        debug.check_inputs(*args, **keywords)
    findings = debug.diagnose(*args, **keywords)
    assert [str(w.message) for w in warned] == [str(f) for f in findings]
    assert [w.filename for w in warned] == [__file__] * len(warned)  # points at the caller
    found = {f.argument: f.message for f in findings if holding in f.message}
    assert list(found) == [argument]
    assert [f.severity for f in findings] == ["warning"] * (1 + ("cancel" in holding))


SOUND = {
    "logits": (X, Y),
    "log-probabilities": (jax.nn.log_softmax(X), Y),
    "a head of zeros": (0 * X, Y),
    "bfloat16": (X.astype(jnp.bfloat16), Y.astype(jnp.uint8)),
    "NumPy": (np.asarray(X, np.float64), np.asarray(Y, np.int64)),
    "lists": (X.tolist(), Y.tolist()),
    "one example": (X[0], 1),
    "a mask of classes by -inf": (jnp.where(jnp.arange(4) == 3, -inf, X), Y % 3),
    "a mask of classes by -1e9": (jnp.where(jnp.arange(4) == 3, -1e9, X), Y % 3),
    "one class left by -inf": (jnp.where(jax.nn.one_hot(Y, 4) > 0, X, -inf), Y),
    "label ruled out under weight 0": (at(2, [0, 0, -inf, 0]), Y, ONES.at[2].set(0)),
    "confident": (30 * jax.nn.one_hot(Y, 4), Y),
    "weights": (X, Y, jnp.arange(8.0)),
    "integer weights": (X, Y, jnp.arange(8)),
    "bool weights": (X, Y, Y > 0),
    "balanced weights": (COMMON_X, COMMON, BALANCED),
    "balanced and sample weights": (COMMON_X, COMMON, BALANCED * SAMPLE),
    "sample weights": (COMMON_X, COMMON, SAMPLE),
    "balanced weights in a batch with more of the rare": (
        COMMON_X[:7],
        jnp.array([2, 2, 2, 2, 0, 0, 1]),
        jaxent.class_weights(jnp.array([2, 2, 2, 2, 0, 0, 1]), jw.balanced(COUNTS)),
    ),
}


@pytest.mark.parametrize("args", SOUND.values(), ids=SOUND)
def test_sound_inputs_are_left_alone(args):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        debug.check_inputs(*args)
    assert debug.diagnose(*args) == ()


def test_uniform_sample_weights_seldom_alarm():
    """The majority is compared by three standard errors: chance alone hardly warns."""
    alarms = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        y = draw.choice(3, size=64, p=[0.8, 0.15, 0.05])
        w = draw.uniform(size=64)
        alarms += len([*debug._majority_weighted_up(y, w)])
    assert alarms <= 2


def test_what_where_leaves_out_is_not_looked_at():
    x = X.at[0].set(nan).at[1].set(-inf).at[2].set(inf)
    y, where = Y.at[3].set(-100), jnp.arange(8) > 3
    assert debug.diagnose(x, y, where=where) == ()
    assert debug.diagnose(x, y, where.astype(jnp.float32), where=where) == ()


@pytest.mark.parametrize("spec", [("data", None), ("data", "model"), (None, "model")])
def test_explicitly_sharded_inputs(spec):
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    with jax.set_mesh(jax.make_mesh((2, 2), ("data", "model"), axis_types=explicit)):
        x = jax.device_put(np.asarray(X), P(*spec))
        y, bad = (jax.device_put(np.asarray(y), P(spec[0])) for y in (Y, BAD_Y))
        run = debug.checked(loss)
        assert debug.diagnose(x, y) == ()
        assert np.isfinite(run(x, y))
        for check in (debug.check_inputs, run):
            with pytest.raises(ValueError, match=r"labels\[0\] = -1"):
                check(x, bad)


# --- under a trace -------------------------------------------------------------------------------


def eager_loss(x, y):
    debug.check_inputs(x, y)
    return jaxent.cross_entropy(x, y).sum()


@pytest.mark.parametrize(
    "traced",
    [jax.jit(eager_loss), jax.vmap(eager_loss), jax.grad(eager_loss)],
    ids=["jit", "vmap", "grad"],
)
def test_check_inputs_under_a_trace_names_the_other_form(traced):
    with pytest.raises(TypeError, match=r"checkify_inputs.*jaxent\.debug\.checked"):
        traced(X, Y)


def test_check_inputs_sees_the_constants_of_a_compiled_function():
    jax.jit(lambda: debug.check_inputs(X, Y))()
    with pytest.raises(ValueError, match=r"labels\[0\] = -1"):
        jax.jit(lambda: debug.check_inputs(X, BAD_Y))()


def loss(x, y, w=None, where=None):
    debug.checkify_inputs(x, y, w, where=where)
    return jaxent.weighted_mean(jaxent.cross_entropy(x, y, where=where), w)


def scanned(f):
    def run(x, y):
        def step(total, batch):
            return total + f(*batch).sum(), None

        return jax.lax.scan(step, jnp.float32(0), (x.reshape(4, 2, -1), y.reshape(4, 2)))[0]

    return run


FORMS = {
    "jit": jax.jit,
    "grad": jax.grad,
    "jit of grad": lambda f: jax.jit(jax.grad(f)),
    "vmap": lambda f: lambda x, y: jax.vmap(f)(x.reshape(4, 2, -1), y.reshape(4, 2)),
    "vmap of grad of jit": lambda f: (
        lambda x, y: jax.vmap(jax.grad(jax.jit(f)))(x[:, None], y[:, None])
    ),
    "scan": scanned,
    "scan of grad": lambda f: scanned(jax.grad(f)),
    "grad of scan": lambda f: jax.grad(scanned(f)),
    "grad of checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "hessian": lambda f: lambda x, y: jax.hessian(lambda b: f(x + b[None], y))(0 * x[0]),
}
jax_drops_it = pytest.mark.xfail(reason="JAX drops the checks of a scan that is transposed")


def transformed(name):
    """Of a new function, which no cache has seen traced."""
    return FORMS[name](lambda x, y: loss(x, y))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=jax_drops_it) if n == "grad of scan" else n for n in FORMS]
)
def test_checkified_under_transformations(name):
    run = debug.checked(transformed(name))
    assert np.isfinite(run(X, Y)).all()
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\); 1 of \d are not.*= -100"):
        run(X, Y.at[5].set(-100))
    with pytest.raises(ValueError, match="logits hold NaN in 1 of"):
        run(at(3, nan), Y)


def test_bare_checkify_does_as_well():
    run = jax.jit(checkify.checkify(transformed("jit of grad"), errors=checkify.user_checks))
    error, slope = run(X, Y)
    assert error.get() is None
    np.testing.assert_allclose(slope, (np.asarray(PROBS) - np.eye(4)[Y]) / 8, atol=1e-6)
    error, _ = run(X, BAD_Y)
    assert error.get().startswith("labels must be in [0, 4); 1 of 8 are not")


@pytest.mark.parametrize("name", FORMS)
def test_without_checkify_it_says_what_to_wrap(name):
    wrap = r"traced without checkify.*jaxent\.debug\.checked\(step\).*checkify\.checkify\(step"
    with pytest.raises(RuntimeError, match=wrap):
        jax.jit(transformed(name))(X, Y)


compiled_check = debug.checked(debug.checkify_inputs)


@pytest.mark.parametrize(
    ("args", "keywords", "message"),
    [pytest.param(*e, id=name) for name, e in ERRORS.items() if "int64" not in name],
)
def test_checkified_errors_are_those_of_check_inputs(args, keywords, message):
    """Word for word, but for the cures that want to look at all labels."""
    with pytest.raises(ValueError) as raised:
        compiled_check(*args, **keywords)
    assert str(raised.value).startswith(message.partition(". ")[0])


def test_untraced_it_raises_by_itself():
    debug.checkify_inputs(X, Y)
    with pytest.raises(ValueError, match=r"labels\[0\] = -1"):
        debug.checkify_inputs(X, BAD_Y)
    jax.grad(loss)(X, Y)


def test_empty_batch_and_unbatched_example_are_checkified():
    compiled_check(X[:0], Y[:0])
    with pytest.raises(ValueError, match="the first is labels = 9"):
        compiled_check(X[0], jnp.int32(9))


# --- checked -------------------------------------------------------------------------------------


def test_checked_is_jit():
    traces = []

    def step(params, batch, *, power):
        """A step."""
        traces.append(power)
        return {"w": params["w"] * batch["x"] ** power}, power

    run = debug.checked(step, static_argnames="power")
    for _ in range(2):
        out, power = run({"w": jnp.ones(2)}, {"x": jnp.full(2, 3.0)}, power=2)
    np.testing.assert_array_equal(out["w"], [9, 9])
    assert (power, len(traces)) == (2, 1)
    assert (run.__name__, run.__doc__) == ("step", "A step.")


def test_checked_train_step():
    """A compiled, donating step inside: the error comes out, the state of before is unharmed."""

    @partial(jax.jit, donate_argnums=0)
    def step(w, x, y):
        value, slope = jax.value_and_grad(lambda w: loss(x @ w, y))(w)
        return w - 0.5 * slope, value

    run = debug.checked(step)
    w = jnp.zeros((4, 4), jnp.float32)
    for _ in range(3):
        w, value = run(w, X, Y)
    assert float(value) < np.log(4)
    with pytest.raises(ValueError, match=r"labels\[2\] = 4"):
        run(w, X, Y.at[2].set(4))
    run(w, X, Y)


def test_checked_lets_a_users_own_checks_through():
    @debug.checked
    def root(x):
        checkify.check(x >= 0, "x must not be negative; got {}", x)
        return jnp.sqrt(x)

    assert root(4.0) == 2
    with pytest.raises(ValueError, match=r"^x must not be negative; got -4\.0$"):
        root(-4.0)


def test_import_is_lazy():
    """`import jaxent` leaves jaxent.debug to the first use."""
    code = "import sys, jaxent; assert 'jaxent.debug' not in sys.modules; jaxent.debug.check_inputs"
    subprocess.run([sys.executable, "-c", code], check=True)
