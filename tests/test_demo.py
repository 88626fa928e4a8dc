"""The demo: its data, its recipes, its scores, and how it behaves on a command line."""

import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from jaxent.demo import __main__ as cli
from jaxent.demo import data, experiment, recipes, report, training
from jaxent.demo.training import Scores

# --- data ---------------------------------------------------------------------------------------

TAIL = [118, 78, 52, 35, 23, 15, 10, 7, 4, 3]


@pytest.fixture(scope="module")
def split():
    return data.digits().split(0)


def test_the_embedded_digits_are_the_originals():
    path = Path(data.__file__).parent / "data" / "digits.npz"
    with np.load(path) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    assert images.shape == (1797, 8, 8)
    assert images.dtype == labels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    ink = [int(images[labels == c].sum()) for c in range(10)]
    assert ink == [56415, 57007, 55566, 56151, 56239, 55915, 56336, 54289, 57408, 56392]
    assert path.with_suffix(".txt").read_text().count("10.24432/C50P49") == 1
    originals = pytest.importorskip("sklearn.datasets").load_digits()
    np.testing.assert_array_equal(images, originals.images)
    np.testing.assert_array_equal(labels, originals.target)


def test_the_tail_is_long_and_the_test_set_balanced(split):
    assert np.bincount(split.labels).tolist() == split.counts.tolist() == TAIL
    assert np.bincount(split.test_labels).tolist() == [60] * 10
    assert split.inputs.shape == (345, 64)
    assert split.inputs.min() == 0
    assert split.inputs.max() == 1


def test_a_split_shares_no_example_and_is_its_seeds(split):
    both = np.concatenate([split.inputs, split.test_inputs])
    assert len(np.unique(both, axis=0)) == len(both) == 945  # the 1797 images are all different
    np.testing.assert_array_equal(data.digits().split(0).inputs, split.inputs)
    assert (data.digits().split(1).inputs != split.inputs).any()


@pytest.fixture
def river(monkeypatch):
    """River's two data sets in miniature, as its loaders give them."""
    rng = np.random.default_rng(0)
    rows = [{f"f{i}": float(x) for i, x in enumerate(xs)} for xs in rng.normal(size=(200, 3))]
    for x in rows:
        x["f2"] = 7.0  # a column without variance
    labels = [x["f0"] > 1 for x in rows]
    module = types.SimpleNamespace(
        Shuttle=lambda: [(x, int(y)) for x, y in zip(rows, labels, strict=True)],
        Yeast=lambda: [(x, {"A": y, "B": x["f1"] > 0}) for x, y in zip(rows, labels, strict=True)],
    )
    monkeypatch.setitem(sys.modules, "river", types.ModuleType("river"))
    monkeypatch.setitem(sys.modules, "river.datasets", module)
    return np.array(labels)


