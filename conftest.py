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
    """Frozen is what is alive already, because `jax.checking_leaks` searches all of the heap."""
    gc.freeze()
    with jax.checking_leaks():
        yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """A worker would come to hold four gigabytes of them."""
    yield
    jax.clear_caches()
