"""The benchmarks run and judge rightly; how fast anything is, is no test."""

import json
import os
import sys

import jax
import pytest

pytest.importorskip("benchmarks", reason="the source distribution is without them")

from benchmarks import dense, harness


def timing(ms, temp_mb=0.0):
    return harness.Timing(
        ms=ms, low=ms, high=ms, compile_ms=1.0, first_ms=1.0, temp_mb=temp_mb, total_mb=1.0
    )


def test_every_work_is_a_scalar_loss_of_its_logits():
    shapes = [(6, 5), (7, 3), (3, 6), (5, 4), (2, 9)]
    names, kinds = set(), {"weighted, smoothed, z-loss, where"}  # it has no other to equal
    for work in dense.works(shapes, (2, 3, 2)):
        names.add(work.name)
        assert next(iter(work.losses)) == "jaxent"
        for loss in work.losses.values():
            assert jax.eval_shape(loss, *work.arguments).shape == ()
        kind = work.name.partition(" [")[0]
        if kind not in kinds:  # the others of a kind differ in their shapes
            kinds.add(kind)
            one, *others = (float(jax.jit(loss)(*work.arguments)) for loss in work.losses.values())
            assert others == pytest.approx([one] * len(others), rel=1e-5), work.name
    assert len(names) == 5 + 2 + 5 + 2 + 2 + 2 + 3


def test_goals_are_judged_by_the_ratio_to_what_they_name():
    results = {
        "value": {"jaxent": timing(3.0), "optax": timing(2.0)},
        "value_and_grad": {"jaxent": timing(3.0, temp_mb=1.2e-5), "optax": timing(4.0)},
        "limit": {"exp": timing(1.0)},
    }
    goals = (
        harness.Goal("value", "optax", 1.4),
        harness.Goal("value", "torch", 1.0),  # not there
        harness.Goal("value_and_grad", "exp", 3.0),
        harness.Goal("value_and_grad", harness.MEMORY, 0.01),
    )
    work = harness.Work("w", (jax.numpy.zeros((3, 100)),), {"jaxent": None, "optax": None}, goals)
    ratios = [ratio for _, ratio in harness.reached(work, results)]
    assert ratios == pytest.approx([1.5, 3.0, 0.01])
    text = harness.table(work, results)
    assert "1.500 × optax, goal 1.4: NOT MET" in text
    assert "3.000 × exp, goal 3: met" in text
    assert "torch" not in text


def test_calls_go_there_and_back_after_the_first_of_each():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "ab"}
    times = harness.in_turn(calls, rounds=2)
    assert "".join(seen) in ("ababba", "abbaab")
    assert [len(others) for _, others in times.values()] == [2, 2]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not on this system")
def test_cpus_are_cores_and_not_devices():
    assert harness.environment()["cpus"] == str(len(os.sched_getaffinity(0)))


def test_a_run_prints_writes_and_draws(tmp_path, monkeypatch, capsys):
    measure, sweep = dense.measure, dense.sweep
    monkeypatch.setattr(dense, "works", lambda peers: [dense.integer_labels((4, 10))])
    monkeypatch.setattr(dense, "measure", lambda work, rounds, seconds: measure(work, 2, 0.0))
    monkeypatch.setattr(dense, "sweep", lambda sizes, rounds: sweep(sizes[:1], 1))
    startup = {"import": 50.0, "compile": 2.0, "compile optax": 1.0}
    monkeypatch.setattr(dense, "startup", lambda rounds: startup)
    file, picture = tmp_path / "dense.json", tmp_path / "dense.png"
    options = ["--quick", "--sweep", "--json", str(file), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", ["dense", *options])
    cache = jax.config.jax_enable_compilation_cache
    try:
        dense.main()
    finally:
        jax.config.update("jax_enable_compilation_cache", cache)

    printed, report = capsys.readouterr().out, json.loads(file.read_text())
    assert "goals met: " in printed
    assert report["environment"]["jax"] == jax.__version__
    row = report["works"]["integer labels [4, 10]"]
    assert set(row) == {*harness.KINDS, "limit"}
    assert all(t["ms"] > 0 for kind in row.values() for t in kind.values())
    assert row["limit"]["read and write"]["total_mb"] == pytest.approx(
        2 * 4 * 4 * 10 / 1e6, rel=0.5
    )
    assert set(report["sweep"]["V"][dense.HEAD]) == {"10"}
    assert picture.exists() or "matplotlib is not installed" in printed
