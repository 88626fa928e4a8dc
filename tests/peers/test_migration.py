"""docs/migration.md is true: originals, dialects and jaxent's own lines agree, row by row."""

import inspect
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from jaxent import compat

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "migration.md").read_text(encoding="utf-8")

# --- the tables ---------------------------------------------------------------------------------

rng = np.random.default_rng(0)
LOGITS = rng.normal(scale=2.0, size=(6, 4))
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
LABELS = np.array([0, 3, 1, 1, 2, 3])
FLOATS = {
    "logits": LOGITS,
    "soft": rng.dirichlet(np.ones(4), size=6),
    "probs": SOFTMAX,
    "onehot": np.eye(4)[LABELS],
    "binary": rng.integers(0, 2, (6, 4)),
    "weights": [2.0, 0.0, 0.5, 1.0, 0.0, 3.0],
    "table": [0.5, 2.0, 1.0, 4.0],
    "hidden": rng.normal(size=(6, 5)),
    "head": rng.normal(size=(4, 5)),
    "bias": rng.normal(size=4),
}
EXACT = {
    "labels": LABELS,
    "padded": np.where(np.arange(6) % 3 == 1, -100, LABELS),
    "mask": np.array([True, False, True, True, True, False]),
}
VALUES = (np.array([3, 0, 1]), np.linspace(0.2, 0.9, 6)[:, None], np.array([0.3, 0.9, 0.7]))
ORIGINALS = {
    "optax": ("optax", lambda m: m),
    "F": ("torch", lambda m: m.nn.functional),
    "tf": ("tensorflow", lambda m: m),
    "tf1": ("tensorflow", lambda m: m.compat.v1),
    "klosses": ("keras", lambda m: m.losses),
}
DIALECTS = {
    "optax": compat.optax,
    "F": compat.torch,
    "tf": compat.tensorflow,
    "tf1": compat.tensorflow,
    "klosses": compat.keras,
}


def rows():
    """(the original's name, its call, our lines) of every row that has both."""
    for call, lines in re.findall(r"^\| `(.+?)` \| (`.+`) \|$", PAGE, flags=re.MULTILINE):
        yield call.split(".")[0], call, re.findall(r"`(.+?)`", lines)


ROWS = list(rows())


def arrays(floats=lambda x: jnp.asarray(x, jnp.float32), exact=jnp.asarray):
    values = (exact(VALUES[0]), *(floats(v.astype(np.float32)) for v in VALUES[1:]))
    named = {k: floats(np.asarray(v, np.float32)) for k, v in FLOATS.items()}
    named |= {k: exact(v) for k, v in EXACT.items()} | {"values": values}
    named |= {"key": jax.random.key(0), "counts": [1.0, 2.0, 3.0, 4.0]}
    return named | {"jax": jax, "jnp": jnp, "jaxent": jaxent}


def own(lines):
    names = arrays()
    for line in lines[:-1]:
        exec(line, names)
    value = eval(lines[-1], names)
    return value if isinstance(value, tuple) else np.asarray(value)


def test_every_dialect_has_rows():
    assert {name for name, _, _ in ROWS} == set(DIALECTS)
    assert len(ROWS) > 50


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_and_our_own_lines(name):
    for _, call, lines in (row for row in ROWS if row[0] == name and "sampler" not in row[1]):
        call = call.replace("probs.log()", "jnp.log(probs)")
        mine = np.asarray(eval(call, arrays() | {name: DIALECTS[name]}))
        np.testing.assert_allclose(mine, own(lines), rtol=2e-5, atol=1e-6, err_msg=call)


@pytest.mark.parametrize("name", ORIGINALS)
def test_originals_and_dialects(name):
    module, part = ORIGINALS[name]
    module = pytest.importorskip(module)
    convert = {"torch": lambda x: module.tensor(x)}.get(module.__name__, np.asarray)
    names = arrays(convert, convert) if module.__name__ in ("torch", "tensorflow") else arrays()
    for _, call, _ in (row for row in ROWS if row[0] == name and "sampler" not in row[1]):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            theirs = np.asarray(_warned(call, names | {name: part(module)}))
        ours = eval(
            call.replace("probs.log()", "jnp.log(probs)"), arrays() | {name: DIALECTS[name]}
        )
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=5e-5, atol=1e-5, err_msg=call)


def test_samplers():
    """Dialect and our own lines draw the same; expected counts are the original's."""
    found = [(call, lines) for _, call, lines in ROWS if "sampler" in call]
    assert len(found) == 5
    for call, lines in found:
        mine = own(lines)
        keyed = call if "all_" in call else call[:-1] + ", key=key)"
        dialect = eval(keyed, arrays() | {"tf": compat.tensorflow})
        np.testing.assert_array_equal(mine.ids, dialect.ids)
        np.testing.assert_array_equal(mine.expected_true, dialect.expected_true[:, 0])
    tf = pytest.importorskip("tensorflow")
    for call, lines in found:
        _, true, _ = eval(call, arrays(np.asarray, np.asarray) | {"tf": tf})
        np.testing.assert_allclose(own(lines).expected_true, true[:, 0], rtol=1e-5)


def _warned(call, names):
    if 'reduction="mean"' not in call:
        return eval(call, names)
    with pytest.warns(UserWarning, match="batchmean"):  # kl_div's, of its own default
        return eval(call, names)


# --- the rest of the page -----------------------------------------------------------------------


def test_the_means():
    section = PAGE[PAGE.index('## What "mean" means') :]
    found = re.findall(r"^\| .+? \| ([\d.]+) \| `(.+?)` \|", section, flags=re.MULTILINE)
    names = {"losses": jnp.array([2.008, 0.792, 0.598, 1.357]), "w": jnp.array([0, 2, 0.5, 1])}
    assert len(found) == 4
    for value, line in found:
        assert f"{eval(line, names | {'jaxent': jaxent}):.3f}" == value


