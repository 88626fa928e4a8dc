# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gradients of weighted losses, logit by logit
#
# A loss teaches a classifier through one thing only: the gradient it sends back to each logit.
# So the old questions about weighted cross-entropy (multiply the losses or the logits? divide by
# what? what does a masked example send?) can be settled by looking.
#
# In every picture a row is an example and a column a class. **Blue** logits will be raised by a
# step of gradient descent, **orange** ones lowered, white is exactly 0, and a dot marks the label.

# %%
# %matplotlib inline
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.colors import LinearSegmentedColormap

import jaxent

BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"
DIVERGING = LinearSegmentedColormap.from_list("blue-white-orange", [BLUE, "white", VERMILION], 257)
DIVERGING.set_bad("#D9D9D9")
plt.rcParams.update(
    {"figure.dpi": 82, "axes.titlelocation": "left", "axes.titlesize": 10.5, "font.size": 9.5}
)


def heatmaps(panels, labels, *, shared=True, unit="gradient", names=None, height=3.9):
    """A picture of each gradient [examples, classes], on one colour scale or on one each."""
    names = CLASSES if names is None else names
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.1 + 2.35 * len(panels), height),
        sharey=True,
        layout="constrained",
    )
    limits = [float(np.nanmax(np.abs(g))) for g in panels.values()]
    for ax, (title, g), limit in zip(axes, panels.items(), limits, strict=True):
        limit = max(limits) if shared else limit
        image = ax.imshow(g, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
        ax.plot(labels, range(len(labels)), "o", color="black", markersize=3.5)
        ax.set_title(title)
        ax.set_xticks(range(len(names)), names)
        ax.set_xlabel("class")
        ax.tick_params(length=0)
        if not shared:
            bar = figure.colorbar(image, ax=ax, location="bottom", pad=0.02, aspect=18)
            bar.set_ticks([-limit, 0, limit], labels=[f"−{limit:.3g}", "0", f"{limit:.3g}"])
    axes[0].set_ylabel("example")
    axes[0].set_yticks(range(len(labels)))
    if shared:
        figure.colorbar(image, ax=axes, label=unit, pad=0.015, aspect=30)
    plt.show()


def gradient(f, logits):
    return np.asarray(jax.grad(f)(logits))


# %% [markdown]
# Twelve examples of five classes, from a model that is half trained, and the class counts of its
# training set, from which come the weights.

# %%
CLASSES = ["cat", "dog", "car", "bus", "bike"]
counts = jnp.array([200, 160, 100, 60, 40])
table = jaxent.weights.balanced(counts)

labels = jnp.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4])
noise = np.random.default_rng(3).normal(size=(12, 5))
logits = jnp.asarray(noise + 1.2 * np.eye(5)[labels] + [0.8, 0.4, 0, -0.2, -0.6], jnp.float32)
weights = jaxent.class_weights(labels, table)
for name, n, weight in zip(CLASSES, counts, table, strict=True):
    print(f"{name:>4}: {n:3d} examples, weight {weight:.2f}")


# %% [markdown]
# ## A class weight scales a row
#
# The gradient of cross-entropy is $p - \mathbb 1_y$: the label's logit goes up, the others go down,
# and each row sums to 0. A weight multiplies a loss, so it multiplies that example's row.
# `jaxent.plot.gradient_heatmap` draws both (its colours follow the square root, so that small
# gradients show; those of the other pictures are linear, so that they compare).

# %%
ax = jaxent.plot.gradient_heatmap(logits, labels, weights=weights, class_names=CLASSES)
ax.figure.set_dpi(82)
display(ax.figure)

# %% [markdown]
# An often copied answer multiplies the *logits* by the class weights instead. The picture on the
# right is what that does: it scales the **columns**.


# %%
def total(logits, weights=None):
    return jaxent.weighted_sum(jaxent.cross_entropy(logits, labels), weights).total


plain = gradient(total, logits)
weighted = gradient(lambda x: total(x, weights), logits)
multiplied = gradient(lambda x: total(x * table), logits)
heatmaps(
    {
        "no weights": plain,
        "losses × class weight": weighted,
        "logits × class weight (wrong)": multiplied,
    },
    labels,
    unit="∂ sum of losses / ∂ logit",
)
print("losses × weight, row over row without:", (weighted / plain).mean(1).round(2))
print("losses × weight, sums of the rows:    ", np.abs(weighted.sum(1)).round(1))
print("logits × weight, sums of the rows:    ", multiplied.sum(1).round(1))

# %% [markdown]
# The wrong gradient has the columns of rare classes pushed by everybody, bike or not, and its rows
# no longer sum to 0. Nor does a larger weight mean a larger loss: for a bike that the model gets
# right, multiplying the logits makes the loss *vanish* as the weight grows, which is the opposite
# of what a weight is for.

# %%
w = jnp.linspace(1, 10, 91)


