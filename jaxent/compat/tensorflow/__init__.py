"""TensorFlow's cross-entropies: ``tf.nn``, ``tf.random``, ``tf.keras.losses`` and ``tf.losses``.

``from jaxent.compat import tensorflow as tf``, and the calls stay. ``tf.losses`` is TensorFlow 1's
(in TensorFlow 2 it is ``tf.keras.losses``). Arguments that name graph nodes (``name``, ``scope``,
``loss_collection``) are taken and ignored; whatever samples takes an explicit ``key``.
"""

from jaxent.compat._names import only as _only
from jaxent.compat.tensorflow import keras, losses, nn, random

__all__ = ["keras", "losses", "nn", "random"]
__getattr__ = _only(__name__, "tensorflow")
