"""What benchmarks share: programs timed in turn, goals and the table.

All programs of a work are called in turn, in one process, because absolute times are noise: read
the ratios.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Hashable
from typing import TypedDict

import jax
import jaxlib
import numpy as np
import optax

KINDS = "value", "value_and_grad", "jvp", "hvp"


def environment() -> dict[str, str]:
    """What a number is worthless without."""
    affinity = getattr(os, "sched_getaffinity", None)  # the cores that this process may use
    return {
        "device": jax.devices()[0].device_kind,
        "cpus": str(len(affinity(0)) if affinity else os.cpu_count()),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "optax": optax.__version__,
        "python": platform.python_version(),
    }


# --- programs -----------------------------------------------------------------------------------


class Timing(TypedDict):
    """Milliseconds of a call: median and quartiles. Memory by XLA's account, in MB."""

    ms: float
    low: float
    high: float
    compile_ms: float | None  # trace and compile; None for a peer
    first_ms: float
    temp_mb: float | None
    total_mb: float | None  # arguments, results and temporary memory


class Program:
    """A function compiled for arguments that need not exist yet."""

    def __init__(self, f: Callable, args: tuple):
        start = time.perf_counter()
        self.run = jax.jit(f).lower(*args).compile()
        self.compile_ms = _ms_since(start)
        memory = self.run.memory_analysis()
        self.temp_mb = memory.temp_size_in_bytes / 1e6
        inputs_outputs = memory.argument_size_in_bytes + memory.output_size_in_bytes
        self.total_mb = self.temp_mb + inputs_outputs / 1e6

    def __call__(self, *args):
        return jax.block_until_ready(self.run(*args))


def _ms_since(start):
    return 1e3 * (time.perf_counter() - start)


def in_turn(calls: dict[Hashable, Callable[[], object]], rounds: int, seconds: float = 0.0):
    """Milliseconds of each call, the first apart: ``{name: (first, [others])}``.

    Goes round ``rounds`` times, and on until ``seconds`` are over; there and back, so that each
    call comes as often after its neighbour on one side as on the other.
    """

    def timed(call):
        start = time.perf_counter()
        call()
        return _ms_since(start)

    first = {name: timed(call) for name, call in calls.items()}
    times = {name: [] for name in calls}
    start = time.perf_counter()
    while rounds > 0 or time.perf_counter() - start < seconds:
        rounds -= 1
        for name in times if rounds % 2 else reversed(times):
            times[name].append(timed(calls[name]))
    return {name: (first[name], times[name]) for name in calls}


def timing(first: float, times: list[float], program: Program | None) -> Timing:
    """The summary of a program's calls; of a peer's, if there is no program."""
    low, median, high = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    compile_ms, temp_mb, total_mb = (
        getattr(program, name, None) for name in ("compile_ms", "temp_mb", "total_mb")
    )
    return Timing(
        ms=median,
        low=low,
        high=high,
        compile_ms=compile_ms,
        first_ms=first,
        temp_mb=temp_mb,
        total_mb=total_mb,
    )


def interleaved(
    functions: dict[Hashable, Callable],
    args: tuple,
    rounds: int,
    seconds: float = 0.0,
    peers: dict[Hashable, Callable[[], object]] | None = None,
) -> dict[Hashable, Timing]:
    """Times functions of the same arguments in turn.

    Args:
      functions: by name, each taking ``args``.
      args: arrays.
      rounds: timed calls of each, at least, after the first.
      seconds: as long as the rounds go on.
      peers: calls that are neither compiled nor given arguments.

    Returns:
      by name, functions then peers.
    """
    programs = {name: Program(f, args) for name, f in functions.items()}
    calls = {name: lambda run=run: run(*args) for name, run in programs.items()} | (peers or {})
    times = in_turn(calls, rounds, seconds)
    return {name: timing(*times[name], programs.get(name)) for name in calls}


# --- works --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Goal:
    """The subject's time may be at most so many times that of ``against``."""

    kind: str
    against: str  # an implementation, or a limit; or MEMORY
    at_most: float


MEMORY = "logits' memory"  # the goal is one for temporary memory, as a share of the first argument


