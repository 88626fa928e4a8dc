"""Dialects: other libraries' losses, by their names, in terms of jaxent.

Each speaks one library's names, argument order, defaults, denominators, broadcasting and dtypes, so
that a program moves by changing an import::

    from jaxent.compat import torch as F
    from jaxent.compat import optax, keras
    from jaxent.compat.tensorflow import nn, losses

A dialect has cross-entropies only. A program that needs the original's other names too keeps its
import, and takes the dialect under another name: ``from jaxent.compat import optax as losses``.

None of them imports the original. Value and gradient equal the original's where that is right;
where it is wrong the dialect is right, and its docstring says what differs. String options exist
only here. ``docs/migration.md`` shows each call with the core's lines for it.
"""

from jaxent.compat import keras as keras
from jaxent.compat import optax as optax
from jaxent.compat import tensorflow as tensorflow
from jaxent.compat import torch as torch
