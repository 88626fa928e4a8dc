"""The cross-entropies of ``keras.losses``: functions, classes, and ``class_weight`` dicts.

As there: labels come first; ``y_pred`` holds probabilities unless ``from_logits=True``, and rows of
them are divided by their sum (but for the generalised loss and the divergence). Functions return
one loss an example, in the dtype of ``y_pred``, of class indices in float32 or wider; classes
reduce, and return ``dtype`` (None is float32).

====================================================  ========================================
``reduction="sum_over_batch_size"``, ``"mean"``       Σ w · loss / number of losses (of those
                                                      that are not of ``ignore_class``)
``"mean_with_sample_weight"``                         Σ w · loss / Σ w
``"sum"``                                             Σ w · loss
``"none"``, None                                      w · loss
====================================================  ========================================

A mean over nothing is 0. What differs, because it is wrong there:

- Probabilities are not clipped to [1e-7, 1 − 1e-7], which ends every loss at 16.1 and its gradient
  with it. Who wants the clip asks for it: ``epsilon=1e-7``. (In a divergence it
  also gives classes of target 0 a share.)
- ``axis`` is the class axis for label smoothing and for class indices too.
- A class index out of range, or no whole number, is NaN in value and gradient (a loss of 0 there).
- ``ignore_class`` compares integers: 2049 is not 2048, whatever the dtype of ``y_pred``. An example
  of weight 0 may hold NaN without harm to the value.
- The focal losses of logits go through no clipped probability.
- Weights of fewer axes than the losses are those of the leading axes (of the trailing ones where
  only these fit), and ``mean_with_sample_weight`` divides by the weights of all losses.
- To a class, a ``y_pred`` ``[N]`` is one example of N outputs, and has one weight. (There its one
  loss is multiplied by each of N weights. N examples of one output are ``[N, 1]``.)
- ``categorical_focal_crossentropy`` takes ``y_true`` of exactly the shape of ``y_pred``, as the
  other losses of dense labels do. (There it alone broadcasts.)
- Class weights of integer labels ``[N, T]`` are weights ``[N, T]``. (There each row is one label,
  the place of its largest entry, as of one-hot rows: here those are floats, or have an ``axis``.)
- ``CategoricalGeneralizedCrossEntropy`` takes labels ``[batch, 1]`` (a loss of all pairs there).
- ``label_smoothing`` outside [0, 1] raises.

In ``model.compile`` the functions can be given as they are. There the classes would be called
without the sample weights: hand them over with :func:`compiled_loss`. Its models can be saved, and
loaded after :func:`register`; of functions, Keras saves no ``partial``, and loads its own by their
name.
"""

from jaxent.compat._names import only as _only
from jaxent.compat.keras.classes import (
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    CategoricalGeneralizedCrossEntropy,
    KLDivergence,
    SparseCategoricalCrossentropy,
    compiled_loss,
    register,
)
from jaxent.compat.keras.functions import (
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    categorical_generalized_cross_entropy,
    class_weight_to_sample_weights,
    kl_divergence,
    sparse_categorical_crossentropy,
)

__all__ = [
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "KLDivergence",
    "SparseCategoricalCrossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_generalized_cross_entropy",
    "class_weight_to_sample_weights",
    "compiled_loss",
    "kl_divergence",
    "register",
    "sparse_categorical_crossentropy",
]
__getattr__ = _only(__name__, "keras.losses")
