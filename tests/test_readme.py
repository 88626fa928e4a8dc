"""README.md is true: its snippets print what they say, its migration table holds row by row."""

import doctest
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxent

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fences(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, flags=re.M | re.S).group(1)


# --- the snippets -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtypes", "ranks"), [("standard", "allow"), ("strict", "raise")])
def test_snippets_print_what_they_say(dtypes, ranks):
    """In order and in one namespace, as a reader would paste them."""
    text = "\n".join(fences("pycon"))
    test = doctest.DocTestParser().get_doctest(text, {}, "README.md", "README.md", 0)
    report = []
    with jax.numpy_dtype_promotion(dtypes), jax.numpy_rank_promotion(ranks):
        result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.attempted > 30
    assert result.failed == 0, "".join(report)


# --- the migration table ------------------------------------------------------------------------
# What each call of another library returns, as closed forms in float64 NumPy, on these arrays.

rng = np.random.default_rng(0)
N, C = 6, 4
LOGITS = rng.normal(scale=2.0, size=(N, C))
LABELS = np.array([0, 3, 1, 1, 2, 3])
PADDED = np.array([0, -100, 1, 1, -100, 3])
ONEHOT = np.eye(C)[LABELS]
SOFT = rng.dirichlet(np.ones(C), size=N)
BINARY = rng.integers(0, 2, size=(N, C))
WEIGHTS = np.array([2.0, 0.0, 0.5, 1.0, 0.0, 3.0])
TABLE = np.array([0.5, 2.0, 1.0, 4.0])
MASK = np.array([True, False, True, True, True, False])

LOG_P = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
NLL = -LOG_P[np.arange(N), LABELS]
SOFT_CE = -(SOFT * LOG_P).sum(-1)
KL = (SOFT * np.log(SOFT)).sum(-1) + SOFT_CE
SMOOTH = 0.9 * NLL - 0.1 * LOG_P.mean(-1)
P = 1 / (1 + np.exp(-LOGITS))
IF_TRUE, IF_FALSE = -np.log(P), -np.log(1 - P)
SIGMOID = np.where(BINARY, IF_TRUE, IF_FALSE)
FOCAL = SIGMOID * np.where(BINARY, 1 - P, P) ** 2
KEPT = PADDED != -100

THEIRS = {
    "tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)": NLL,
    "tf.nn.softmax_cross_entropy_with_logits(soft, logits)": SOFT_CE,
    "tf.nn.sigmoid_cross_entropy_with_logits(binary, logits)": SIGMOID,
    "tf.nn.weighted_cross_entropy_with_logits(binary, logits, 3.0)": np.where(
        BINARY, 3 * IF_TRUE, IF_FALSE
    ),
    "tf1.losses.sparse_softmax_cross_entropy(labels, logits, weights)": (
        (WEIGHTS * NLL).sum() / np.count_nonzero(WEIGHTS)
    ),
    "tf1.losses.softmax_cross_entropy(onehot, logits, label_smoothing=0.1)": SMOOTH.sum() / N,
    "tf1.losses.sigmoid_cross_entropy(binary, logits)": SIGMOID.sum() / (N * C),
    "keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits, weights)": (
        (WEIGHTS * NLL).sum() / N
    ),
    "keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)"
    "(padded, logits)": NLL[KEPT].mean(),
    "keras.losses.CategoricalCrossentropy(from_logits=True)(soft, logits)": SOFT_CE.mean(),
    "keras.losses.BinaryCrossentropy(from_logits=True)(binary, logits)": SIGMOID.mean(),
    "keras.losses.BinaryFocalCrossentropy(gamma=2.0, from_logits=True)(binary, logits)": (
        FOCAL.mean()
    ),
    "model.fit(..., class_weight=dict(enumerate(table)))": (TABLE[LABELS] * NLL).sum() / N,
    "F.cross_entropy(logits, labels)": NLL.mean(),
    'F.cross_entropy(logits, labels, reduction="sum")': NLL.sum(),
    "F.cross_entropy(logits, labels, weight=table)": (
        (TABLE[LABELS] * NLL).sum() / TABLE[LABELS].sum()
    ),
    "F.cross_entropy(logits, padded, weight=table)": (
        (TABLE[LABELS] * NLL)[KEPT].sum() / TABLE[LABELS][KEPT].sum()
    ),
    "F.cross_entropy(logits, labels, label_smoothing=0.1)": SMOOTH.mean(),
    "F.cross_entropy(logits, soft)": SOFT_CE.mean(),
    "F.cross_entropy(logits[:, :, None], labels[:, None])": NLL.mean(),
    "F.binary_cross_entropy_with_logits(logits, binary, pos_weight=table)": (
        np.where(BINARY, TABLE * IF_TRUE, IF_FALSE).mean()
    ),
    'F.kl_div(F.log_softmax(logits, -1), soft, reduction="batchmean")': KL.sum() / N,
    "optax.softmax_cross_entropy_with_integer_labels(logits, labels)": NLL,
    "optax.softmax_cross_entropy_with_integer_labels(logits, labels, where=mask)": NLL * MASK,
    "optax.softmax_cross_entropy(logits, soft)": SOFT_CE,
    "optax.softmax_cross_entropy(logits, optax.smooth_labels(onehot, 0.1))": SMOOTH,
    "optax.sigmoid_binary_cross_entropy(logits, binary)": SIGMOID,
    "optax.sigmoid_focal_loss(logits, binary, gamma=2.0)": FOCAL,
    "optax.losses.poly_loss_cross_entropy(logits, onehot, epsilon=2.0)": NLL
    + 2 * (1 - np.exp(-NLL)),
    "optax.losses.kl_divergence(jax.nn.log_softmax(logits), soft)": KL,
}


