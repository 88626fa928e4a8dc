"""The language-model task of the demo: its text, its heads, what it claims and what it says."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxent
from jaxent import sampled
from jaxent.demo import __main__ as cli
from jaxent.demo import language_model as task
from jaxent.demo import topics

STEPS = 3


@pytest.fixture(scope="module")
def text():
    """Words by Zipf's law: enough of them for samples of 128 and 1024."""
    rng = np.random.default_rng(0)
    return topics.text("".join(f" w{i}" for i in np.minimum(rng.zipf(1.2, 30_000), 3000)))


# --- the text -------------------------------------------------------------------------------------


def test_windows_of_the_manual():
    text = topics.text(topics.manual())
    words = np.array([*text.vocabulary, "<new>"])
    assert 3_000 < text.num_classes < 20_000
    assert (np.diff(text.counts) <= 0).all(), "log_uniform wants falling frequency"
    assert text.train.dtype == np.int32 and text.train.max() == text.num_classes - 1
    assert 0 < text.unknown < 0.1
    for window in (*text.train[:3], *text.train[-3:], *text.held_out[-1, :3]):
        found = "".join(words[window])
        assert "<new>" in found or found in topics.manual()


def test_held_out_text_is_not_trained_on(text):
    words = topics.WORD.findall("".join(f" {i}" for i in range(100 * topics.PIECE)))
    text = topics.text("".join(words))  # every word once
    assert text.unknown == 1
    assert text.train.shape == (90 * (topics.PIECE - topics.CONTEXT), topics.CONTEXT + 1)
    assert text.held_out.shape[0] == 10
    assert (np.diff(text.train, axis=1) == 1).all(), "a window stays in its piece"


def test_the_loss_of_frequencies_alone_by_hand():
    held_out = np.array([[[0, 0], [0, 1], [0, 2]]])  # the last is new
    text = topics.Text(("a", "b"), np.zeros((4, 2)), held_out, np.array([3, 1]))
    assert text.unigram_loss == pytest.approx(-(np.log(3 / 4) + np.log(1 / 4)) / 2)
    assert text.unknown == pytest.approx(1 / 3)


# --- the heads ------------------------------------------------------------------------------------