def test_the_smoothings():
    x = jnp.array([[1.0, 0.3, -0.7]])
    s, z = jaxent.softmax_stats(x, jnp.array([0])), jnp.array([[1.0, 0.0, 0.0]])
    found = re.findall(
        r"^\| (0\.\d+), (0\.\d+), (0\.\d+).*? \| `(.+?)` \|", PAGE, flags=re.MULTILINE
    )
    assert len(found) == 3
    for *targets, line in found:
        q = jnp.array([[float(t) for t in targets]])
        loss = jaxent.sigmoid_cross_entropy if "sigmoid" in line else jaxent.soft_cross_entropy
        mine = eval(line, {"jaxent": jaxent, "s": s, "x": x, "z": z})
        np.testing.assert_allclose(mine, loss(x, q), atol=2e-3)


# --- the founding questions ---------------------------------------------------------------------

QUESTIONS = re.findall(
    r"^\| \[.+\]\(founding-questions\.md#([\w-]+)\) \| (.+) \| `(.+)` \|$", PAGE, flags=re.M
)


def test_every_founding_question_is_there():
    page = (DOCS / "founding-questions.md").read_text(encoding="utf-8")
    headings = re.findall(r"^(?:### (?=.)|## (?=Which mean\?))(.+)$", page, flags=re.M)
    anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
    assert [anchor for anchor, _, _ in QUESTIONS] == anchors
    assert len(anchors) > 20


def shown(x):
    if isinstance(x, tuple) and not isinstance(x[0], int):
        return ", ".join(map(shown, x))
    return f"{x:.3f}" if np.ndim(x) == 0 else str(x)


@pytest.mark.parametrize(("anchor", "answer", "result"), QUESTIONS, ids=[q[0] for q in QUESTIONS])
def test_the_founding_questions(anchor, answer, result):
    """Lines that are no assignments all give the result, or the last one raises it."""
    block = re.search(r"falls into\. With\n\n```python\n(.*?)^```$", PAGE, re.M | re.S)
    names = {"jax": jax, "jnp": jnp, "jaxent": jaxent}
    exec(block[1], names)
    with jnp.printoptions(precision=3, suppress=True):
        for line in re.findall(r"`(.+?)`", answer):
            if re.match(r"\w+ = ", line):
                exec(line, names)
            elif result.endswith("Error"):
                with pytest.raises((TypeError, ValueError)) as caught:
                    eval(line, names)
                assert caught.type.__name__ == result
            else:
                assert shown(eval(line, names)) == result


def test_imports():
    """The line after each original's import gives the module that its rows are of."""
    lines = re.findall(r"^from jaxent\.compat .+$", PAGE, flags=re.MULTILINE)
    names = {}
    for line in lines:
        exec(line, names)
    assert all(names[name] is module for name, module in DIALECTS.items())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_keras_model(tmp_path):
    """As it stands; of the loaded model, the loss is the saved one's."""
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras was started on another backend")
    block = next(b for b in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S) if "fit" in b)
    data = np.random.default_rng(0)
    names = {"x": data.normal(size=(12, 4)).astype("f4"), "y": data.integers(0, 3, 12)}
    names["path"] = str(tmp_path / "model.keras")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(block, names)
        loaded = keras.saving.load_model(names["path"])
    assert all(np.isfinite(w).all() for w in names["model"].get_weights())
    assert repr(loaded.loss.loss) == repr(names["ignoring"])


# --- signatures ---------------------------------------------------------------------------------


def public(module):
    functions = (getattr(module, name) for name in dir(module) if not name.startswith("_"))
    return {
        f.__name__: f
        for f in functions
        if callable(f) and re.match(r"jaxent\.compat\.[a-z]", getattr(f, "__module__", ""))
    }


PAIRS = {
    "optax.losses": compat.optax,
    "torch.nn": compat.torch,
    "torch.nn.functional": compat.torch,
    "tensorflow.nn": compat.tensorflow.nn,
    "tensorflow.random": compat.tensorflow.random,
    "tensorflow.compat.v1.losses": compat.tensorflow.losses,
    "keras.losses": compat.keras,
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_name_of_a_dialect_is_on_the_page(name):
    assert [function for function in public(PAIRS[name]) if function not in PAGE] == []


def original(name):
    theirs = pytest.importorskip(name.split(".")[0])
    for part in name.split(".")[1:]:
        theirs = getattr(theirs, part)
    return theirs


@pytest.mark.parametrize("name", PAIRS)
def test_no_name_of_an_original_is_something_else_here(name):
    """What a dialect needs for itself, it has under names that its original has not."""
    theirs, typing = original(name), {"Any", "Callable", "Sequence"}
    assert {n for n in dir(theirs) if n in vars(PAIRS[name]) and n[0] != "_"} <= (
        {*PAIRS[name].__all__} | typing
    )


@pytest.mark.parametrize("name", PAIRS)
def test_signatures(name):
    """Same names, order and defaults; ours may add keywords."""
    theirs, ours, here = original(name), public(PAIRS[name]), 0
    for function, mine in ours.items():
        if (peer := getattr(theirs, function, None)) is None:
            continue
        wanted = inspect.signature(peer).parameters
        got = dict(list(inspect.signature(mine).parameters.items())[: len(wanted)])
        assert list(got) == list(wanted), function
        for argument, parameter in wanted.items():
            if not hasattr(parameter.default, "func") and argument not in (
                "name",
                "loss_collection",
            ):
                assert got[argument].default == parameter.default, (function, argument)
        here += 1
    assert here >= min(4, len(ours))
