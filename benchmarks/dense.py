"""Dense and elementwise losses beside Optax, the limits of the machine and other frameworks.

``python -m benchmarks.dense [--quick] [--peers] [--sweep] [--json FILE] [--plot FILE]``. Optax'
losses are plain formulas without a derivative rule, so they are the plain autodiff of the hvp's
goal too. Where a goal is out of reach a third program shows by how much: the fewest operations,
whatever overflows or cancels. The limits are what it takes to read the logits, to read and write
them, and to write their exponentials. A work's later programs compile faster, for parts are traced
already: the goal for compilation is measured apart.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxent
from benchmarks import plots
from benchmarks.harness import (
    HEADER,
    LIMITS,
    MEMORY,
    Goal,
    Program,
    Work,
    environment,
    in_turn,
    measure,
    reached,
    table,
    timing,
    verdict,
)

SHAPES = [(8192, 10), (32448, 20), (4096, 1000), (1024, 32000), (256, 128256)]
GRID = (64, 13, 13, 3, 20)


def goals(against, value, value_and_grad, **others) -> tuple[Goal, ...]:
    kinds = {"value": value, "value_and_grad": value_and_grad, **others}
    return tuple(Goal(kind, against, ratio) for kind, ratio in kinds.items())


def mean(loss):
    return lambda *args: loss(*args).mean()


optax_integer = mean(optax.softmax_cross_entropy_with_integer_labels)
jaxent_integer = mean(jaxent.cross_entropy)


# --- the works ----------------------------------------------------------------------------------


def works(shapes=SHAPES, grid=GRID, peers=False) -> Iterator[Work]:
    """A work at a time."""
    for shape in shapes:
        yield integer_labels(shape, peers)
    yield integer_labels(grid)
    rows, classes = shapes[1]
    odd = integer_labels((rows + 1, classes))
    yield dataclasses.replace(odd, name=f"{odd.name}, odd")
    for shape in shapes:
        yield bfloat16(shape)
    for shape in shapes[2:4]:
        yield all_at_once(shape)
    for shape in shapes[2:4]:
        yield soft_targets(shape, peers)
    yield sigmoid(grid, peers)
    yield sigmoid_focal(grid)
    for shape in shapes[1:4]:
        yield vmapped(shape)


def logits(shape, dtype=jnp.float32):
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return jnp.asarray(3 * x, dtype)


def labels(shape):
    *rows, classes = shape
    return jnp.asarray(np.random.default_rng(1).integers(0, classes, rows), jnp.int32)


def integer_labels(shape, peers=False):
    x, y = logits(shape), labels(shape)
    wanted = *goals("optax", 1.1, 1.0, hvp=1.2), *goals("torch", 1.0, 0.7)
    if shape[-1] >= 32000:
        wanted += (Goal("value_and_grad", "exp", 1.3),)
    if shape[-1] >= 1000:
        wanted += (Goal("value_and_grad", MEMORY, 0.01),)
    return Work(
        f"integer labels {list(shape)}",
        (x, y),
        {"jaxent": jaxent_integer, "optax": optax_integer},
        wanted,
        peer_calls("integer", x, y) if peers else {},
    )


def bfloat16(shape):
    return Work(
        f"integer labels, bfloat16 {list(shape)}",
        (logits(shape, jnp.bfloat16), labels(shape)),
        {
            "jaxent": jaxent_integer,
            "optax, f32 cast": lambda x, y: optax_integer(x.astype(jnp.float32), y),
        },
        goals("optax, f32 cast", 0.7, 0.8),
    )


def all_at_once(shape):
    def loss(x, y, keep, per_class):
        s = jaxent.softmax_stats(x, y, where=keep)
        losses = jaxent.smoothed_nll(s, label_smoothing=0.1) + 1e-4 * jaxent.z_loss(s)
        weights = jaxent.class_weights(y, per_class, where=keep)
        return jaxent.weighted_mean(losses, weights)

    keep = jnp.arange(shape[0]) % 8 > 0
    per_class = 1 + jnp.arange(shape[1], dtype=jnp.float32) / shape[1]
    return Work(
        f"weighted, smoothed, z-loss, where {list(shape)}",
        (logits(shape), labels(shape), keep, per_class),
        {
            "jaxent": loss,
            "plain loss": lambda x, y, keep, per_class: jaxent_integer(x, y),
            "plain, and mean": lambda x, y, keep, per_class: jaxent_integer(x, y) + x.mean(),
        },
        goals("plain loss", 1.5, 1.2),
    )


def soft_targets(shape, peers=False):
    def unguarded(x, q):  # the fewest operations: no maximum, and rows that sum to 1
        return jnp.log(jnp.sum(jnp.exp(x), -1)) - jnp.sum(q * x, -1)

    x, q = logits(shape), jax.nn.softmax(logits(shape)[::-1])
    return Work(
        f"soft targets {list(shape)}",
        (x, q),
        {
            "jaxent": mean(jaxent.soft_cross_entropy),
            "optax": mean(optax.softmax_cross_entropy),
            "unguarded": mean(unguarded),
        },
        goals("optax", 0.8, 0.8, hvp=1.2),
        peer_calls("soft", x, q) if peers else {},
    )


def binary(shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, 2, shape), jnp.int32)


def sigmoid(shape, peers=False):
    x, z = logits(shape), binary(shape).astype(jnp.float32)
    return Work(
        f"sigmoid {list(shape)}",
        (x, z),
        {
            "jaxent": mean(jaxent.sigmoid_cross_entropy),
            "optax": mean(optax.sigmoid_binary_cross_entropy),
        },
        goals("optax", 0.35, 0.5, hvp=1.2),
        peer_calls("sigmoid", x, z) if peers else {},
    )


def sigmoid_focal(shape):
    def ours(x, z):
        return jaxent.focal(jaxent.sigmoid_stats(x, z), gamma=2.0)

    def theirs(x, z):
        return optax.sigmoid_focal_loss(x, z.astype(jnp.float32), gamma=2.0)

    return Work(
        f"sigmoid focal {list(shape)}",
        (logits(shape), binary(shape)),
        {"jaxent": mean(ours), "optax": mean(theirs)},
        goals("optax", 0.35, 0.5, hvp=1.2),
    )


def vmapped(shape):
    return Work(
        f"vmap of one example {list(shape)}",
        (logits(shape), labels(shape)),
        {"jaxent": mean(jax.vmap(jaxent.cross_entropy)), "batched": jaxent_integer},
        goals("batched", 1.1, 1.1, jvp=1.1, hvp=1.1),
    )


# --- other frameworks ---------------------------------------------------------------------------


def installed_peers() -> dict[str, str]:
    """PyTorch's and TensorFlow's versions, where they are installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    names = [name for name in ("torch", "tensorflow") if importlib.util.find_spec(name)]
    return {name: importlib.import_module(name).__version__ for name in names}