@dataclasses.dataclass(frozen=True)
class Work:
    """The same loss by several implementations: a subject, a baseline and maybe others.

    Attributes:
      arguments: of each loss; the first, the logits, is differentiated.
      losses: by implementation, a scalar each; the subject first, the baseline second.
      goals: of the subject.
      peers: by (kind, implementation), ready to be called.
    """

    name: str
    arguments: tuple
    losses: dict[str, Callable]
    goals: tuple[Goal, ...] = ()
    peers: dict[tuple[str, str], Callable[[], object]] = dataclasses.field(default_factory=dict)


def of_kind(kind: str, loss: Callable) -> Callable:
    """The function of (tangent, logits, …) that a kind of program computes."""

    def value(tangent, x, *rest):
        return loss(x, *rest)

    def value_and_grad(tangent, x, *rest):
        return jax.value_and_grad(loss)(x, *rest)

    def jvp(tangent, x, *rest):
        return jax.jvp(lambda x: loss(x, *rest), (x,), (tangent,))

    def hvp(tangent, x, *rest):
        return jax.jvp(lambda x: jax.grad(loss)(x, *rest), (x,), (tangent,))[1]

    return {f.__name__: f for f in (value, value_and_grad, jvp, hvp)}[kind]


LIMITS = {  # what no program can do without that reads, reads and writes, or exponentiates it all
    "read": lambda tangent, x, *rest: x.sum(),
    "read and write": lambda tangent, x, *rest: x * 2,
    "exp": lambda tangent, x, *rest: jax.numpy.exp(x),
}


def measure(work: Work, rounds: int, seconds: float) -> dict[str, dict[str, Timing]]:
    """``{kind: {implementation: Timing}}``, with the limits as one more kind.

    A kind at a time; the limits in turn with value_and_grad, which they are there for.
    """
    tangent = work.arguments[0][::-1]
    results = {}
    for kind in KINDS:
        functions = {(kind, name): of_kind(kind, f) for name, f in work.losses.items()}
        if kind == "value_and_grad":
            functions |= {("limit", name): f for name, f in LIMITS.items()}
        peers = {name: call for name, call in work.peers.items() if name[0] == kind}
        timings = interleaved(functions, (tangent, *work.arguments), rounds, seconds, peers)
        for (kind_or_limit, name), t in timings.items():
            results.setdefault(kind_or_limit, {})[name] = t
    return results


def reached(work: Work, results: dict[str, dict[str, Timing]]) -> list[tuple[Goal, float]]:
    """The work's goals with the ratio measured, those whose peer is there."""
    subject, *_ = work.losses
    found = []
    for goal in work.goals:
        of = results[goal.kind][subject]
        against = (results["limit"] | results[goal.kind]).get(goal.against)
        if goal.against == MEMORY:
            found.append((goal, of["temp_mb"] / (work.arguments[0].nbytes / 1e6)))
        elif against:
            found.append((goal, of["ms"] / against["ms"]))
    return found


# --- the table ----------------------------------------------------------------------------------

HEADER = (
    f"{'kind':<15}{'implementation':<16}{'ms':>9}{'quartiles':>18}{'/ base':>8}{'compile':>9}"
    f"{'first':>9}{'temp MB':>10}  goals (times are in ms)"
)


def table(work: Work, results: dict[str, dict[str, Timing]]) -> str:
    """A line for each program: ms, ratio to the baseline, and the goals on the subject's line."""
    subject, baseline, *_ = work.losses
    goals = reached(work, results)
    lines = [work.name]
    for kind, row in results.items():
        for name, t in row.items():
            ratio = f"{t['ms'] / row[baseline]['ms']:.2f}" if baseline in row else ""
            verdicts = [verdict(g, r) for g, r in goals if name == subject and g.kind == kind]
            lines.append(
                f"{kind:<15}{name:<16}{t['ms']:>9.2f}{t['low']:>9.2f}{t['high']:>9.2f}{ratio:>8}"
                f"{_number(t['compile_ms'], 9, 0)}{t['first_ms']:>9.1f}"
                f"{_number(t['temp_mb'], 10, 2)}"
                f"  {'; '.join(verdicts)}".rstrip()
            )
    return "\n".join(lines)


def verdict(goal: Goal, ratio: float) -> str:
    """What came, what was wanted, and whether that will do."""
    came = format(ratio, ".2g" if ratio < 0.1 else ".3f")
    met = "met" if ratio <= goal.at_most else "NOT MET"
    return f"{came} × {goal.against}, goal {goal.at_most:g}: {met}"


def _number(x, width, digits):
    return f"{'' if x is None else format(x, f'.{digits}f'):>{width}}"
