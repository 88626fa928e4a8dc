"""``tf.keras``: its ``losses`` are those of the Keras dialect."""

from jaxent.compat import keras as losses
from jaxent.compat._names import only as _only

__all__ = ["losses"]
__getattr__ = _only(__name__, "tf.keras")
