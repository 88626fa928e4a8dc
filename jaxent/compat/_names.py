"""What a dialect says of its original's other names.

A dialect imports jaxent's modules privately: ``sigmoid`` is a function there, and a module here.
"""

from collections.abc import Callable
from typing import NoReturn

import jax


def only(here: str, original: str) -> Callable[[str], NoReturn]:
    """The ``__getattr__`` of the module ``here``, which has the cross-entropies of ``original``."""

    def missing(name: str) -> NoReturn:
        place = "is in jax.nn, or " if hasattr(jax.nn, name) else ""
        raise AttributeError(
            f"{here} has the cross-entropies of {original} only; {name} {place}stays in {original}."
        )

    return missing