def test_shuttle(river):
    split = data.shuttle().split(3)
    assert len(split.test_labels) == 60
    assert split.counts.tolist() == np.bincount(split.labels).tolist()
    assert split.labels.sum() + split.test_labels.sum() == river.sum()
    np.testing.assert_allclose(split.inputs.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(split.inputs.std(0), [1, 1, 0], rtol=1e-5)


def test_yeast_counts_negatives_and_positives(river):
    split = data.yeast().split(0)
    assert split.labels.shape == (140, 2)
    assert split.counts[1].tolist() == split.labels.sum(0).tolist()
    assert split.counts.sum(0).tolist() == [140, 140]


# --- recipes ------------------------------------------------------------------------------------

COUNTS = jnp.array([60, 30, 10])
LOGITS = jnp.array([[2.0, 0.5, -1.0], [0.3, 0.1, 0.2], [1.0, 0.0, 0.5], [0.0, 1.5, 0.0]])
LABELS = jnp.array([0, 1, 2, 2])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def of(recipe):
    return recipes.SOFTMAX[recipe](LOGITS, {"labels": LABELS, "counts": COUNTS}).mean()


def test_softmax_recipes_are_their_formulas():
    x, y, n = (np.asarray(a, np.float64) for a in (LOGITS, LABELS, COUNTS))
    y = y.astype(int)
    losses = -log_softmax(x)[np.arange(4), y]
    beta = 1 - 1 / 100
    expected = {
        "no weights": losses.mean(),
        "balanced": np.average(losses, weights=(1 / n)[y]),
        "inverse frequency": np.average(losses, weights=(1 / n)[y]),
        "median frequency": np.average(losses, weights=(1 / n)[y]),
        "inverse sqrt": np.average(losses, weights=(1 / np.sqrt(n))[y]),
        "effective number": np.average(losses, weights=(1 / (1 - beta**n))[y]),
        "log ratio": np.average(losses, weights=np.maximum(np.log(100 / n), 1)[y]),
        "logit adjustment": -log_softmax(x + np.log(n / 100))[np.arange(4), y].mean(),
        "focal": ((1 - np.exp(-losses)) ** 2 * losses).mean(),
    }
    assert {name: pytest.approx(float(of(name)), rel=1e-5) for name in recipes.SOFTMAX} == expected


def test_inverse_and_median_frequency_are_the_loss_of_balanced():
    for name in ("inverse frequency", "median frequency"):
        np.testing.assert_allclose(of(name), of("balanced"), rtol=1e-6)


def test_sigmoid_recipes_are_their_formulas():
    x, y = np.array([[1.0, -2.0], [0.5, 0.25]]), np.array([[1, 0], [0, 1]])
    counts = np.array([[90, 20], [10, 80]])
    ratio = counts[0] / counts[1]

    def loss(x, weight=1.0):
        return (weight * y * np.log1p(np.exp(-x)) + (1 - y) * np.log1p(np.exp(x))).sum(-1).mean()

    p_label = np.where(y == 1, 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x)))
    expected = {
        "no weights": loss(x),
        "balanced": loss(x, ratio),
        "inverse sqrt": loss(x, np.sqrt(ratio)),
        "logit adjustment": loss(x + np.log(counts[1] / counts[0])),
        "focal": (-((1 - p_label) ** 2) * np.log(p_label)).sum(-1).mean(),
    }
    batch = {"labels": jnp.asarray(y), "counts": jnp.asarray(counts)}
    given = jnp.asarray(x, jnp.float32)
    found = {
        name: pytest.approx(float(recipe(given, batch).mean()), rel=1e-5)
        for name, recipe in recipes.SIGMOID.items()
    }
    assert found == expected


# --- scores -------------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    # bins of 0.1: {0.95, 0.95} half right, {0.65} right, {0.6499...} is in the same bin as 0.65
    confidence, correct = [0.95, 0.95, 0.65, 0.62], [1, 0, 1, 0]
    by_hand = (2 * abs(0.5 - 0.95) + 2 * abs(0.5 - 0.635)) / 4
    assert training.calibration_error(confidence, correct, num_bins=10) == pytest.approx(by_hand)
    weights = [1, 0, 3, 0]  # the wrong ones weigh nothing
    by_hand = (1 * abs(1 - 0.95) + 3 * abs(1 - 0.65)) / 4
    assert training.calibration_error(confidence, correct, weights, num_bins=10) == pytest.approx(
        by_hand
    )


def test_calibration_error_of_the_extremes():
    assert training.calibration_error([1.0, 1.0], [1, 1]) == 0
    assert training.calibration_error([1.0, 1.0], [0, 0]) == 1
    assert training.calibration_error([0.75] * 4, [1, 1, 1, 0]) == 0


def test_softmax_scores_by_hand():
    # class 0: 3 of 4 right; class 1: 1 of 2. Trained on 9 to 1.
    sure = np.log(np.array([[0.8, 0.2]]))
    logits = np.concatenate([sure, sure, sure, sure[:, ::-1], sure, sure[:, ::-1]])
    split = data.Split(None, None, None, np.array([0, 0, 0, 0, 1, 1]), np.array([90, 10]))
    scores = training.softmax_scores(logits, split)
    np.testing.assert_allclose(scores.recall, [0.75, 0.5])
    np.testing.assert_allclose(scores.accuracy, [0.625, 0.9 * 0.75 + 0.1 * 0.5])
    np.testing.assert_allclose(scores.ece, 0.8 - scores.accuracy, rtol=1e-6)  # one bin
    np.testing.assert_array_equal(scores.confusion, [[3, 1], [1, 1]])


