"""How much an example counts: labels to weights, and class counts to tables of weights.

A table says what an example of each class weighs; ``class_weights(labels, table)`` looks it up.
Scaling a whole table changes a sum's size and nothing in a :func:`~jaxent.weighted_mean`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from jaxent import _checks
from jaxent.stats import class_indices, live


def class_weights(
    labels: Integer[Array, "*batch"],
    table: Real[Array, " classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """The weight of each example's class: ``table[label]``.

    The loss of an example is multiplied by the result. (Multiplying its *logits* by class weights,
    as an often copied answer does, is another loss.)

    Args:
      labels: class indices in ``[0, classes)``, any integer dtype, ``[...]``.
      table: a weight per class, ``[classes]``.
      where: bool ``[...]``; a False example has weight 0, whatever its label.

    Returns:
      weights ``[...]`` in the table's dtype (float32 for integers); NaN where a label is out of
      range: never clamped, never wrapped.

    Raises:
      TypeError: labels not integer, table not real, ``where`` not bool.
      ValueError: table not one-dimensional, ``where`` not of the labels' shape.

    Example:
      >>> print(class_weights(jnp.array([0, 2, 7]), jnp.array([1.0, 2.0, 5.0])))
      [ 1.  5. nan]
      >>> labels = jnp.array([1, -100])
      >>> print(class_weights(labels, jnp.array([1.0, 2.0, 5.0]), where=labels != -100))
      [2. 0.]
    """
    weights = _checks.array("table", table)
    if weights.ndim != 1:
        raise ValueError(
            f"table must have shape [classes], a weight per class; got {_checks.describe(weights)}."
        )
    weights = _checks.table(weights.size, weights)
    labels = _checks.indices("labels", labels)
    where = _checks.where(where, labels.shape, "labels")
    return live(where, lookup(weights, class_indices(live(where, labels), weights.size)))


def lookup(table: Array, indices: Array) -> Array:
    """``table[index]``, NaN where the index is −1; also under an explicit mesh."""
    indices = jnp.where(indices < 0, table.shape[0], indices)  # "fill" would still wrap a −1
    table = _gathered(table)  # small, and a lookup must see all of it
    spec = jax.typeof(indices).sharding.spec
    if all(axis is None for axis in spec):
        return table.at[indices].get(mode="fill", fill_value=jnp.nan)
    spec = PartitionSpec(*spec, *(None,) * (table.ndim - 1))
    return table.at[indices].get(mode="fill", fill_value=jnp.nan, out_sharding=spec)


def _gathered(x: Array) -> Array:
    """x whole on every device, where an explicit mesh has it sharded."""
    if all(axis is None for axis in jax.typeof(x).sharding.spec):
        return x
    return jax.sharding.reshard(x, PartitionSpec())


# --- class counts to tables -----------------------------------------------------------------------


def counts(
    labels: Integer[Array, "*batch"],
    num_classes: int,
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Integer[Array, " classes"]:
    """How many examples each class has.

    Counts of parts of a data set add up. Count the training set, once; a batch's counts are noise.

    Args:
      labels: class indices in ``[0, num_classes)``, any integer dtype, any shape.
      num_classes: C, a Python integer ≥ 1.
      where: bool, the labels' shape; False examples are not counted.

    Returns:
      int32 ``[num_classes]``. Where a traced label is out of range every count is −1, and every
      recipe answers NaN.

    Raises:
      TypeError: labels not integer, ``where`` not bool.
      ValueError: a label out of range (outside a trace), ``num_classes`` < 1, shapes differ.

    Example:
      >>> print(counts(jnp.array([0, 2, 2, 0, 2]), 3))
      [2 0 3]
    """
    given, given_where = labels, where
    labels = _checks.indices("labels", labels)
    num_classes = _checks.num_classes(num_classes)
    where = _checks.where(where, labels.shape, "labels")
    indices = class_indices(live(where, labels), num_classes)
    if fault := _checks.label_fault(given, num_classes, given_where):  # jit traces a constant
        raise ValueError(fault)
    one = jnp.ones_like(indices) if where is None else where.astype(jnp.int32)
    indices, one = _gathered(indices).ravel(), _gathered(one).ravel()
    found = jnp.zeros(num_classes, jnp.int32).at[indices].add(one, mode="drop")
    return jnp.where((indices < 0).any(), -1, found)


def balanced(counts: Real[Array, " classes"]) -> Float[Array, " classes"]:
    r"""Balanced weights: :math:`N / (C\, n_c)`. Every class weighs the same in total.

    The mean weight over the *examples* is 1, so a plain mean keeps its scale.

    Args:
      counts: examples per class, integer or float ``[classes]``.

    Returns:
      table ``[classes]``, float32 (float64 for float64 counts).

    Raises:
      ValueError: a class with no examples (its weight would be infinite; under a trace it is), a
        negative count (NaN under a trace), or not one-dimensional.

    References:
      King and Zeng, *Logistic Regression in Rare Events Data*, 2001;
      ``sklearn.utils.class_weight.compute_class_weight("balanced", ...)``.

    Example:
      >>> print(balanced(jnp.array([1000, 2300, 20310, 6700])))
      [7.5775 3.2946 0.3731 1.131 ]
    """
    n = _class_counts(counts)
    return n.sum() / n.size / n


def inverse_frequency(
    counts: Real[Array, " classes"], *, power: ArrayLike = 1.0, normalize: str | None = None
) -> Float[Array, " classes"]:
    r"""Inverse frequency: :math:`(N / n_c)^{power}`.

    Args:
      counts: examples per class, integer or float ``[classes]``.
      power: a scalar ≥ 0: 1 for the inverse, 0.5 for the milder inverse square root, 2 for the
        inverse square.
      normalize: None; ``"max"`` makes the largest weight 1, ``"mean"`` their mean over the classes,
        ``"sum"`` their sum.

    Returns:
      table ``[classes]``, float32 or wider.

    Raises:
      ValueError: as :func:`balanced`; ``power`` negative or not finite (NaN where it is traced);
        ``normalize`` unknown.

    Example:
      >>> n = jnp.array([1000, 2300, 20310, 6700])
      >>> print(inverse_frequency(n, normalize="mean"))
      [2.4491 1.0648 0.1206 0.3655]
    """
    n = _class_counts(counts)
    power = _checks.option("power", power, 0, float(jnp.finfo(n.dtype).max), n.dtype)
    return _normalize((n.sum() / n) ** power, normalize)


def log_ratio(
    counts: Real[Array, " classes"], *, clip: ArrayLike | None = 1.0, normalize: str | None = None
) -> Float[Array, " classes"]:
    r"""Log-ratio weights: :math:`\max(\log(N / n_c), \mathrm{clip})`.

    The recipe that the founding question prints in two orders: as its text tells it, with
    ``normalize="max"``: 1, .756, .293, .442; as its numbers are printed, with ``clip=None`` too:
    1, .756, .117, .442.

    Args:
      counts: examples per class, integer or float ``[classes]``.
      clip: the least weight, a finite scalar, or None for none.
      normalize: as :func:`inverse_frequency`; comes after the clipping.

    Returns:
      table ``[classes]``, float32 or wider.

    Raises:
      ValueError: as :func:`balanced`; ``clip`` not finite (NaN where it is traced); ``normalize``
        unknown.

    Example:
      >>> n = jnp.array([1000, 2300, 20310, 6700])
      >>> print(log_ratio(n))
      [3.4115 2.5786 1.     1.5094]
      >>> print(log_ratio(n, normalize="max").round(3))
      [1.    0.756 0.293 0.442]
    """
    n = _class_counts(counts)
    ratio = jnp.log(n.sum() / n)
    if clip is not None:
        largest = float(jnp.finfo(n.dtype).max)
        ratio = jnp.maximum(ratio, _checks.option("clip", clip, -largest, largest, n.dtype))
    return _normalize(ratio, normalize)


def effective_number(
    counts: Real[Array, " classes"], *, beta: ArrayLike, normalize: str | None = "mean"
) -> Float[Array, " classes"]:
    r"""Weights of the effective number of examples: :math:`(1 - \beta) / (1 - \beta^{n_c})`.

    β = 0 weighs all classes alike, β → 1 is inverse frequency.

    Args:
      counts: examples per class, integer or float ``[classes]``.
      beta: β in [0, 1), a scalar; the paper uses 0.9 to 0.9999. A Python float keeps 1 − β exact.
      normalize: as :func:`inverse_frequency`; the paper's code makes the mean over the classes 1.

    Returns:
      table ``[classes]``, float32 or wider.

    Raises:
      ValueError: as :func:`balanced`; ``beta`` outside [0, 1) (NaN where it is traced);
        ``normalize`` unknown.

    References:
      Cui et al., `Class-Balanced Loss <https://arxiv.org/abs/1901.05555>`_, 2019.

    Example:
      >>> n = jnp.array([1000, 2300, 20310, 6700])
      >>> print(effective_number(n, beta=0.9999))
      [2.263  1.0481 0.2479 0.441 ]
    """
    n = _class_counts(counts)
    smallest = float(jnp.finfo(n.dtype).tiny)
    known = _checks.known(beta)
    rest = 1 - (beta if known is None else known)  # before rounding to float32
    error = f"beta must be in [0, 1); got {beta}."
    rest = _checks.option("beta", rest, smallest, 1, n.dtype, error)
    return _normalize(-rest / jnp.expm1(n * jnp.log1p(-rest)), normalize)


def median_frequency(counts: Real[Array, " classes"]) -> Float[Array, " classes"]:
    r"""Median-frequency balancing: :math:`\mathrm{median}(n) / n_c`. The median class weighs 1.

    Args:
      counts: examples per class, integer or float ``[classes]``.

    Returns:
      table ``[classes]``, float32 or wider.

    Raises:
      ValueError: as :func:`balanced`.

    References:
      Eigen and Fergus, `Predicting Depth, Surface Normals and Semantic Labels
      <https://arxiv.org/abs/1411.4734>`_, 2015.

    Example:
      >>> print(median_frequency(jnp.array([1000, 2300, 20310, 6700])))
      [4.5    1.9565 0.2216 0.6716]
    """
    n = _class_counts(counts)
    return jnp.median(n) / n


def positive(num_negative: ArrayLike, num_positive: ArrayLike) -> Float[Array, "*classes"]:
    """The ``pos_weight`` that balances a binary class: negatives / positives.

    For :func:`~jaxent.sigmoid_cross_entropy`, never for the softmax of several classes.

    Args:
      num_negative: examples without the class, a number or ``[classes]``.
      num_positive: examples with it, the same shape.

    Returns:
      ``[]`` or ``[classes]``, float32 or wider.

    Raises:
      ValueError: no positive examples or a negative count (outside a trace), shapes differ.

    References:
      The rule of ``torch.nn.BCEWithLogitsLoss``.

    Example:
      >>> print(f"{positive(500_000, 31_000):.2f}")
      16.13
    """
    negatives = _checks.numbers("num_negative", num_negative)
    positives = _checks.numbers("num_positive", num_positive)
    if negatives.shape != positives.shape:
        raise ValueError(
            "num_negative and num_positive must have one shape; got "
            f"{_checks.describe(negatives)} and {_checks.describe(positives)}."
        )
    negatives = _not_negative("num_negative", num_negative, negatives)
    positives = _not_negative("num_positive", num_positive, positives)
    return negatives / _not_empty("num_positive", num_positive, positives)


def log_prior(counts: Real[Array, " classes"]) -> Float[Array, " classes"]:
    r"""Log class frequencies, :math:`\log(n_c / N)`, the offsets of logit adjustment.

    Train with ``cross_entropy(logits + log_prior(counts), labels)`` and predict with the bare
    logits: the balanced classifier without any weight. (Logits are adjusted before their
    statistics.)

    Args:
      counts: examples per class, integer or float ``[classes]``.

    Returns:
      offsets ``[classes]``, ≤ 0, float32 or wider.

    Raises:
      ValueError: as :func:`balanced`.

    References:
      Menon et al., `Long-tail learning via logit adjustment <https://arxiv.org/abs/2007.07314>`_,
      2021; Ren et al., `Balanced Meta-Softmax <https://arxiv.org/abs/2007.10740>`_, 2020.

    Example:
      >>> print(log_prior(jnp.array([1, 3])))
      [-1.3863 -0.2877]
    """
    n = _class_counts(counts)
    return jnp.log(n / n.sum())


def _class_counts(value: ArrayLike) -> Array:
    n = _checks.numbers("counts", value)
    if n.ndim != 1 or n.size == 0:
        known = _checks.known(value)
        came = _checks.describe(n if known is None else known)
        raise ValueError(f"counts must have shape [classes]; got {came}.{_if_labels(value)}")
    return _not_empty("counts", value, _not_negative("counts", value, n))


def _not_negative(name: str, value: ArrayLike, n: Array) -> Array:
    known = _checks.known(value)
    if known is not None and not ((known >= 0) & (known < jnp.inf)).all():
        cure = _if_labels(value) if name == "counts" else ""
        raise ValueError(f"{name} must be finite and not negative; got {known}.{cure}")
    return jnp.where((n >= 0) & (n < jnp.inf), n, jnp.nan)


def _not_empty(name: str, value: ArrayLike, n: Array) -> Array:
    known = _checks.known(value)
    if known is not None and (known == 0).any():
        cure = _if_labels(value) if name == "counts" else ""
        raise ValueError(
            f"{name} must be positive: class {known.argmin()} has no examples and its weight would "
            f"be infinite. Leave the class out, or add a prior count, say {name} + 1.{cure}"
        )
    return n


def _if_labels(value: ArrayLike) -> str:
    """What to say of integers where counts are asked for."""
    known = _checks.known(value)
    dtype = jnp.asarray(value).dtype if known is None else known.dtype
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    return " If these are labels, pass counts(labels, num_classes)." if is_integer else ""


def _normalize(table: Array, how: str | None) -> Array:
    scales = {None: jnp.ones_like, "max": jnp.max, "mean": jnp.mean, "sum": jnp.sum}
    if how not in scales:
        raise ValueError(f'normalize must be None, "max", "mean" or "sum"; got {how!r}.')
    return table / scales[how](table)
