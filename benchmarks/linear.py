"""The linear head against full logits, tokamax and PyTorch: time, temporary memory, error.

``python -m benchmarks.linear [--quick] [--json FILE]``; tokamax and PyTorch only where they are
installed. All in turn, in one run: read the ratios.
"""

import argparse
import importlib
import importlib.util
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxent
from benchmarks.harness import environment, in_turn
from jaxent.linear import linear_cross_entropy, linear_stats

SHAPES = [(2048, 512, 32000), (512, 512, 32000), (4096, 256, 4096)]  # rows, features, classes


def matmuls(hidden, head, labels):
    """Three of them and nothing else: what no gradient can do without."""
    del labels
    logits = hidden @ head
    return logits[0, 0], (logits @ head.T, hidden.T @ logits)


def full_logits(hidden, head, labels):
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def objective(hidden, head, labels, **options):
    return linear_cross_entropy(hidden, head, labels, **options).mean()


def statistics(hidden, head, labels, **options):
    return jaxent.nll(linear_stats(hidden, head, labels, **options)).mean()


def smoothed(s):
    return jaxent.smoothed_nll(s, label_smoothing=0.1) + 1e-4 * jaxent.z_loss(s)


def jax_losses():
    yield "full logits, optax", full_logits
    yield "linear_cross_entropy", objective
    yield "linear_cross_entropy, 64 rows", partial(objective, chunk_size=64)
    yield "linear_cross_entropy, 1024 rows", partial(objective, chunk_size=1024)
    yield "linear_cross_entropy, smoothed + z", partial(objective, loss=smoothed)
    yield "linear_stats", statistics
    if importlib.util.find_spec("tokamax"):
        import tokamax

        def peer(hidden, head, labels, implementation):
            return tokamax.linear_softmax_cross_entropy_loss(
                hidden, labels, head, reduction="mean", implementation=implementation
            )

        for implementation in ("xla", "chunked_xla"):
            yield f"tokamax {implementation}", partial(peer, implementation=implementation)


def hvp(loss):
    def product(hidden, head, labels):
        grad = jax.grad(lambda *args: loss(*args, labels), (0, 1))
        return jax.jvp(grad, (hidden, head), (hidden, head))[1]

    return product


def jax_work(shape, dtype):
    """By name: a function without arguments, and its temporary memory in MB."""
    args = _arguments(shape, dtype)
    work = {"three matmuls": matmuls}
    for name, loss in jax_losses():
        work[f"{name}: value and grad"] = jax.value_and_grad(loss, (0, 1))
        if "rows" not in name and "smoothed" not in name:
            work[f"{name}: value"] = loss
            if "tokamax" not in name:  # it has no forward mode
                work[f"{name}: Hessian times vector"] = hvp(loss)
    for name, f in work.items():
        try:
            compiled = jax.jit(f).lower(*args).compile()
            yield name, partial(compiled, *args), compiled.memory_analysis().temp_size_in_bytes
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}")


def torch_work(shape, dtype):
    """PyTorch's fused loss, plain and in chunks."""
    if not importlib.util.find_spec("torch") or dtype != jnp.float32:
        return
    import torch
    import torch.nn.functional as F

    hidden, head, labels = (torch.from_numpy(np.array(x)) for x in _arguments(shape, dtype))
    head, labels = head.T.contiguous().requires_grad_(), labels.long()
    hidden.requires_grad_()
    names = ("torch.nn.functional", "torch.nn.modules.loss", "torch.nn")
    options = [
        getattr(importlib.import_module(n), "LinearCrossEntropyOptions", None) for n in names
    ]
    ways = {"plain": {}}
    chunked = next((o for o in options if o), None)
    if chunked:
        ways["chunked"] = {"options": chunked()}

    def step(options):
        hidden.grad = head.grad = None
        loss = F.linear_cross_entropy(hidden, head, labels, **options)
        loss.backward()
        return loss

    for name, way in ways.items():
        yield f"PyTorch {torch.__version__} {name}: value and grad", partial(step, way), None


def _arguments(shape, dtype):
    n, d, v = shape
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(n, d))
    head = 2 * d**-0.5 * rng.normal(size=(d, v))
    labels = jnp.asarray(rng.integers(0, v, n), jnp.int32)
    return jnp.asarray(hidden, dtype), jnp.asarray(head, dtype), labels


def interleaved(work, rounds):
    """Median and quartiles of each, called in turn."""
    work = list(work)
    runs = {name: lambda run=run: jax.block_until_ready(run()) for name, run, _ in work}
    times = {name: ms for name, (_, ms) in in_turn(runs, rounds).items()}
    return {
        name: {
            "ms": float(np.median(times[name])),
            "low": float(np.quantile(times[name], 0.25)),
            "best": min(times[name]),
            "temp_mb": temp if temp is None else temp / 1e6,
        }
        for name, _, temp in work
    }


def main() -> None:
    """Prints the tables, and writes them where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first shape only, 5 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    options, _ = parser.parse_known_args()
    print(environment())
    results = {}
    for shape in SHAPES[:1] if options.quick else SHAPES:
        for dtype in (jnp.float32, jnp.bfloat16)[: 1 if options.quick else 2]:
            title = f"{list(shape)} {jnp.dtype(dtype).name}"
            print(f"\n{title:48} {'ms':>8} {'best':>8} {'/ 3 mm':>7} {'/ full':>7} {'temp MB':>8}")
            work = [*jax_work(shape, dtype), *torch_work(shape, dtype)]
            table = interleaved(work, 5 if options.quick else 9)
            results[title] = table
            floor = table["three matmuls"]
            for name, row in table.items():
                full = table.get(f"full logits, optax:{name.partition(':')[2]}", floor)
                temp = "" if row["temp_mb"] is None else f"{row['temp_mb']:8.0f}"
                print(
                    f"{name:48} {row['ms']:8.0f} {row['best']:8.0f} "
                    f"{row['ms'] / floor['ms']:7.2f} {row['ms'] / full['ms']:7.2f} {temp:>8}"
                )
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "results": results}))


if __name__ == "__main__":
    main()
