"""Every test and doctest runs under JAX's strictest settings, on four CPU devices."""

import gc

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(autouse=True)
def _four_digits_in_doctests(request):
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    with np.printoptions(precision=4):
        yield


@pytest.fixture
def checking_leaks():
    """`jax.checking_leaks`; what is alive already is frozen, because it searches all of the heap."""
    gc.collect()
    gc.freeze()
    with jax.checking_leaks():
        yield
    gc.unfreeze()
