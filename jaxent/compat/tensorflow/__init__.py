"""The cross-entropies of TensorFlow: ``tf.nn``, ``tf.random``, and ``tf.losses`` of TensorFlow 1.

``from jaxent.compat import tensorflow as tf``, and ``tf.nn.…``, ``tf.random.…`` and ``tf.losses.…``
stay. Arguments that name graph nodes (``name``, ``scope``, ``loss_collection``) are taken and
ignored; whatever samples takes an explicit ``key``.
"""

from jaxent.compat._names import only as _only
from jaxent.compat.tensorflow import losses, nn, random

__all__ = ["losses", "nn", "random"]
__getattr__ = _only(__name__, "tensorflow")
