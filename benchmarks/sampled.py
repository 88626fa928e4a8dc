"""A training step over a sampled vocabulary: its time against the number of classes.

``python -m benchmarks.sampled [--quick] [--json FILE]``

A step draws negatives, gathers rows, takes the gradient of a sampled softmax in the hidden states
and the rows, and adds it to the rows of a donated table. Steps of all sizes run in turn.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxent
from benchmarks.harness import environment, interleaved
from jaxent import sampled

SIZES = [10**4, 10**5, 10**6]
EXAMPLES, FEATURES, NUM_SAMPLED = 512, 128, 1024
RATE = 0.1


def log_uniform(key, labels, table, num_classes):
    return sampled.log_uniform(key, labels, num_sampled=NUM_SAMPLED, num_classes=num_classes)


def log_uniform_with_replacement(key, labels, table, num_classes):
    return sampled.log_uniform(
        key, labels, num_sampled=NUM_SAMPLED, num_classes=num_classes, unique=False
    )


def unigram(key, labels, table, num_classes):
    return sampled.unigram(key, labels, table, num_sampled=NUM_SAMPLED)


SAMPLERS = {
    "log_uniform": log_uniform,
    "log_uniform, with replacement": log_uniform_with_replacement,
    "unigram": unigram,
}


def loss(samples, labels, hidden, rows):
    s = sampled.sampled_softmax_stats(hidden, labels, samples, rows)
    return jaxent.weighted_mean(jaxent.nll(s))


def sparse_step(sampler, table, hidden, labels, frequencies, key):
    """Touches the rows in use and no others."""
    samples = sampler(key, labels, frequencies, table.shape[0])
    rows = sampled.gather_rows(table, labels, samples)
    value, d_rows = jax.value_and_grad(partial(loss, samples, labels, hidden))(rows)
    g = sampled.row_gradient(labels, samples, d_rows)
    return table.at[g.ids].add(-RATE * g.rows, mode="drop"), value


def dense_step(sampler, table, hidden, labels, frequencies, key):
    """The gradient in the table itself: a table of zeros and a pass over all of it."""
    samples = sampler(key, labels, frequencies, table.shape[0])

    def of(table):
        return loss(samples, labels, hidden, sampled.gather_rows(table, labels, samples))

    value, d_table = jax.value_and_grad(of)(table)
    return table - RATE * d_table, value


def full_step(sampler, table, hidden, labels, frequencies, key):
    """The full softmax."""

    def of(table):
        return jaxent.weighted_mean(jaxent.cross_entropy(hidden @ table.T, labels))

    value, d_table = jax.value_and_grad(of)(table)
    return table - RATE * d_table, value


def zipf(rng, num_classes, size):
    return (
        np.minimum(np.exp(rng.uniform(0, np.log(num_classes), size)), num_classes).astype(int) - 1
    )


class Step:
    """A compiled step on a table of its own, which it updates in place."""

    def __init__(self, step, sampler, num_classes):
        rng = np.random.default_rng(0)
        self.table = jax.random.normal(jax.random.key(0), (num_classes, FEATURES)) / 10
        self.hidden = jnp.asarray(rng.normal(size=(EXAMPLES, FEATURES)), jnp.float32)
        self.labels = jnp.asarray(zipf(rng, num_classes, EXAMPLES), jnp.int32)
        counts = 1e9 / np.arange(1.0, num_classes + 1)
        self.frequencies = sampled.unigram_table(counts) if sampler is unigram else None
        run = jax.jit(partial(step, sampler), donate_argnums=0)
        self.run = run.lower(*self.arguments(0)).compile()
        self.temp_mb = self.run.memory_analysis().temp_size_in_bytes / 1e6
        self.ms = []

    def arguments(self, i):
        return self.table, self.hidden, self.labels, self.frequencies, jax.random.key(i)

    def __call__(self, i):
        arguments = jax.block_until_ready(self.arguments(i))
        start = time.perf_counter()
        self.table, value = jax.block_until_ready(self.run(*arguments))
        self.ms.append(1e3 * (time.perf_counter() - start))
        return value


def measure(name, step, sampler, sizes, rounds):
    """Prints a line; returns the numbers by size."""
    steps = {size: Step(step, sampler, size) for size in sizes}
    for i in range(rounds + 2):
        for run in steps.values():
            run(i)
    ms = {size: float(np.median(run.ms[2:])) for size, run in steps.items()}
    paired = np.array(steps[sizes[-1]].ms[2:]) / np.array(steps[sizes[0]].ms[2:])
    ratio = float(np.median(paired))
    times = " ".join(f"{ms[size]:9.2f}" if size in ms else " " * 9 for size in SIZES)
    memory = " ".join(f"{run.temp_mb:8.1f}" for run in steps.values())
    print(
        f"{name:40} {times} {ratio if len(sizes) > 1 else float('nan'):6.2f}  {memory}", flush=True
    )
    return {"ms": ms, "ratio": ratio, "temp_mb": {s: r.temp_mb for s, r in steps.items()}}


def main() -> None:
    """Prints the tables, and writes them where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampled", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="9 rounds in place of 41")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    options, _ = parser.parse_known_args()
    rounds = 9 if options.quick else 41

    print(environment())
    print(f"{EXAMPLES} examples, {FEATURES} features, {NUM_SAMPLED} sampled; ms a step, median")
    sizes = " ".join(f"V={size:>7}" for size in SIZES)
    print(f"{'':40} {sizes}  ratio  temporary MB")
    results = {}
    for name, sampler in SAMPLERS.items():
        results[name] = measure(f"rows only, {name}", sparse_step, sampler, SIZES, rounds)
    few = max(rounds // 4, 3)
    results["dense"] = measure(
        "gradient of the table, log_uniform", dense_step, log_uniform, SIZES, few
    )
    results["full"] = measure("full softmax", full_step, log_uniform, SIZES[:1], few)

    print(f"{'adaptive softmax, V = 100000':40} {'value_and_grad, ms':>20} {'full':>9}")
    results["adaptive"] = adaptive(few)
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "results": results}))


def adaptive(rounds):
    """Adaptive softmax against the full one, gradients of hidden states and weights."""
    rng = np.random.default_rng(1)
    num_classes, examples = 10**5, 128
    params = sampled.adaptive_softmax_params(
        jax.random.key(0), FEATURES, num_classes, cutoffs=[2000, 20_000]
    )
    head = jax.random.normal(jax.random.key(1), (FEATURES, num_classes)) / 10
    hidden = jnp.asarray(rng.normal(size=(examples, FEATURES)), jnp.float32)
    labels = jnp.asarray(zipf(rng, num_classes, examples), jnp.int32)

    def of_adaptive(hidden, params, head):
        return sampled.adaptive_softmax_stats(hidden, params, labels).nll.mean()

    def of_full(hidden, params, head):
        return jaxent.cross_entropy(hidden @ head, labels).mean()

    functions = {
        "adaptive": jax.value_and_grad(of_adaptive, (0, 1)),
        "full": jax.value_and_grad(of_full, (0, 2)),
    }
    row = interleaved(functions, (hidden, params, head), rounds)
    print(f"{'':40} {row['adaptive']['ms']:20.2f} {row['full']['ms']:9.2f}")
    return row


if __name__ == "__main__":
    main()