def test_sigmoid_scores_by_hand():
    # one label: 1 of 2 positives found, 3 of 3 negatives
    logits = np.array([[1.0], [-1.0], [-1.0], [-1.0], [-1.0]])
    split = data.Split(None, None, None, np.array([[1], [1], [0], [0], [0]]), np.array([[3], [2]]))
    scores = training.sigmoid_scores(logits, split)
    np.testing.assert_allclose(scores.recall, [0.5])
    np.testing.assert_allclose(scores.accuracy, [0.75, 0.8])
    np.testing.assert_allclose(
        scores.ece, np.abs(scores.accuracy - 1 / (1 + np.exp(-1))), rtol=1e-5
    )


# --- training and the table ---------------------------------------------------------------------


def scores(recall, ece=(0.1, 0.2), accuracy=(0.5, 0.9)):
    return Scores(np.array(recall), np.array(accuracy), np.array(ece), np.diag([3, 5]))


def test_large_sets_come_in_random_batches():
    n = training.BATCH_SIZE + 1
    large = data.Split(np.arange(n)[:, None], np.arange(n), None, None, np.array([n]))
    first, second = (
        batch for batch, _ in zip(training.batches(large, seed=0), range(2), strict=False)
    )
    assert first["labels"].shape == (training.BATCH_SIZE,)
    np.testing.assert_array_equal(first["inputs"][:, 0], first["labels"])
    assert (first["labels"] != second["labels"]).any()


def test_several_labels_from_end_to_end(river, monkeypatch):
    monkeypatch.setattr(
        recipes, "SIGMOID", {name: recipes.SIGMOID[name] for name in ("no weights", "balanced")}
    )
    told, steps = [], []
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        results = experiment.run(data.yeast(), 2, 3, told.append, lambda: steps.append(1))
    assert told == ["no weights", "balanced"]
    assert len(steps) == experiment.num_steps(data.yeast(), 2, 3) == 12
    assert len(results.scores["balanced"]) == 2
    np.testing.assert_array_equal(results.counts, data.yeast().split(1).counts[1])


def test_the_table_is_aligned_and_in_per_cent():
    results = {"no weights": [scores([1.0, 0.25]), scores([1.0, 0.35], accuracy=(0.7, 0.9))]}
    recalls, summaries = report.table(results, ("a", "b"), np.array([90, 10])).split("\n\n")
    head, counts, rule, row = recalls.splitlines()
    assert head.split()[-2:] == ["a", "b"]
    assert counts.split()[-2:] == ["90", "10"]
    assert row.split()[-2:] == ["100", "30"]
    assert len(head) == len(counts) == len(rule) == len(row)
    assert head.index(" b") == row.index("30")
    head, rule, row = summaries.splitlines()
    assert head.split()[-5:] == ["bal.acc", "sd", "ECE", "acc*", "ECE*"]
    assert row.split()[-5:] == ["60.0", "10.0", "10.0", "90.0", "20.0"]
    assert len(head) == len(rule) == len(row)


@pytest.mark.parametrize("dataset", ["digits", "yeast"])
def test_the_widest_table_fits_80_columns(dataset):
    """All of every class right, and the most examples a data set can have."""
    names, counts = {
        "digits": (data.digits().class_names, TAIL),
        "yeast": (tuple(str(i) for i in range(1, 15)), [1269, 1269, *12 * [999]]),
    }[dataset]
    perfect = scores(np.ones(len(names)), accuracy=(1, 1), ece=(1, 1))
    results = {name: [perfect] for name in (*recipes.SOFTMAX, *recipes.SIGMOID)}
    lines = report.table(results, names, np.array(counts)).splitlines()
    assert max(map(len, lines)) <= 79
    assert all(line.split()[-1] == "100.0" for line in lines[-len(results) :])


