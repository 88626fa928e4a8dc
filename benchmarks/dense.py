"""Dense losses against Optax: value and value_and_grad, time as a ratio, temporary memory.

``python -m benchmarks.dense [--quick] [--json FILE]``
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxent
from benchmarks.harness import environment, interleaved

SHAPES = [(8192, 10), (32448, 20), (4096, 1000), (1024, 32000), (256, 128256)]
GRID = (64, 13, 13, 3, 20)


def losses():
    """Name: (arguments, jaxent's loss, Optax')."""
    rng = np.random.default_rng(0)
    for rows, classes in SHAPES:
        x = jnp.asarray(rng.normal(size=(rows, classes)), jnp.float32)
        y = jnp.asarray(rng.integers(0, classes, rows), jnp.int32)
        yield (
            f"integer labels [{rows}, {classes}]",
            (x, y),
            jaxent.cross_entropy,
            optax.softmax_cross_entropy_with_integer_labels,
        )
    x = jnp.asarray(rng.normal(size=(4096, 1000)), jnp.float32)
    q = jax.nn.softmax(jnp.asarray(rng.normal(size=x.shape), jnp.float32))
    yield (
        "soft targets [4096, 1000]",
        (x, q),
        jaxent.soft_cross_entropy,
        optax.softmax_cross_entropy,
    )
    x = jnp.asarray(rng.normal(size=GRID) * 3, jnp.float32)
    z = jnp.asarray(rng.integers(0, 2, GRID), jnp.float32)
    yield (
        f"sigmoid {list(GRID)}",
        (x, z),
        jaxent.sigmoid_cross_entropy,
        optax.sigmoid_binary_cross_entropy,
    )
    yield (
        f"sigmoid focal {list(GRID)}",
        (x, z.astype(jnp.int32)),
        lambda x, z: jaxent.focal(jaxent.sigmoid_stats(x, z), gamma=2.0),
        lambda x, z: optax.sigmoid_focal_loss(x, z.astype(jnp.float32), gamma=2.0),
    )


def main() -> None:
    """Prints the table, and writes it where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 rounds in place of 21")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    options, _ = parser.parse_known_args()
    rounds = 5 if options.quick else 21

    print(environment())
    print(f"{'ms, median':34} {'':14} {'jaxent':>9} {'optax':>9} {'ratio':>6} {'temp MB':>9}")
    results = {}
    for name, args, ours, theirs in losses():
        for kind, wrap in {
            "value": lambda f: lambda x, y: f(x, y).mean(),
            "value_and_grad": lambda f: jax.value_and_grad(lambda x, y: f(x, y).mean()),
        }.items():
            row = interleaved({"jaxent": wrap(ours), "optax": wrap(theirs)}, args, rounds)
            results[f"{name} {kind}"] = row
            a, b = row["jaxent"], row["optax"]
            print(
                f"{name:34} {kind:14} {a['ms']:9.2f} {b['ms']:9.2f} {a['ms'] / b['ms']:6.2f} "
                f"{a['temp_mb']:9.2f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "results": results}))


if __name__ == "__main__":
    main()