def right(margin, w):
    return w * jaxent.cross_entropy(jnp.stack([margin, jnp.zeros(())]), jnp.array(0))


def wrong(margin, w):
    return jaxent.cross_entropy(jnp.stack([w * margin, jnp.zeros(())]), jnp.array(0))


figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.1), layout="constrained", sharex=True)
for ax, margin, title in zip(
    axes,
    (1.0, -1.0),
    ("a bike that the model gets right", "a bike that it gets wrong"),
    strict=True,
):
    for f, color, style, name in (
        (right, BLUE, "-", "loss × weight"),
        (wrong, VERMILION, "--", "logits × weight (wrong)"),
    ):
        ax.plot(
            w,
            jax.vmap(functools.partial(f, jnp.float32(margin)))(w),
            style,
            color=color,
            label=name,
        )
    ax.set(title=title, xlabel="class weight", ylim=(0, None))
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("loss (nats)")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Four means, one picture
#
# What the sum is divided by changes no direction, only the size of the step. The four pictures
# below are the same; the numbers under them are not. (Two examples have weight 0 here, so that all
# four differ.)

# %%
some = weights.at[jnp.array([2, 6])].set(0)
reducers = {
    "weighted_sum(...).total": lambda losses, w: jaxent.weighted_sum(losses, w).total,
    f"nonzero_mean: ÷ {int((some != 0).sum())}": jaxent.nonzero_mean,
    f"plain_mean: ÷ {some.size}": jaxent.plain_mean,
    f"weighted_mean: ÷ {float(some.sum()):.1f}": jaxent.weighted_mean,
}
heatmaps(
    {
        name: gradient(lambda x, f=f: f(jaxent.cross_entropy(x, labels), some), logits)
        for name, f in reducers.items()
    },
    labels,
    shared=False,
    height=4.3,
)

# %% [markdown]
# `nonzero_mean` is TensorFlow 1's default, `plain_mean` Keras's, `weighted_mean` PyTorch's for
# integer labels. Moving from one to another without moving the learning rate trains another model.
#
# ## A label that is not there
#
# Example 3 has no label, and its logits are NaN, as padding likes to be. With `where=` it is inert:
# its row is exactly 0. Multiplying its loss by 0 is not enough, because 0 × NaN is NaN (grey).

# %%
where = jnp.arange(12) != 3
padded = logits.at[3].set(jnp.nan)
heatmaps(
    {
        "where=": gradient(
            lambda x: jaxent.weighted_mean(jaxent.cross_entropy(x, labels, where=where), where),
            padded,
        ),
        "loss × 0 (grey: NaN)": gradient(
            lambda x: (jaxent.cross_entropy(x, labels) * where).sum() / where.sum(), padded
        ),
    },
    jnp.where(where, labels, jnp.nan),
    unit="∂ mean / ∂ logit",
)

# %% [markdown]
# ## Smoothing, focal, z-loss
#
# Any function of the statistics is a loss, and has a look of its own. Smoothing pushes back where
# the model is surer than the smoothed label; focal fades the easy rows; the z-loss pulls a whole
# row, label included, towards a normaliser of 1.

# %%
losses = {
    "cross-entropy": jaxent.nll,
    "smoothed, ε = 0.3": functools.partial(jaxent.smoothed_nll, label_smoothing=0.3),
    "focal, γ = 2": functools.partial(jaxent.focal, gamma=2.0),
    "cross-entropy + 0.1 z-loss": lambda s: jaxent.nll(s) + 0.1 * jaxent.z_loss(s),
}
heatmaps(
    {
        name: gradient(lambda x, f=f: f(jaxent.softmax_stats(x, labels)).sum(), logits)
        for name, f in losses.items()
    },
    labels,
    unit="∂ sum of losses / ∂ logit",
)

# %% [markdown]
# The same losses for two classes, against the margin: the label's logit less the other's. On the
# right, on a logarithmic scale, examples that the model is sure of. Written as
# `logsumexp(x) - x[label]`, as most libraries do, the float32 loss and its gradient are exactly 0
# from a margin of about 15 on (grey, ending at the crosses). Here both go on, to full precision.

# %%
figure = jaxent.plot.loss_against_margin(
    {
        "cross-entropy": jaxent.nll,
        "smoothed, ε = 0.1": functools.partial(jaxent.smoothed_nll, label_smoothing=0.1),
        "focal, γ = 2": functools.partial(jaxent.focal, gamma=2.0),
        "cross-entropy + 0.01 z-loss": lambda s: jaxent.nll(s) + 0.01 * jaxent.z_loss(s),
    }
)
figure.set_dpi(82)
display(figure)

# %% [markdown]
# ## `pos_weight` is not a class weight
#
# The `pos_weight` of a sigmoid loss multiplies the positive term alone: the dot changes, the rest
# of its row does not. A class weight multiplies the row.

