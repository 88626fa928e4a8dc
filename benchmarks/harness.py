"""Interleaved timing of jitted functions: medians and ratios, because absolute times are noise."""

import platform
import time
from collections.abc import Callable

import jax
import jaxlib
import numpy as np


def environment() -> dict[str, str]:
    """What a number is worthless without."""
    return {
        "device": jax.devices()[0].device_kind,
        "cpus": str(len(jax.devices())),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
    }


def interleaved(functions: dict[str, Callable], args: tuple, rounds: int) -> dict[str, dict]:
    """Times jitted functions in turn on the same arguments.

    Args:
      functions: by name, each taking ``args``.
      args: arrays.
      rounds: timed calls of each, after one that compiles.

    Returns:
      by name: ``ms`` (median), ``low`` and ``high`` (quartiles), ``temp_mb`` (XLA's temporary
      memory).
    """
    compiled = {name: jax.jit(f).lower(*args).compile() for name, f in functions.items()}
    for run in compiled.values():
        jax.block_until_ready(run(*args))
    times = {name: [] for name in compiled}
    for _ in range(rounds):
        for name, run in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*args))
            times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "ms": float(np.median(t)),
            "low": float(np.quantile(t, 0.25)),
            "high": float(np.quantile(t, 0.75)),
            "temp_mb": compiled[name].memory_analysis().temp_size_in_bytes / 1e6,
        }
        for name, t in times.items()
    }