def table_rows():
    """(their call, our lines) of every row; a row's first code span is the call."""
    rows = re.findall(r"^\| (.*) \| (.*) \|$", section("Coming from .*?"), flags=re.MULTILINE)
    return [
        (re.search(r"`(.+?)`", left).group(1), re.findall(r"`(.+?)`", right))
        for left, right in rows
        if left != "there"
    ]


def arrays():
    """The same arrays in float32, and in jax.numpy."""
    floats = {"logits": LOGITS, "onehot": ONEHOT, "soft": SOFT, "weights": WEIGHTS, "table": TABLE}
    ints = {"labels": LABELS, "padded": PADDED, "binary": BINARY}
    named = {name: jnp.asarray(x, jnp.float32) for name, x in floats.items()}
    named |= {name: jnp.asarray(x, jnp.int32) for name, x in ints.items()}
    return named | {"mask": jnp.asarray(MASK), "jax": jax, "jnp": jnp, "jaxent": jaxent}


def run(lines):
    """The value of the last line."""
    names = arrays()
    for line in lines[:-1]:
        exec(line, names)
    return eval(lines[-1], names)


def test_every_row_has_a_closed_form_and_every_closed_form_a_row():
    calls = [call for call, _ in table_rows()]
    assert sorted(calls) == sorted(THEIRS)


@pytest.mark.parametrize(("call", "lines"), [pytest.param(*row, id=row[0]) for row in table_rows()])
def test_row_equals_the_closed_form(call, lines):
    ours, theirs = np.asarray(run(lines)), np.asarray(THEIRS[call])
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "lines"),
    [pytest.param(*row, id=row[0]) for row in table_rows() if row[0].startswith("optax.")],
)
def test_row_equals_optax(call, lines):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = eval(call, arrays() | {"optax": optax})
    np.testing.assert_allclose(run(lines), theirs, rtol=1e-5, atol=1e-6)


# --- the rest -----------------------------------------------------------------------------------


def test_old_answers_give_the_numbers_they_name():
    assert f"{jaxent.weights.positive(500_000, 31_000):.2f}" == "16.13"
    cost_matrix = jnp.ones((C, C)) - jnp.eye(C)
    labels = jnp.asarray(LABELS, jnp.int32)
    costs = jaxent.expected_cost(jnp.asarray(LOGITS, jnp.float32), labels, cost_matrix)
    np.testing.assert_allclose(costs, -np.expm1(-NLL), rtol=1e-5)


def test_multiplying_logits_by_class_weights_is_another_loss():
    """The answer that the first old question warns of."""
    names = arrays()
    right = jaxent.cross_entropy(names["logits"], names["labels"]) * names["table"][names["labels"]]
    wrong = jaxent.cross_entropy(names["logits"] * names["table"][None], names["labels"])
    assert not np.allclose(right, wrong, rtol=0.1)


def test_map_names_files_that_exist_and_all_of_them():
    lines = section("Where things live").splitlines()
    listed = {line.split()[0].rstrip("/") for line in lines if line.startswith("jaxent/")}
    package = ROOT / "jaxent"
    assert {name for name in listed if not (ROOT / name).exists()} == set()
    public = {
        p.name for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    public = {f"jaxent/{name}" for name in public if not name.startswith("_")}
    assert public == listed


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert re.search(rf"^## {target[1:]}$", README, flags=re.MULTILINE | re.IGNORECASE)
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("words", ["-m jaxent.demo", "-m pytest"])
def test_each_command_stands_alone(words):
    (line,) = [line for line in "".join(fences("sh")).splitlines() if words in line]
    assert line.startswith('python3 -m venv .venv && .venv/bin/python -m pip install -e ".[')