def peer_calls(loss, x, target):
    """Their calls, by (kind, name)."""
    of = {"torch": torch_calls, "tensorflow": tensorflow_calls}
    return {
        (kind, name): call
        for name in installed_peers()
        for kind, call in of[name](loss, x, target).items()
    }


def torch_calls(loss, x, target):
    """With one thread or one a core, what is faster: on a busy machine threads wait for another."""
    import torch
    from torch.nn import functional

    of = functional.binary_cross_entropy_with_logits if loss == "sigmoid" else None
    of = of or functional.cross_entropy  # integer labels and soft targets
    x = torch.tensor(np.asarray(x), requires_grad=True)
    target = torch.tensor(np.asarray(target))
    target = target.long() if loss == "integer" else target

    @torch.no_grad()
    def value():
        return of(x, target)

    def value_and_grad():
        return torch.autograd.grad(of(x, target), x)

    def on(threads, call):
        def run():
            torch.set_num_threads(threads)
            return call()

        return run

    def faster(call):
        runs = {threads: on(threads, call) for threads in (1, int(environment()["cpus"]))}
        times = in_turn(runs, rounds=5)
        return runs[min(times, key=lambda threads: statistics.median(times[threads][1]))]

    return {"value": faster(value), "value_and_grad": faster(value_and_grad)}


