"""The cross-entropies of TensorFlow: ``tf.nn``, ``tf.random``, and ``tf.losses`` of TensorFlow 1.

``from jaxent.compat import tensorflow as tf``, and ``tf.nn.…``, ``tf.random.…`` and ``tf.losses.…``
stay. Arguments that name graph nodes (``name``, ``scope``, ``loss_collection``) are taken and
ignored; whatever samples takes an explicit ``key``.
"""

from jaxent.compat.tensorflow import losses as losses
from jaxent.compat.tensorflow import nn as nn
from jaxent.compat.tensorflow import random as random