@pytest.mark.usefixtures("river")
def test_what_is_said_about_it_fits_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    texts = [capsys.readouterr().out, *(dataset().about for dataset in data.DATASETS.values())]
    texts += [cli.MEANS, cli.ONE_SEED, cli.LEGEND, cli.MULTI_LABEL_LEGEND]
    assert max(len(line) for text in texts for line in text.splitlines()) <= 79


def test_progress_is_plain_where_stderr_is_no_terminal(capsys):
    with report.progress(4) as (describe, advance):
        describe("balanced")
        advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("starts at ") and err.endswith(" s: balanced\n\n")
    assert "\r" not in err and "\x1b" not in err


def test_the_bar_without_rich(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with report.progress(4) as (describe, advance):
        describe("balanced")
        for _ in range(4):
            advance()
    assert [line[-5:].strip() for line in capsys.readouterr().err.split("\r")[1:6]] == [
        "0 %", "25 %", "50 %", "75 %", "100 %",
    ]  # fmt: skip


# --- the command line ---------------------------------------------------------------------------


def test_verdict(capsys):
    def of(without, weighted):
        return {
            "no weights": [scores([0, 0], accuracy=(a, 1)) for a in without],
            "balanced": [scores([0, 0], accuracy=(a, 1)) for a in weighted],
        }

    assert cli.verdict(of([0.6, 0.8], [0.7, 0.9])) == 0
    assert "80.0% with balanced weights, 70.0% with none" in capsys.readouterr().out
    for weighted in ([0.7, 0.5], [0.6, 0.8], [0.9, float("nan")]):
        assert cli.verdict(of([0.6, 0.8], weighted)) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "Weighting did not win" in err and "--steps" in err


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for option in ("--data", "--seeds N", "--steps N", "--out DIR", "--no-pictures", "exit status"):
        assert option in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds: must be a whole number of at least 1, not '0'"),
        (["--steps", "-5"], "--steps"),
        (["--steps", "1.5"], "--steps: must be a whole number of at least 1, not '1.5'"),
        (["--seeds", "³"], "--seeds"),
        (["--data", "mnist"], "--data: invalid choice: 'mnist'"),
        (["--out", __file__], "--out: File exists"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_wrong_options(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("old_or_no_river", [types.SimpleNamespace(), None])
def test_the_other_data_sets_name_their_extra(old_or_no_river, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "river", types.ModuleType("river"))
    monkeypatch.setitem(sys.modules, "river.datasets", old_or_no_river)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--data", "shuttle"])
    assert 'pip install --upgrade "jaxent[datasets]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.chdir(tmp_path)
    recall = np.full(10, 0.5)
    fake = {"no weights": [scores(recall)], "balanced": [scores(recall, accuracy=(0.6, 0.9))]}
    results = experiment.Results(fake, np.array(TAIL), {}, None, None)
    monkeypatch.setattr(experiment, "run", lambda *_: results)
    assert cli.main([]) == 0
    assert 'no pictures without matplotlib: pip install "jaxent[demo]"' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_from_the_shell(tmp_path):
    """One seed, few steps, in a process of its own: output, pictures and exit status."""
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "jaxent.demo", "--seeds=1", "--steps=60"]
    path = os.pathsep.join(
        [str(Path(jaxent.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [*command, "--out=deep/er"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Weighting wins" in done.stdout
    versions, device, source, *_ = done.stdout.splitlines()
    assert versions.startswith("jaxent ") and jax.__version__ in versions
    assert device.startswith("device: ")
    assert source.startswith("data: 1797 real handwritten digits")
    assert "made by subsampling" in done.stdout
    for name in recipes.SOFTMAX:
        rows = [line for line in done.stdout.splitlines() if line.startswith(f"{name:<17} ")]
        assert [len(row[17:].split()) for row in rows] == [10, 5]
        assert name in done.stderr
    assert "one seed" in done.stdout and "the seeds" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 79
    assert not set("\r\x1b") & set(done.stdout + done.stderr)

    pictures = sorted((tmp_path / "deep" / "er").iterdir())
    assert [p.stem for p in pictures] == [
        "class_recall",
        "confusion_pair",
        "gradient_heatmap",
        "loss_against_margin",
        "weights_and_counts",
    ]
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"wrote {Path('deep', 'er', picture.name)}" in done.stdout
