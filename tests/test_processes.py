"""Two processes take the training steps of one; what crosses the wire is what the docs say.

The job is that of two_processes.py, the formula that of benchmarks/scaling.py and docs/scaling.md.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

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


# --- what crosses the wire ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scaling():
    path = Path(__file__).parents[1] / "benchmarks" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scaling"]


@pytest.mark.parametrize(
    "size",  # data, model, rows a share, features, classes; compiled only: no such array is made
    [(2, 2, 8192, 4096, 128256), (4, 1, 3000, 520, 50258), (1, 4, 4096, 1024, 32004)],
)
def test_what_the_linear_head_sends_in_shard_map(scaling, size):
    text = scaling.program("shard_map", *size)
    assert "known_trip_count" in text, "several chunks"
    found = scaling.all_reduces(text)
    assert sum(a.sent for a in found) == pytest.approx(scaling.expected(*size), rel=1e-12)
    data, model, rows, features, classes = size
    largest = max((a for a in found if a.devices > 1), key=lambda a: a.size)
    once = (features * classes // model, data) if data > 1 else (rows * features, model)
    assert (largest.size / 4, largest.devices, largest.times) == (*once, 1)


def test_bytes_and_groups_are_read_as_xla_writes_them(scaling):
    loop = 'op_name="jit(f)/while/body/add"'
    text = f"""
    %a = (f32[16,1]{{1,0}}, bf16[3]{{0}}) all-reduce(%x), replica_groups=[2,8]<=[16], {loop}
    %b = f32[] all-reduce(%x), replica_groups={{{{0,1,2}},{{3,4,5}}}}, to_apply=%add
    %c = s32[5]{{0}} all-reduce-start(%x), replica_groups=mesh['i'=4,'j'=2,'k'=2] {{'i','k'}}, id=1
    %w = while(%t), backend_config={{"known_trip_count":{{"n":"7"}}}}
    """
    reduced = [scaling.AllReduce(70, 7, 8), scaling.AllReduce(4, 1, 3), scaling.AllReduce(20, 1, 8)]
    assert scaling.all_reduces(text) == reduced
    assert reduced[0].sent == 7 * 2 * 7 / 8 * 70
    with pytest.raises(ValueError, match="not an all-reduce"):
        scaling.all_reduces("%g = f32[8]{0} all-gather(%x), replica_groups={{0,1}}")