def reference(text, seed, steps):
    """The steps of the full head without jaxent: training losses, parameters, held-out loss."""
    rows = np.random.default_rng(seed).integers(len(text.train), size=(steps, task.BATCH_SIZE))
    optimizer = optax.adagrad(0.1, initial_accumulator_value=1e-3, eps=1e-7)
    params = task.init(jax.random.key(seed), text.num_classes)
    state = optimizer.init(params)

    def losses_of(params, windows):
        x = params["body"]["embedding"][windows[:, :-1]].reshape(len(windows), -1)
        x = jnp.tanh(x @ params["body"]["weight"] + params["body"]["bias"])
        logits = x @ params["head"]["table"].T + params["head"]["bias"][None]
        labels = jnp.minimum(windows[:, -1], text.num_classes - 1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    @jax.jit
    def step(params, state, windows):
        loss, grads = jax.value_and_grad(lambda p: losses_of(p, windows).mean())(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for now in rows:
        params, state, loss = step(params, state, jnp.asarray(text.train[now]))
        losses.append(float(loss))
    windows = text.held_out.reshape(-1, topics.CONTEXT + 1)
    known = windows[:, -1] < text.num_classes
    return losses, float(losses_of(params, jnp.asarray(windows))[known].mean())


def test_heads_take_the_steps_of_the_full_softmax(text):
    """Full and linear do; so does a sampled head whose sample is all classes."""
    everything = task.of_some_classes(
        lambda _, labels: sampled.all_classes(labels, num_classes=text.num_classes)
    )
    heads = task.heads(text.num_classes)
    heads = {task.FULL: heads[task.FULL], task.LINEAR: heads[task.LINEAR], "all": everything}
    losses, held_out = reference(text, 3, STEPS)
    assert losses[0] == pytest.approx(np.log(text.num_classes), rel=1e-6)
    assert losses[-1] < losses[0] - 0.5
    fits = {name: task.fit(head, text, 3, STEPS, lambda: None) for name, head in heads.items()}
    for name, fit in fits.items():
        np.testing.assert_allclose(fit.train, losses, rtol=1e-5, err_msg=name)
        assert fit.loss == pytest.approx(held_out, rel=1e-5), name
        assert fit.held_out[0] == (0, pytest.approx(np.log(text.num_classes), rel=1e-6))
        assert [steps for steps, _ in fit.held_out] == [0, *range(1, STEPS + 1)]
    assert fits[task.LINEAR].temporary < 0.5 * fits[task.FULL].temporary


def test_the_sampled_step_touches_its_rows_alone(text):
    head = task.heads(text.num_classes)[task.FEW]
    params = task.init(jax.random.key(0), text.num_classes)
    params["head"]["table"] += 0.01
    words = jnp.asarray(text.train[:64])
    after, (_, squares), _ = jax.jit(head.step)(
        params, head.init(params), {"words": words, "key": jax.random.key(1)}
    )
    moved = np.flatnonzero((after["head"]["table"] != params["head"]["table"]).any(1))
    assert set(np.asarray(words[:, -1])) <= set(moved)
    assert 128 < len(moved) <= 128 + 64
    for x in (after["head"]["bias"] != 0, (squares["table"] > task.START).any(1)):
        assert np.flatnonzero(x).tolist() == moved.tolist()


# --- what it says ---------------------------------------------------------------------------------


def fits(full=4.0, linear=4.0, few=4.05, many=4.01):
    values = {task.FULL: full, task.LINEAR: linear, task.FEW: few, task.MANY: many}
    return {
        name: [task.Fit(np.array([8.0, loss]), [(0, 8.0), (2, loss)], np.array([0.1, 0.2]), 3e6)]
        for name, loss in values.items()
    }


def test_faults():
    assert task.faults(fits(), 5.0) == []
    assert "full has 4.000 nats, frequencies alone 3.900" in task.faults(fits(), 3.9)
    for wrong, words in (
        ({"linear": 4.001}, "linear is 1.0e-03 nats from full"),
        ({"linear": float("nan")}, "linear is nan"),
        ({"many": 4.2}, "sampled 1024 is +0.200 nats from full"),
        ({"many": 3.9}, "sampled 1024 is -0.100 nats from full"),
        ({"few": float("nan")}, "sampled 128 is +nan nats"),
    ):
        (fault,) = task.faults(fits(**wrong), 5.0)
        assert fault.startswith(words)


def test_the_table():
    head, rule, *rows = task.table(fits()).splitlines()
    assert len(head) == len(rule) == len(rows[1])
    assert rows[0].split() == ["full", "4.000", "6,827", "3.0", "MB"]
    assert rows[1].split() == ["linear", "4.000", "0", "6,827", "3.0", "MB"]
    assert task.table(fits(linear=4.00001)).splitlines()[3].split()[2] == "+1.0e-05"
    assert rows[3].split() == ["sampled", "1024", "4.010", "+0.010", "6,827", "3.0", "MB"]


def test_exit_status(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = []
    for runs, status in ((fits(), 0), (fits(linear=4.5), 1)):
        monkeypatch.setattr(task, "run", lambda *args, runs=runs: given.append(args) or runs)
        assert cli.main(["--task", "language-model"]) == status
    out, err = capsys.readouterr()
    assert "The heads agree: linear takes the steps of full" in out
    assert "eans over the seeds" not in out and "\nA seed gives all heads" in out
    assert max(map(len, out.splitlines())) <= 79
    assert 'no pictures without matplotlib: pip install "jaxent[demo]"' in out
    assert "The heads do not agree" in err and "linear is 5.0e-01 nats from full" in err
    assert [args[1:3] for args in given] == [(1, 300)] * 2  # one seed, 300 steps
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "poetry"], "--task: invalid choice: 'poetry'"),
        (["--task", "language-model", "--data", "yeast"], "--data: it belongs to --task digits"),
        (["--task", "language-model", "--out", __file__], "--out: File exists"),
    ],
)
def test_wrong_options(options, message, capsys):
    if "--out" in options:
        pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match="2"):
        cli.main(options)
    assert message in capsys.readouterr().err


def test_from_the_shell(tmp_path):
    """Very few steps in a process of its own: output, picture, and no agreement yet is no crash."""
    pytest.importorskip("matplotlib")
    path = os.pathsep.join(
        [str(Path(jaxent.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "jaxent.demo",
            "--task=language-model",
            "--steps=1",
            "--out=deep/er",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, 1), done.stderr
    assert ("The heads agree" in done.stdout) == (done.returncode == 0)
    assert ("The heads do not agree" in done.stderr) == (done.returncode == 1)
    assert "linear is" not in done.stderr
    for name in task.heads(2):
        assert f"\n{name:<16}" in done.stdout and name in done.stderr
    assert not set("\r\x1b") & set(done.stdout + done.stderr)
    (picture,) = (tmp_path / "deep" / "er").iterdir()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {Path('deep', 'er', picture.name)}" in done.stdout
