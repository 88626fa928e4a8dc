"""The classification losses of ``torch.nn.functional`` and ``torch.nn``, by their names.

``from jaxent.compat import torch as F`` for the functions, ``torch as nn`` for the classes (and
``nn.functional``), and the calls stay. As there: classes on dimension 1 (0 of an
unbatched input); a target of the input's shape holds probabilities; ``weight`` is a table of
classes; ``reduction`` is "mean", "sum" or "none"; the result has the input's dtype. A mean divides

=====================================  ===================================================
class indices                          by the number of targets that are not ``ignore_index``
class indices with ``weight``          by the sum of these targets' weights
probabilities, binary losses, kl_div   by their number, whatever their weights
=====================================  ===================================================

and is NaN, without a gradient, where it divides by 0: a batch that is empty or all ignored. (The
means of :mod:`jaxent.reductions` are 0 there.) Sums are float32 inside whatever comes in.

Errors are ValueError, TypeError and, for a class index out of range, IndexError; where PyTorch
raises RuntimeError, here it is the first or second. Under ``jit``, where a value cannot raise, an
index out of range makes its loss and gradient NaN. What differs, because it is wrong there:

- What the logits of an ignored example hold, NaN too, reaches no gradient.
- A logit of −inf rules its class out: no loss where its probability is 0, and no share of the
  smoothing of class indices (without ``weight``, which asks for it class by class).
- Confident examples keep their tiny loss and gradient.
- ``binary_cross_entropy`` of a probability that rules its target out is infinite, and so is its
  gradient (100 and 1e12 there); that of a certain and right one has its slope (0 there).
- A negative ``label_smoothing`` or ``pos_weight`` raises.
- ``size_average`` and ``reduce`` replace every ``reduction``, as they are said to. (There a
  "batchmean" is still divided by the batch.)
- Class indices may have any integer dtype. One of shape ``[1]`` is as good as a scalar for an
  unbatched input (there without ``label_smoothing`` or a gradient only).
"""

import sys

from jaxent.compat._names import only as _only
from jaxent.compat.torch.classes import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    KLDivLoss,
    MultiLabelSoftMarginLoss,
    NLLLoss,
    SoftMarginLoss,
)
from jaxent.compat.torch.functions import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    linear_cross_entropy,
    multilabel_soft_margin_loss,
    nll_loss,
    soft_margin_loss,
)

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "KLDivLoss",
    "MultiLabelSoftMarginLoss",
    "NLLLoss",
    "SoftMarginLoss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "functional",
    "kl_div",
    "linear_cross_entropy",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "soft_margin_loss",
]
__getattr__ = _only(__name__, "torch.nn")

functional = sys.modules[__name__]  # the functions are at home in torch.nn.functional
