"""The classes of ``torch.nn``: a function with its options filled in, called with input and target.

Plain values that do not change: they hold no parameters, are pickled and print what they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
from jax.typing import ArrayLike

from jaxent.compat.torch import functions


class _Loss:
    function: ClassVar[Callable[..., jax.Array]]

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        """The function's loss, with the options of this object."""
        return type(self).function(input, target, **vars(self))


@dataclass(frozen=True, eq=False)
class CrossEntropyLoss(_Loss):
    """``nn.CrossEntropyLoss``.

    Args:
      weight: as of :func:`cross_entropy`, and so all that follow.

    Raises:
      TypeError, ValueError, IndexError: as there, of the call.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = CrossEntropyLoss(weight=jnp.array([1.0, 3.0]))
      >>> print(loss(jnp.zeros((2, 2)), jnp.array([0, 1])))  # log 2
      0.6931472
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    ignore_index: int = -100
    reduce: bool | None = None
    reduction: str = "mean"
    label_smoothing: ArrayLike = 0.0
    function = functions.cross_entropy


@dataclass(frozen=True, eq=False)
class BCEWithLogitsLoss(_Loss):
    """``nn.BCEWithLogitsLoss``.

    Args:
      weight: as of :func:`binary_cross_entropy_with_logits`, and so all that follow.

    Raises:
      TypeError, ValueError, IndexError: as there, of the call.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = BCEWithLogitsLoss(pos_weight=3.0, reduction="sum")
      >>> print(loss(jnp.zeros(2), jnp.array([1.0, 0.0])))  # (3 + 1) log 2
      2.7725887
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: str = "mean"
    pos_weight: ArrayLike | None = None
    function = functions.binary_cross_entropy_with_logits


@dataclass(frozen=True, eq=False)
class NLLLoss(_Loss):
    """``nn.NLLLoss``.

    Args:
      weight: as of :func:`nll_loss`, and so all that follow.

    Raises:
      TypeError, ValueError, IndexError: as there, of the call.

    Example:
      >>> import jax.numpy as jnp
      >>> print(NLLLoss()(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0])))  # log 4
      1.3862944
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    ignore_index: int = -100
    reduce: bool | None = None
    reduction: str = "mean"
    function = functions.nll_loss


@dataclass(frozen=True, eq=False)
class BCELoss(_Loss):
    """``nn.BCELoss``.

    Args:
      weight: as of :func:`binary_cross_entropy`, and so all that follow.

    Raises:
      TypeError, ValueError, IndexError: as there, of the call.

    Example:
      >>> import jax.numpy as jnp
      >>> print(BCELoss()(jnp.array([0.5, 0.25]), jnp.array([1.0, 1.0])))  # (log 2 + log 4) / 2
      1.0397208
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: str = "mean"
    function = functions.binary_cross_entropy


@dataclass(frozen=True, eq=False)
class KLDivLoss(_Loss):
    """``nn.KLDivLoss``.

    Args:
      size_average: as of :func:`kl_div`, and so all that follow.

    Raises:
      TypeError, ValueError, IndexError: as there, of the call.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = KLDivLoss(reduction="batchmean")
      >>> print(loss(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[1.0, 0.0]])))  # log 2
      0.6931472
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: str = "mean"
    log_target: bool = False
    function = functions.kl_div


@dataclass(frozen=True, eq=False)
class MultiLabelSoftMarginLoss(_Loss):
    """``nn.MultiLabelSoftMarginLoss``.

    Args:
      weight: as of :func:`multilabel_soft_margin_loss`, and so all that follow.

    Raises:
      TypeError, ValueError, IndexError: as there, of the call.

    Example:
      >>> import jax.numpy as jnp
      >>> print(MultiLabelSoftMarginLoss()(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])))  # log 2
      0.6931472
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: str = "mean"
    function = functions.multilabel_soft_margin_loss


@dataclass(frozen=True, eq=False)
class SoftMarginLoss(_Loss):
    """``nn.SoftMarginLoss``.

    Args:
      size_average: as of :func:`soft_margin_loss`, and so all that follow.

    Raises:
      TypeError, ValueError, IndexError: as there, of the call.

    Example:
      >>> import jax.numpy as jnp
      >>> print(SoftMarginLoss()(jnp.zeros(2), jnp.array([1.0, -1.0])))  # log 2
      0.6931472
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: str = "mean"
    function = functions.soft_margin_loss