def tensorflow_calls(loss, x, target):
    import tensorflow as tf

    of = {
        "integer": tf.nn.sparse_softmax_cross_entropy_with_logits,
        "soft": tf.nn.softmax_cross_entropy_with_logits,
        "sigmoid": tf.nn.sigmoid_cross_entropy_with_logits,
    }[loss]
    x, target = tf.constant(np.asarray(x)), tf.constant(np.asarray(target))

    @tf.function
    def value(x, target):
        return tf.reduce_mean(of(labels=target, logits=x))

    @tf.function
    def value_and_grad(x, target):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = value(x, target)
        return loss, tape.gradient(loss, x)

    return {
        "value": lambda: value(x, target).numpy(),
        "value_and_grad": lambda: value_and_grad(x, target)[1].numpy(),
    }


# --- import and compilation ---------------------------------------------------------------------


def startup(rounds: int) -> dict[str, float]:
    """Milliseconds, medians: ``import jaxent`` after jax and chex; trace and compile.

    Each in a process of its own: Python's collector walks through all that a long run has left.
    """
    code = (  # a collection of all of JAX' objects, 45 ms, falls into one import or another
        "import gc, time, jax, chex; gc.disable(); t = time.perf_counter(); "
        "import jaxent; print(time.perf_counter() - t)"
    )

    def of_process(code):
        return [float(x) for x in subprocess.check_output([sys.executable, "-c", code]).split()]

    imports = [1e3 * of_process(code)[0] for _ in range(rounds)]
    compiles = f"from benchmarks import dense; print(*dense.compile_ms({rounds}))"
    ours, theirs = of_process(compiles)
    return {"import": statistics.median(imports), "compile": ours, "compile optax": theirs}


def compile_ms(rounds: int) -> tuple[float, float]:
    """Trace and compile of the gradient, jaxent's and Optax', in turn: medians."""
    jax.config.update("jax_enable_compilation_cache", False)
    x = jax.ShapeDtypeStruct((256, 1000), jnp.float32)
    y = jax.ShapeDtypeStruct((256,), jnp.int32)

    def compiled(loss):
        jax.clear_caches()  # of traces too
        return Program(jax.grad(loss), (x, y)).compile_ms

    times = [(compiled(jaxent_integer), compiled(optax_integer)) for _ in range(rounds + 1)][1:]
    ours, theirs = zip(*times, strict=True)
    return statistics.median(ours), statistics.median(theirs)


# --- the sweep ----------------------------------------------------------------------------------

FEATURES = 16  # of the linear head
ROWS, CLASSES = 100, 1000  # what stays, as the classes or the rows grow
DENSE = {"jaxent": jaxent_integer, "optax": optax_integer}
HEAD = "jaxent, linear head"