# %%
one_hot = jax.nn.one_hot(labels, 5)
heatmaps(
    {
        "softmax, class weights": weighted,
        "sigmoid, no weights": gradient(
            lambda x: jaxent.sigmoid_cross_entropy(x, one_hot).sum(), logits
        ),
        "sigmoid, pos_weight": gradient(
            lambda x: jaxent.sigmoid_cross_entropy(x, one_hot, pos_weight=table).sum(), logits
        ),
    },
    labels,
    unit="∂ sum of losses / ∂ logit",
)

# %% [markdown]
# ## Not every mistake costs the same
#
# Taking a cat for a dog is a nuisance, taking it for a bus is worse. A cost matrix (row = true,
# column = predicted) says so. `expected_cost` is the cost that the softmax expects: its gradient
# lowers the dear mistakes and may even raise a cheap one (the blue beside some dots). Added to
# cross-entropy it bends the gradient without giving up the pull far from the goal.

# %%
animal = np.array([1, 1, 0, 0, 0], bool)
cost = jnp.asarray(np.where(animal[:, None] == animal, 1.0, 5.0) * (1 - np.eye(5)), jnp.float32)


def costs(x):
    return jaxent.expected_cost(x, labels, cost).sum()


figure, ax = plt.subplots(figsize=(3.4, 2.9), layout="constrained")
ax.imshow(cost, cmap="Greys", vmin=0, vmax=16)
for true, predicted in np.ndindex(5, 5):
    ax.text(predicted, true, f"{cost[true, predicted]:.0f}", ha="center", va="center")
ax.set_xticks(range(5), CLASSES)
ax.set_yticks(range(5), CLASSES)
ax.tick_params(length=0)
ax.set(title="cost matrix", xlabel="predicted", ylabel="true")

heatmaps(
    {
        "cross-entropy": plain,
        "expected cost": gradient(costs, logits),
        "cross-entropy + expected cost": gradient(lambda x: total(x) + costs(x), logits),
    },
    labels,
    unit="∂ sum / ∂ logit",
)

# %% [markdown]
# ## Micro-batches: a mean of means is not the mean
#
# Four micro-batches of three examples, accumulated as training loops do it: the average of the
# gradients of four weighted means. The last micro-batch holds most of the weight and gets no more
# say than the first. Adding `WeightedSum`s and dividing once gives the whole batch's gradient.


# %%
def part(x, rows):
    return jaxent.weighted_sum(jaxent.cross_entropy(x[rows], labels[rows]), weights[rows])


def micro_batches(n):
    return np.split(np.arange(12), n)


def mean_of_means(x, n):
    return sum(part(x, rows).mean() for rows in micro_batches(n)) / n


def sum_then_divide(x, n):
    return sum(part(x, rows) for rows in micro_batches(n)).mean()


whole = gradient(lambda x: sum_then_divide(x, 1), logits)
heatmaps(
    {
        "the whole batch": whole,
        "mean of 4 means (wrong)": gradient(lambda x: mean_of_means(x, 4), logits),
        "sum of 4 WeightedSums": gradient(lambda x: sum_then_divide(x, 4), logits),
    },
    labels,
    unit="∂ mean / ∂ logit",
)


# %%
def relative_error(f, n):
    return np.linalg.norm(gradient(lambda x: f(x, n), logits) - whole) / np.linalg.norm(whole)


sizes = [1, 2, 3, 4, 6, 12]
figure, ax = plt.subplots(figsize=(6.4, 3.1), layout="constrained")
places = np.arange(len(sizes))
errors = {
    "mean of means": [100 * relative_error(mean_of_means, n) for n in sizes],
    "sum of WeightedSums": [100 * relative_error(sum_then_divide, n) for n in sizes],
}
for shift, color, (name, error) in zip((-0.2, 0.2), (VERMILION, BLUE), errors.items(), strict=True):
    name = f"{name}: 0 but for rounding" if max(error) < 1e-3 else name
    bars = ax.bar(places + shift, error, 0.38, color=color, label=name)
    ax.bar_label(bars, [f"{e:.0f}" for e in error], fontsize=8, padding=1)
ax.set_xticks(places, sizes)
ax.set(
    title="Error of the accumulated gradient",
    xlabel="micro-batches the 12 examples are split into",
    ylabel="relative error (%)",
)
ax.spines[["top", "right"]].set_visible(False)
ax.margins(y=0.1)
figure.legend(frameon=False, loc="outside lower center", ncols=2)
plt.show()

# %% [markdown]
# ## To take away
#
# - Weights multiply losses:
#   `weighted_mean(cross_entropy(logits, labels), class_weights(labels, table))`.
# - The name of the mean says what it divides by; it scales the picture and nothing else.
# - `where=` for what does not exist, a weight for what counts less.
# - `pos_weight` belongs to sigmoids; a penalty per (true, predicted) pair is a cost matrix.
# - Add parts, divide once.
