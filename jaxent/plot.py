"""Pictures of losses, gradients, weights and results. Needs ``pip install "jaxent[plot]"``.

A picture of one panel takes an optional ``ax`` and returns it; a picture of several takes an
optional ``figure`` (a subfigure will do) and returns it. Nothing touches pyplot or global settings:
``loss_against_margin().savefig("loss.png")`` works anywhere, also without a display.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxent.losses import focal, generalized_cross_entropy, nll, poly1, smoothed_nll
from jaxent.reductions import weighted_sum
from jaxent.stats import LogitStats, softmax_stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure, SubFigure

Loss = Callable[[LogitStats], jax.Array]

# --- the house style ----------------------------------------------------------------------------

# Okabe and Ito's colours, which colour-blind readers can tell apart; each comes with its own marker
# and dashes, so that print can too.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#767676"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (3, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}


def house_style(picture):
    """Draws inside the house style, leaving the reader's own settings as they were."""

    @functools.wraps(picture)
    def drawn(*args, **kwargs):
        with _matplotlib().rc_context(_STYLE):
            return picture(*args, **kwargs)

    return drawn


def _matplotlib():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('jaxent.plot needs matplotlib: pip install "jaxent[plot]"') from error
    return matplotlib


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _axes(width: float, height: float) -> "Axes":
    return _figure(width, height).add_subplot()


def _names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    names = [str(c) for c in range(num_classes)] if class_names is None else list(class_names)
    if len(names) != num_classes:
        raise ValueError(f"class_names must have {num_classes} entries; got {len(names)}.")
    return names


