"""Two processes take the training steps of one. The job is that of two_processes.py."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_processes
from jaxlib import _jax


def on_one_device():
    """The same steps with all logits in memory, nothing split and nothing of jaxent."""
    optimizer = two_processes.optimizer()
    params = two_processes.start()
    state = optimizer.init(params)

    def mean(params, batch):
        hidden = jnp.tanh(params["embedding"][batch["words"]].sum(1))
        losses = optax.softmax_cross_entropy_with_integer_labels(
            hidden @ params["head"], jnp.maximum(batch["labels"], 0)
        )
        return (losses * batch["weights"]).sum() / batch["weights"].sum()

    @jax.jit
    def step(params, state, batch):
        loss, grads = jax.value_and_grad(mean)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for batch in two_processes.data():
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    return {"losses": np.array(losses), **jax.tree.map(np.asarray, params)}


@pytest.mark.skipif(not hasattr(_jax, "make_gloo_tcp_collectives"), reason="jaxlib without Gloo")
def test_two_processes_take_the_steps_of_one():
    """A hundred steps: the losses and the parameters of two processes, of one, of one device."""
    of_two, of_one, dense = two_processes.run(2), two_processes.results(), on_one_device()
    dense = {f"{way} {name}": x for way in ("jit", "shard_map") for name, x in dense.items()}
    assert of_two["jit losses"].shape == (two_processes.STEPS,)
    assert of_two["jit losses"][-10:].mean() < 0.8 * of_two["jit losses"][:10].mean()
    for other in (of_one, dense):
        worst = two_processes.difference(of_two, other)
        assert max(worst.values()) < 1e-5, worst


def started(monkeypatch):
    """The processes that are started from now on."""
    processes, start = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda *args, **kw: processes.append(start(*args, **kw)) or processes[-1],
    )
    return processes


def test_no_process_outlives_a_job_that_fails(monkeypatch, tmp_path):
    processes = started(monkeypatch)
    with pytest.raises(RuntimeError, match="process 1 of 2: killed"):
        two_processes.run(2, timeout=0.2)
    assert len(processes) == 2 and all(p.returncode for p in processes)

    stuck = tmp_path / "stuck.py"
    stuck.write_text(
        "import sys, time\nif sys.argv[-1][-1] == '1': sys.exit('no luck')\ntime.sleep(600)"
    )
    monkeypatch.setattr(two_processes, "__file__", str(stuck))
    with pytest.raises(
        RuntimeError, match=r"(?s)process 0 of 2: killed.*process 1.*exit 1\nno luck"
    ):
        two_processes.run(2, timeout=60)
    assert len(processes) == 4 and all(p.returncode for p in processes)
