"""Two processes take the same training steps as one: ``python tests/two_processes.py``.

A language model in miniature, its batch and its vocabulary split over a mesh of four CPU devices:
two processes with two devices each, which talk through Gloo on the loopback, or one process with
all four. Started without arguments it runs both and compares them. On several hosts the worker is
the same program, but for the coordinator's address.
"""

import argparse
import contextlib
import faulthandler
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

STEPS, ROWS, CONTEXT, FEATURES, CLASSES = 100, 48, 3, 24, 998  # an odd number of classes a device
TIMEOUT = 240  # seconds

# --- the problem: the same numbers in every process -----------------------------------------------


def data(steps=STEPS):
    """Words by Zipf's law, each batch with uneven weights and some padding."""
    rng = np.random.default_rng(0)
    words = np.minimum(rng.zipf(1.3, (steps, ROWS, CONTEXT + 1)) - 1, CLASSES - 1).astype(np.int32)
    weights = (rng.integers(0, 4, (steps, ROWS)) * np.linspace(0.1, 3, ROWS)).astype(np.float32)
    labels = np.where(weights > 0, words[..., -1], -100).astype(np.int32)
    for step in range(steps):
        yield {"words": words[step, :, :-1], "labels": labels[step], "weights": weights[step]}


def start():
    """The parameters before the first step."""
    rng = np.random.default_rng(1)
    shapes = {"embedding": (CLASSES, FEATURES), "head": (FEATURES, CLASSES)}
    return {k: rng.normal(0, 0.3, shape).astype(np.float32) for k, shape in shapes.items()}


def objective(params, batch, **options):
    """The weighted sum of the losses of the words that follow."""
    import jax.numpy as jnp

    import jaxent

    hidden = jnp.tanh(params["embedding"].at[batch["words"]].get(mode="clip").sum(1))
    return jaxent.linear_cross_entropy(
        hidden, params["head"], batch["labels"], batch["weights"], chunk_size=16, **options
    )


def optimizer():
    """What steps."""
    import optax

    return optax.sgd(0.3, momentum=0.9)


# --- the steps on a mesh ------------------------------------------------------------------------


def fit(way, mesh, steps=STEPS):
    """The loss before each step, and the parameters after the last, whole."""
    import jax
    from jax.experimental.multihost_utils import process_allgather
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from jaxent import train

    specs = {"embedding": P(), "head": P(None, "model")}, P("data")

    def put(tree, spec):
        """Each process makes its own part of an array that all of them know."""
        specs = spec if isinstance(spec, dict) else dict.fromkeys(tree, spec)
        return {
            k: jax.make_array_from_callback(x.shape, NamedSharding(mesh, specs[k]), x.__getitem__)
            for k, x in tree.items()
        }

    def in_shard_map(params, batch):
        def of_shard(params, batch):
            return objective(params, batch, axis_name="model").psum("data")

        return jax.shard_map(of_shard, mesh=mesh, in_specs=specs, out_specs=P())(params, batch)

    ways = {"jit": objective, "shard_map": in_shard_map}
    step = train.train_step(ways[way], optimizer())
    params = put(start(), specs[0])
    momentum = jax.tree.map(lambda x: x + 0, optimizer().init(params))
    losses = []
    for batch in data(steps):
        params, momentum, part = step(params, momentum, put(batch, specs[1]))
        losses.append(float(part.mean()))  # waits: one step at a time
    return np.array(losses), process_allgather(params, tiled=True)


def results():
    """The steps in both ways on four devices, as arrays by name: the same in every process."""
    import jax
    from jax.sharding import AxisType, Mesh

    devices = np.array(jax.devices()[:4]).reshape(2, 2)  # of two processes, a row each
    grid = partial(Mesh, axis_names=("data", "model"), axis_types=(AxisType.Auto,) * 2)
    found = {}
    # the batch over the processes, and then the classes
    for way, mesh in {"jit": grid(devices), "shard_map": grid(devices.T)}.items():
        losses, params = fit(way, mesh)
        found |= {f"{way} losses": losses} | {f"{way} {k}": x for k, x in params.items()}
    return found


def work(out, processes, process, coordinator):
    """One process of the job; the first writes what came out."""
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)  # whatever has become of its parent
    import jax

    jax.config.update("jax_num_cpu_devices", 4 // processes)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=60)
    assert (jax.process_count(), jax.device_count()) == (processes, 4)
    found = results()
    if process == 0:
        np.savez(out, **found)
    jax.distributed.shutdown()


# --- starting and comparing ---------------------------------------------------------------------


def run(processes=2, timeout=TIMEOUT):
    """The results of a job of so many processes on this machine; none of them outlives the call."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as at_the_end:
        with socket.socket() as probe:  # a free port
            probe.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
        out = Path(folder, "results.npz")
        shared = f"--out={out}", f"--processes={processes}", f"--coordinator={coordinator}"
        logs = [Path(folder, f"{process}.log") for process in range(processes)]
        workers = []
        for process, log in enumerate(logs):
            stream = at_the_end.enter_context(log.open("w"))
            worker = subprocess.Popen(
                [sys.executable, __file__, *shared, f"--process={process}"],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
            at_the_end.callback(worker.wait)  # what is noted last comes first: kill, then wait
            at_the_end.callback(worker.kill)
            workers.append(worker)
        codes = _exit_codes(workers, time.monotonic() + timeout)
        if codes != [0] * processes:
            texts = [
                f"process {i} of {processes}: {'killed' if code is None else f'exit {code}'}\n"
                f"{log.read_text()}"
                for i, (code, log) in enumerate(zip(codes, logs, strict=True))
            ]
            raise RuntimeError("\n".join(texts))
        with np.load(out) as arrays:
            return dict(arrays)


def _environment():
    """This one's, on CPUs, without the settings that say how many."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.getenv("PYTHONPATH")]))
    dropped = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_ENABLE_X64")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}


def _exit_codes(workers, deadline):
    """As soon as all have ended, one has failed, or it is too late; None is still at work."""
    while True:
        codes = [worker.poll() for worker in workers]
        if None not in codes or any(codes) or time.monotonic() > deadline:
            return codes
        time.sleep(0.05)


def difference(a, b):
    """The largest relative difference of each array: of a loss, or of parameters in their norm."""
    assert a.keys() == b.keys()
    return {
        k: float(np.max(np.abs(a[k] - b[k]) / np.abs(b[k])))
        if k.endswith("losses")
        else float(np.linalg.norm(a[k] - b[k]) / np.linalg.norm(b[k]))
        for k in a
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--process", type=int)
    parser.add_argument("--coordinator")
    options = parser.parse_args()
    if options.process is not None:
        work(**vars(options))
        return
    print(f"after {STEPS} steps, {options.processes} processes against one:")
    for name, worst in difference(run(options.processes), run(1)).items():
        print(f"{name:20} {worst:.1e}")


if __name__ == "__main__":
    main()