def _label_classes(axis: "XAxis | YAxis", names: Sequence[str], most: int = 24) -> None:
    """Class names as ticks: every few classes where there are many, upright where they are long."""
    places = range(0, len(names), -(-len(names) // most))
    axis.set_ticks(places, [names[c] for c in places])
    width = sum(max(map(len, names[c].split("\n"))) for c in places)
    if axis.axis_name == "x" and width > 2.5 * most:
        axis.set_tick_params(rotation=90)


def _vector(name: str, value: ArrayLike) -> np.ndarray:
    x = np.asarray(value)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name} must have shape [classes]; got {list(x.shape)}.")
    return x


# --- losses -------------------------------------------------------------------------------------

LOSSES: dict[str, Loss] = {
    "cross-entropy": nll,
    "smoothed, ε = 0.1": functools.partial(smoothed_nll, label_smoothing=0.1),
    "focal, γ = 2": functools.partial(focal, gamma=2.0),
    "poly-1, ε = 1": functools.partial(poly1, epsilon=1.0),
    "generalised, q = 0.7": functools.partial(generalized_cross_entropy, q=0.7),
}


@house_style
def loss_against_margin(
    losses: Mapping[str, Loss] | None = None, *, figure: "Figure | SubFigure | None" = None
) -> "Figure | SubFigure":
    """Losses of two classes against the margin, with their gradients below.

    The margin is the label's logit less the other's. On the left the usual range; on the right, on
    a logarithmic scale, examples the model is sure of. There ``logsumexp(x) - x[label]`` in float32
    (grey) is exactly 0 from a margin of about 15 on, and its gradient from 17 on.

    Args:
      losses: functions of :class:`~jaxent.LogitStats` by name, at most seven; None is
        cross-entropy, smoothed, focal, poly-1 and generalised.
      figure: where to draw; None makes a new figure.

    Returns:
      the figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: more losses than can be told apart.

    Example:
      >>> figure = loss_against_margin({"cross-entropy": nll})
      >>> [ax.get_title(loc="left") for ax in figure.axes[:2]]
      ['Loss', 'Loss where the model is sure']
    """
    losses = LOSSES if losses is None else losses
    if len(losses) > len(COLORS):
        raise ValueError(
            f"losses must be at most {len(COLORS)} to be told apart; got {len(losses)}."
        )
    figure = _figure(8, 6) if figure is None else figure
    (loss_near, loss_far), (slope_near, slope_far) = figure.subplots(2, 2, sharex="col")
    near, far = np.linspace(-5, 5, 201), np.linspace(0, 40, 321)

    for ax, y in zip((loss_far, slope_far), _curves(_textbook_nll, far), strict=True):
        x, y = far[y != 0], np.abs(y[y != 0])
        ax.semilogy(x, y, color="#BDBDBD", linewidth=5, label="logsumexp(x) − x[label]")
        ax.plot(x[-1], y[-1], "X", color=GREY, markersize=8)
        ax.annotate(
            "0 from here on", (x[-1], y[-1]), (9, 5), textcoords="offset points", color=GREY
        )
    for (name, loss), color, dashes in zip(losses.items(), COLORS, DASHES, strict=False):
        line = {"color": color, "linestyle": dashes, "label": name}
        value, slope = _curves(functools.partial(_loss_of_margin, loss), np.r_[near, far])
        loss_near.plot(near, value[: near.size], **line)
        slope_near.plot(near, slope[: near.size], **line)
        loss_far.semilogy(far, value[near.size :], **line)
        slope_far.semilogy(far, np.abs(slope[near.size :]), **line)

    sure = {"ylim": (1e-18, 30)}
    loss_near.set(title="Loss", ylabel="loss (nats)")
    loss_far.set(title="Loss where the model is sure", ylabel="loss (nats)", **sure)
    slope_near.set(title="Gradient", ylabel="∂loss / ∂margin")
    slope_far.set(title="Gradient where the model is sure", ylabel="|∂loss / ∂margin|", **sure)
    for ax in (slope_near, slope_far):
        ax.set_xlabel("margin (nats)")
    handles = [*loss_near.get_lines(), loss_far.get_lines()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _curves(loss: Callable, margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient at each margin, in float32."""
    curves = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    value, slope = curves(jnp.asarray(margins, jnp.float32))
    return np.asarray(value), np.asarray(slope)


def _loss_of_margin(loss, margin):
    return loss(softmax_stats(jnp.stack([margin, jnp.zeros_like(margin)]), jnp.array(0)))


def _textbook_nll(margin):
    return jax.nn.logsumexp(jnp.stack([margin, jnp.zeros_like(margin)])) - margin


@house_style
def gradient_heatmap(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
    loss: Loss = nll,
    class_names: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The gradient of Σ w·loss with respect to each logit: a row an example, a column a class.

    A step raises blue logits and lowers vermilion ones; a dot marks each row's label; the weights
    stand at the right. A gradient of exactly 0 is exactly white, and so is every row with
    ``where=False``; NaN, as from a label out of range, is black.

    Args:
      logits: float ``[examples, classes]``.
      labels: class indices, integer ``[examples]``.
      weights: real or bool ``[examples]``; None is 1 each.
      where: bool ``[examples]``; False rows are padding, whatever they hold.
      loss: function of :class:`~jaxent.LogitStats`.
      class_names: the columns' names.
      ax: where to draw; None makes a new figure.

    Returns:
      the axes; its ``figure`` has a ``savefig``.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError, ValueError: as :func:`~jaxent.softmax_stats`; logits not of rank 2.

    Example:
      >>> ax = gradient_heatmap(jnp.eye(3), jnp.array([0, 1, 1]))
      >>> print(ax.images[0].get_array()[2].round(3))
      [ 0.212 -0.788  0.576]
    """
    from matplotlib.colors import FuncNorm, LinearSegmentedColormap

    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape [examples, classes]; got {list(logits.shape)}.")
    num_examples, num_classes = logits.shape
    names = _names(class_names, num_classes)
    where = jnp.ones(num_examples, bool) if where is None else jnp.asarray(where)
    weights = jnp.ones(num_examples) if weights is None else jnp.asarray(weights)

    def total(x):
        return weighted_sum(loss(softmax_stats(x, labels, where=where)), weights).total

    gradient = np.asarray(jax.grad(total)(logits), np.float64)
    limit = np.nanmax(np.abs(gradient), initial=0) or 1.0
    colors = LinearSegmentedColormap.from_list("gradient", [BLUE, "white", VERMILION], 257)

    ax = _axes(8, min(12, max(4, 2 + 0.2 * num_examples))) if ax is None else ax
    image = ax.imshow(
        gradient,
        cmap=colors.with_extremes(bad=BLACK),
        norm=FuncNorm((_signed_sqrt, _signed_square), -limit, limit),
        aspect="auto",
        interpolation="nearest",
    )
    rows = np.flatnonzero(where)
    ax.plot(np.asarray(labels)[rows], rows, "o", color=BLACK, markersize=3.5)
    ax.set(
        title="Gradient of each logit (• label)",
        xlabel="class",
        ylabel="example",
        xlim=(-0.5, num_classes - 0.5),
        ylim=(num_examples - 0.5, -0.5),
    )
    _label_classes(ax.xaxis, names)
    every = range(0, num_examples, -(-num_examples // 48))
    ax.set_yticks(every, [str(i) if where[i] else "padding" for i in every])
    ax.grid(False)
    ax.spines[:].set_visible(True)
    ax.tick_params(length=0)

    beside = ax.inset_axes((1.02, 0, 0.18, 1))
    beside.barh(range(num_examples), np.where(where, weights, 0), color=GREY, height=0.7)
    beside.set(title="Weight w", ylim=ax.get_ylim(), yticks=())
    beside.grid(axis="y", visible=False)
    bar = ax.figure.colorbar(
        image,
        ax=ax,
        location="bottom",
        aspect=50,
        label="w · ∂loss / ∂logit (square-root colour scale)",
    )
    ticks = _round_ticks(limit)
    bar.set_ticks(ticks, labels=[f"{x:g}".replace("-", "−") for x in ticks])
    bar.minorticks_off()
    return ax


def _round_ticks(limit: float) -> list[float]:
    """Round numbers from −limit to limit, about evenly spaced in their square roots."""
    ticks, bound = [], limit * (1 + 1e-9)
    while bound > 0.05 * limit:
        power = np.floor(np.log10(bound))
        ticks.append(max(x for d in (1, 2, 3, 5) if (x := float(f"{d}e{power:.0f}")) <= bound))
        bound = ticks[-1] / 4
    return [*(-x for x in ticks), 0.0, *reversed(ticks)]


def _signed_sqrt(x):
    return np.sign(x) * np.sqrt(np.abs(x))


def _signed_square(x):
    return np.sign(x) * np.square(x)


# --- weights and results ------------------------------------------------------------------------


@house_style
def weights_and_counts(
    counts: ArrayLike,
    tables: Mapping[str, ArrayLike],
    *,
    normalize: bool = True,
    class_names: Sequence[str] | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure | SubFigure":
    """Class counts, and beside them what each recipe makes an example of the class weigh.

    Args:
      counts: examples of each class, ``[classes]``.
      tables: class weights ``[classes]`` by recipe, at most seven.
      normalize: scale each table to a mean of 1 over the training examples, since a weighted mean
        divides any scale out; False shows them as they are (a ``pos_weight``, say).
      class_names: the classes' names.
      figure: where to draw; None makes a new figure.

    Returns:
      the figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: a table of another length, more tables than can be told apart.

    Example:
      >>> from jaxent.weights import balanced
      >>> n = jnp.array([90, 9, 1])
      >>> figure = weights_and_counts(n, {"balanced": balanced(n)})
      >>> print(figure.axes[1].lines[0].get_ydata().round(2))
      [ 0.37  3.7  33.33]
    """
    counts = _vector("counts", counts)
    names = _names(class_names, counts.size)
    if len(tables) > len(COLORS):
        raise ValueError(
            f"tables must be at most {len(COLORS)} to be told apart; got {len(tables)}."
        )
    figure = _figure(8, 4) if figure is None else figure
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    places = np.arange(counts.size)

    bars = left.bar(places, counts, color=GREY, width=0.75)
    if counts.size <= 24:
        left.bar_label(bars, fontsize=8, padding=2, rotation=90 if counts.size > 10 else 0)
    left.set(title="Training examples", xlabel="class", ylabel="examples of the class")
    left.set(yscale="log", ylim=(0.7 * counts.min(), 2 * counts.max()))
    left.grid(axis="x", visible=False)
    for (name, table), color, dashes, marker in zip(
        tables.items(), COLORS, DASHES, MARKERS, strict=False
    ):
        table = _vector(f"tables[{name!r}]", table)
        if table.shape != counts.shape:
            raise ValueError(
                f"tables[{name!r}] must have {counts.size} entries, as counts; got {table.size}."
            )
        scale = counts.sum() / (table * counts).sum() if normalize else 1
        right.semilogy(
            places,
            scale * table,
            color=color,
            linestyle=dashes,
            marker=marker,
            markersize=5,
            label=name,
        )
    right.axhline(1, color=BLACK, linewidth=0.8)
    right.set(title="Weight of an example", xlabel="class")
    right.set_ylabel("weight (mean over the examples 1)" if normalize else "weight")
    if tables:
        right.legend()
    _label_classes(left.xaxis, names, most=10)
    _label_classes(right.xaxis, names, most=16)
    for ax in (left, right):
        ax.yaxis.set_major_formatter("{x:,g}")
        ax.yaxis.set_minor_formatter(_minor_tick)
    return figure


def _minor_tick(value, _):
    """2, 5, 20, 50, ...: enough to read a logarithmic axis of one decade or of four."""
    return f"{value:,g}" if f"{value:e}"[0] in "25" else ""


@house_style
def class_recall(
    recalls: Mapping[str, ArrayLike],
    *,
    counts: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Recall of each class under several recipes.

    Args:
      recalls: recall in [0, 1] by recipe, at most seven: ``[classes]``, or ``[seeds, classes]``, of
        which the mean is marked and the range drawn.
      counts: training examples of each class, written below its name.
      class_names: the classes' names.
      ax: where to draw; None makes a new figure.

    Returns:
      the axes; its ``figure`` has a ``savefig``.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: lengths differ, no recipes or more than can be told apart.

    Example:
      >>> ax = class_recall({"no weights": [0.99, 0.2], "balanced": [0.97, 0.6]}, counts=[95, 5])
      >>> print(ax.get_ylabel(), *(label.get_text().split() for label in ax.get_xticklabels()))
      recall (%) ['0', '95'] ['1', '5']
    """
    table = {name: np.atleast_2d(np.asarray(r, float)) for name, r in recalls.items()}
    if not 0 < len(table) <= len(COLORS):
        raise ValueError(f"recalls must have 1 to {len(COLORS)} recipes; got {len(table)}.")
    seeds, num_classes = next(iter(table.values())).shape
    names = _names(class_names, num_classes)
    if counts is not None:
        counts = _vector("counts", counts)
        if counts.size != num_classes:
            raise ValueError(f"counts must have {num_classes} entries; got {counts.size}.")
        names = [f"{name}\n{n}" for name, n in zip(names, counts, strict=True)]
    ax = _axes(8, 4.5) if ax is None else ax

    offsets = np.linspace(-0.24, 0.24, len(table)) if len(table) > 1 else [0.0]
    for (name, recall), offset, color, marker in zip(
        table.items(), offsets, COLORS, MARKERS, strict=False
    ):
        if recall.shape[-1] != num_classes:
            raise ValueError(
                f"recalls must all have {num_classes} classes; {name!r} has {recall.shape[-1]}."
            )
        places = np.arange(num_classes) + offset
        ax.vlines(
            places, 100 * recall.min(0), 100 * recall.max(0), color=color, alpha=0.5, linewidth=3
        )
        ax.plot(places, 100 * recall.mean(0), marker, color=color, markersize=7, label=name)
    ax.set(
        title="Recall of each class" + (", and its range over seeds" if seeds > 1 else ""),
        ylabel="recall (%)",
        xlabel="class" if counts is None else "class, and its training examples",
        ylim=(min(ax.get_ylim()[0], 80), 103),
    )
    _label_classes(ax.xaxis, names)
    ax.grid(axis="x", visible=False)
    ax.legend()
    return ax


@house_style
def confusion_pair(
    before: ArrayLike,
    after: ArrayLike,
    *,
    titles: tuple[str, str] = ("before", "after"),
    class_names: Sequence[str] | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure | SubFigure":
    """Two confusion matrices side by side, each row in per cent of its true class.

    Args:
      before: counts ``[classes, classes]``, a row the true class, a column the predicted.
      after: the same of another model.
      titles: what they are.
      class_names: the classes' names.
      figure: where to draw; None makes a new figure.

    Returns:
      the figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: matrices not square or of different sizes.

    Example:
      >>> figure = confusion_pair([[9, 1], [6, 4]], [[8, 2], [2, 8]])
      >>> print(figure.axes[1].images[0].get_array())
      [[80. 20.]
       [20. 80.]]
    """
    matrices = [np.asarray(m, float) for m in (before, after)]
    num_classes = len(matrices[0])
    for m in matrices:
        if m.shape != (num_classes, num_classes):
            raise ValueError(
                "before and after must both have shape [classes, classes]; got "
                f"{list(matrices[0].shape)} and {list(matrices[1].shape)}."
            )
    names = _names(class_names, num_classes)
    figure = _figure(9, 4.6) if figure is None else figure
    panels = figure.subplots(1, 2, sharey=True)
    for ax, counts, title in zip(panels, matrices, titles, strict=True):
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        image = ax.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for true, predicted in zip(*np.nonzero(share >= 0.5), strict=True):
            value = share[true, predicted]
            ax.text(
                predicted,
                true,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 55 else "black",
            )
        ax.set(title=title, xlabel="predicted class")
        _label_classes(ax.xaxis, names, most=14)
        _label_classes(ax.yaxis, names, most=14)
        ax.grid(False)
        ax.spines[:].set_visible(True)
        ax.tick_params(length=0)
    panels[0].set_ylabel("true class")
    figure.colorbar(image, ax=panels, label="share of the true class (%)", shrink=0.8, pad=0.02)
    return figure
