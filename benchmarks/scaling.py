"""What the linear head sends over the wire on 8 to 4096 devices, and what that would cost.

"reduced" is how often a step adds the head's gradient up over the data axis: once is enough.

``python -m benchmarks.scaling [--devices N ...] [--rows N --features D --classes V]``. The bytes
are read off the program that XLA compiles for so many devices (here CPUs that exist in name only;
nothing runs). The times are a model of a machine; each of its numbers is an option.
"""

import argparse
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxent.linear import linear_cross_entropy

WAYS = "shard_map", "jit", "explicit axes", "jit, big chunks"
MOST_COMPILED = 2048  # a process has no more CPU devices; beyond them there is the formula

# --- what crosses the wire ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AllReduce:
    """Bytes that one device puts in, times a step, and over how many devices."""

    size: int
    times: int
    devices: int

    @property
    def sent(self) -> float:
        """Bytes a device sends a step, by a ring."""
        return self.times * 2 * (self.devices - 1) / self.devices * self.size


def program(way: str, data: int, model: int, rows: int, features: int, classes: int) -> str:
    """The compiled value and gradient of the linear head, ``rows`` a share of the data axis."""
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    axis_type = AxisType.Explicit if way == "explicit axes" else AxisType.Auto
    mesh = Mesh(devices, ("data", "model"), axis_types=(axis_type,) * 2)

    def array(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

    arguments = (
        array((data * rows, features), jnp.float32, ("data", None)),
        array((features, classes), jnp.float32, (None, "model")),
        array((data * rows,), jnp.int32, ("data",)),
    )

    def in_shard_map(hidden, head, labels):
        def of_shard(hidden, head, labels):
            part = linear_cross_entropy(hidden, head, labels, axis_name="model")
            return part.psum("data")

        specs = P("data"), P(None, "model"), P("data")
        shares = jax.shard_map(of_shard, mesh=mesh, in_specs=specs, out_specs=P())
        return shares(hidden, head, labels).mean()

    def in_jit(hidden, head, labels):
        size = data * 512 if way == "jit, big chunks" else None
        return linear_cross_entropy(hidden, head, labels, chunk_size=size).mean()

    loss = in_shard_map if way == "shard_map" else in_jit
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile().as_text()


def all_reduces(text: str) -> list[AllReduce]:
    """The collectives of a compiled program; anything but an all-reduce is an error."""
    found = []
    trips = {}  # of the loops in no other, in one other …
    for line in text.splitlines():
        if match := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
            depth = line.count("/while/body/")
            trips[depth] = max(trips.get(depth, 1), int(match[1]))
    for line in text.splitlines():
        match = re.search(r"= (.*?) (all-\w+|reduce-scatter|collective-permute)(-start)?\(", line)
        if not match:
            continue
        if match[2] != "all-reduce":
            raise ValueError(f"not an all-reduce: {line[:300]}")
        shapes = re.findall(r"\b(?:bf|f|s|u)(\d+)\[([\d,]*)\]", match[1])
        size = sum(int(b) // 8 * math.prod(map(int, filter(None, s.split(",")))) for b, s in shapes)
        times = math.prod(trips[depth] for depth in range(line.count("/while/body/")))
        found.append(AllReduce(size, times, _group(line)))
    return found


def _group(line: str) -> int:
    """Over how many devices, in one of the three notations XLA has for it."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    match = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line)
    sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
    return math.prod(int(sizes[name]) for name in re.findall(r"'\w+'", match[2]))


def expected(data: int, model: int, rows: int, features: int, classes: int) -> float:
    """Bytes a device sends a step with ``shard_map``, by the formulas of docs/scaling.md."""
    over_model = AllReduce(4 * rows * (3 + features), 1, model).sent
    over_data = AllReduce(4 * features * classes // model + 8, 1, data).sent
    return over_model + over_data


# --- what it would cost -------------------------------------------------------------------------


def simulated(options, data: int, model: int) -> dict[str, float]:
    """Milliseconds of a step of the head with bfloat16 arrays, nothing overlapped."""
    rows, features, classes = options.rows, options.features, options.classes
    flops = 3 * 2 * rows * features * classes / model
    per_token, gradient = 3 * 4 + 2 * features, 2 * features * classes / model

    def reduce(size, devices, gigabytes):
        hops = options.microseconds * 1e-3 * math.ceil(math.log2(devices))
        return hops + AllReduce(size, 1, devices).sent / (gigabytes * 1e6)

    return {
        "matmuls": flops / (options.teraflops * 1e9),
        "tokens": reduce(rows * per_token, model, options.inside) if model > 1 else 0.0,
        "gradient": reduce(gradient, data, options.between) if data > 1 else 0.0,
    }


def main() -> None:
    """Prints both tables."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    p.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512, 4096])
    p.add_argument("--rows", type=int, default=8192, help="tokens a share of the data axis")
    p.add_argument("--features", type=int, default=4096)
    p.add_argument("--classes", type=int, default=128256)
    p.add_argument("--teraflops", type=float, default=400, help="that matmuls reach, a device")
    p.add_argument("--inside", type=float, default=300, help="GB/s a device sends in its host")
    p.add_argument("--between", type=float, default=25, help="GB/s a device sends between hosts")
    p.add_argument(
        "--microseconds", type=float, default=10, help="latency of a doubling of devices"
    )
    options = p.parse_args()
    jax.config.update("jax_num_cpu_devices", min(max(options.devices), MOST_COMPILED))
    jax.config.update("jax_platforms", "cpu")

    size = options.rows, options.features, options.classes
    print(f"float32, {size[0]} tokens a share of the data axis, D = {size[1]}, V = {size[2]}")
    print(
        f"{'devices':>8} {'data x model':>13}  {'way':<16} {'reduced':>8} {'MB sent':>12} /formula"
    )
    for n in options.devices:
        for data, model in ((n // 8, 8), (n, 1)):
            start, formula = f"{n:>8} {f'{data} x {model}':>13}", expected(data, model, *size)
            for way in WAYS if n <= MOST_COMPILED else ():
                found = all_reduces(program(way, data, model, *size))
                sent = sum(a.sent for a in found)
                times = max(found, key=lambda a: a.size).times if data > 1 else 0
                print(f"{start}  {way:<16} {times:>8} {sent / 1e6:>12,.0f} {sent / formula:>8.3f}")
            if n > MOST_COMPILED:
                print(f"{start}  {'formula':<16} {int(data > 1):>8} {formula / 1e6:>12,.0f}")

    print("\nsimulated, bfloat16, ms a step")
    head = f"{'devices':>8} {'data x model':>13} {'matmuls':>8} {'tokens':>7} {'gradient':>9}"
    print(f"{head} matmuls/all")
    for n in options.devices:
        for data, model in ((n // 8, 8), (n, 1)):
            ms = simulated(options, data, model)
            share = ms["matmuls"] / sum(ms.values())
            print(
                f"{n:>8} {f'{data} x {model}':>13} {ms['matmuls']:>8.1f} {ms['tokens']:>7.2f} "
                f"{ms['gradient']:>9.2f} {share:>10.0%}"
            )


if __name__ == "__main__":
    main()