def sweep(elements: list[int], rounds: int) -> dict[str, dict[str, dict[int, dict]]]:
    """value_and_grad as the logits grow, ``{"V" or "N": {implementation: {size: Timing}}}``.

    What would not fit into 70 % of the free memory is left out: the dense losses first. Where the
    cost is linear, the nanoseconds a logit that are printed stay the same.
    """
    names = [*DENSE, HEAD, *LIMITS]
    columns = " ".join(f"{name:>19}" for name in names)
    print(f"{'value_and_grad, ns a logit':<28}{columns}   MB: {', '.join(names[:3])}")
    found = {"V": {}, "N": {}}
    for axis, implementations in found.items():
        for size in elements:
            n, v = (ROWS, size // ROWS) if axis == "V" else (size // CLASSES, CLASSES)
            row = point(n, v, rounds)
            for name, t in row.items():
                implementations.setdefault(name, {})[v if axis == "V" else n] = t
            ns = [f"{1e6 * row[k]['ms'] / (n * v):.3f}" if k in row else "-" for k in names]
            mb = [f"{row[k]['total_mb']:.3f}" if k in row else "-" for k in names[:3]]
            cells = " ".join(f"{cell:>19}" for cell in ns)
            print(f"{f'N = {n}, V = {v}':<28}{cells}   {', '.join(mb)}", flush=True)
    return found


def point(n: int, v: int, rounds: int):
    """Dense losses, the linear head and the limits at one size."""

    def head_loss(hidden, head, y):
        return jaxent.linear_cross_entropy(hidden, head, y).mean()

    x, y = jax.ShapeDtypeStruct((n, v), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    features = tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, FEATURES), (FEATURES, v)))
    functions = {
        **{name: (jax.value_and_grad(loss), (x, y)) for name, loss in DENSE.items()},
        HEAD: (jax.value_and_grad(head_loss, (0, 1)), (*features, y)),
        **{name: (lambda x, limit=limit: limit(None, x), (x,)) for name, limit in LIMITS.items()},
    }
    programs = {name: Program(f, specs) for name, (f, specs) in functions.items()}
    programs = {name: p for name, p in programs.items() if p.total_mb < 0.7 * free_mb()}
    arrays = {}
    for name in programs:
        for spec in functions[name][1]:
            if spec not in arrays:
                arrays[spec] = waves(spec) if spec.dtype == jnp.float32 else jnp.arange(n) % v
    calls = {
        name: lambda p=p, specs=functions[name][1]: p(*(arrays[spec] for spec in specs))
        for name, p in programs.items()
    }
    times = in_turn(calls, rounds, seconds=0.02 * rounds)
    return {name: timing(*times[name], programs[name]) for name in programs}


def waves(spec):
    """Numbers that take no memory but their own."""

    def fill():
        i = jax.lax.broadcasted_iota(jnp.int32, spec.shape, 1)
        j = jax.lax.broadcasted_iota(jnp.int32, spec.shape, 0)
        return 3 * jnp.sin((i % 9973 + 7 * (j % 9973)).astype(spec.dtype))

    return jax.block_until_ready(jax.jit(fill)())


def free_mb() -> float:
    """What the operating system could still give, where it says so."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (AttributeError, ValueError):
        return 8e3


# --- all of it ----------------------------------------------------------------------------------


def main() -> None:
    """Prints the table, and writes numbers and pictures where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--peers", action="store_true", help="PyTorch and TensorFlow, if installed")
    parser.add_argument("--sweep", action="store_true", help="from 10^3 elements to 10^9 (10^7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (needs matplotlib)")
    options, _ = parser.parse_known_args()
    rounds, seconds = (5, 0.25) if options.quick else (21, 5.0)
    jax.config.update("jax_enable_compilation_cache", False)  # or compile times would be a disk's

    report = {"environment": environment(), "works": {}, "goals": []}
    if options.peers:
        report["environment"] |= installed_peers() or {"peers": "none installed"}
    print(report["environment"], HEADER, sep="\n")
    for work in works(peers=options.peers):
        results = report["works"][work.name] = measure(work, rounds, seconds)
        print(table(work, results), flush=True)
        for goal, ratio in reached(work, results):
            report["goals"].append([work.name, goal.kind, goal.against, goal.at_most, ratio])

    report["startup"] = ms = startup(3 if options.quick else 9)
    for name, goal, ratio in (
        ("import jaxent after jax, chex", Goal("startup", "1 ms", 60), ms["import"]),
        ("trace and compile", Goal("startup", "optax", 1.3), ms["compile"] / ms["compile optax"]),
    ):
        print(f"{name:<31}{verdict(goal, ratio)}")
        report["goals"].append([name, goal.kind, goal.against, goal.at_most, ratio])
    met = sum(ratio <= at_most for *_, at_most, ratio in report["goals"])
    print(f"goals met: {met} of {len(report['goals'])}")

    if options.sweep:
        most = 7 if options.quick else 9
        report["sweep"] = sweep([10**i for i in range(3, most + 1)], rounds)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    if options.plot:
        print(plots.draw(report, options.plot))


if __name__ == "__main__":
    main()
