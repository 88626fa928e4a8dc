"""``--task language-model``: one model, the heads for a large vocabulary, the same steps.

The model is Bengio's of 2003: the embeddings of the last words, one hidden layer, a softmax over
all words. Its last layer is trained as a full softmax, as a linear head that never has all logits
in memory, and as a sampled softmax that touches a few rows of the table; each is judged by the
full softmax on held-out text.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxent
import jaxent.train
from jaxent import plot, sampled
from jaxent.demo.topics import CONTEXT, Text
from jaxent.linear import linear_cross_entropy

Params = dict[str, dict[str, jax.Array]]
Batch = dict[str, jax.Array]

WIDTH, FEATURES = 48, 96  # of an embedding, of the hidden layer
BATCH_SIZE = 1024
CHUNK_SIZE = 128  # rows whose logits the linear head has in memory; left to itself it takes all
RATE, EPSILON, START = 0.1, 1e-7, 1e-3
OPTIMIZER = optax.adagrad(RATE, initial_accumulator_value=START, eps=EPSILON)
EVALUATIONS = 6  # of the held-out text in a fit

# --- the model ----------------------------------------------------------------------------------


def init(key: jax.Array, num_classes: int) -> Params:
    """All words start alike: a loss of log(num_classes)."""
    of_embedding, of_weight = jax.random.split(key)
    fan_in = CONTEXT * WIDTH
    return {
        "body": {
            # one row more, for the words that training does not have: it stays as it is
            "embedding": jax.random.normal(of_embedding, (num_classes + 1, WIDTH)),
            "weight": jax.random.normal(of_weight, (fan_in, FEATURES)) * fan_in**-0.5,
            "bias": jnp.zeros((1, FEATURES)),
        },
        "head": {"table": jnp.zeros((num_classes, FEATURES)), "bias": jnp.zeros(num_classes)},
    }


def hidden(body: dict[str, jax.Array], words: jax.Array) -> jax.Array:
    """What the last words ``[n, CONTEXT]`` say about the next one, ``[n, FEATURES]``."""
    x = body["embedding"][words].reshape(len(words), -1)
    return jnp.tanh(x @ body["weight"] + body["bias"])


def features(params: Params, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The hidden layer and the head."""
    return hidden(params["body"], batch["words"][:, :-1]), params["head"]


# --- heads --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Head:
    """A way to train: ``init(params) -> state``, ``step(params, state, batch) -> (…, part)``."""

    init: Callable
    step: Callable


def full(outputs, batch: Batch) -> jaxent.WeightedSum:
    """The softmax over all classes, all logits in memory."""
    x, head = outputs
    logits = x @ head["table"].T + head["bias"][None, :]
    return jaxent.weighted_sum(jaxent.cross_entropy(logits, batch["words"][:, -1]))


def linear(outputs, batch: Batch) -> jaxent.WeightedSum:
    """The softmax over all classes, a chunk of rows at a time."""
    x, head = outputs
    return linear_cross_entropy(
        x,
        head["table"],
        batch["words"][:, -1],
        bias=head["bias"],
        classes_axis=0,
        chunk_size=CHUNK_SIZE,
    )  # ty: ignore[invalid-explicit-return]


def of_all_classes(loss_fn: Callable) -> Head:
    """A head whose gradient has a row for every class."""
    objective = jaxent.train.objective(features, loss_fn)
    return Head(OPTIMIZER.init, jaxent.train.train_step(objective, OPTIMIZER))


# Adagrad leaves a row without a gradient as it is, state and all. So a step that touches only the
# rows it has a gradient for is Adagrad's step, and no approximation of it.


def of_some_classes(sampler: Callable[[jax.Array, jax.Array], sampled.Samples]) -> Head:
    """A head whose gradient has rows for the labels and the sampled classes alone."""

    def init(params):
        squares = jax.tree.map(lambda x: jnp.full_like(x, START), params["head"])
        return OPTIMIZER.init(params["body"]), squares

    def step(params, state, batch):
        body_state, squares = state
        words, labels = batch["words"][:, :-1], batch["words"][:, -1]
        samples = sampler(batch["key"], labels)
        rows = sampled.gather_rows(
            params["head"]["table"], labels, samples, bias=params["head"]["bias"]
        )

        def loss(body, rows):
            stats = sampled.sampled_softmax_stats(hidden(body, words), labels, samples, rows)
            part = jaxent.weighted_sum(jaxent.nll(stats))
            return part.mean(), part

        (d_body, d_rows), part = jax.grad(loss, (0, 1), has_aux=True)(params["body"], rows)
        updates, body_state = OPTIMIZER.update(d_body, body_state)
        body = optax.apply_updates(params["body"], updates)
        gradient = sampled.sum_duplicates(sampled.row_gradient(labels, samples, d_rows))
        moved = {
            name: adagrad_rows(params["head"][name], squares[name], gradient.ids, g)
            for name, g in (("table", gradient.rows), ("bias", gradient.bias))
        }
        head, squares = ({name: pair[i] for name, pair in moved.items()} for i in (0, 1))
        return {"body": body, "head": head}, (body_state, squares), part

    return Head(init, step)


def adagrad_rows(table, squares, ids, gradient):
    """Adagrad's step of these rows: the table and its sums of squares."""
    squares = squares.at[ids].add(gradient**2, mode="drop")
    slope = gradient * jax.lax.rsqrt(squares.at[ids].get(mode="fill", fill_value=1) + EPSILON)
    return table.at[ids].add(-RATE * slope, mode="drop"), squares


def log_uniform(num_classes: int, num_sampled: int) -> Head:
    """A sampled head: Zipf's law over the words, which are numbered by falling frequency."""
    return of_some_classes(
        partial(sampled.log_uniform, num_sampled=num_sampled, num_classes=num_classes)
    )


FULL, LINEAR, FEW, MANY = "full", "linear", "sampled 128", "sampled 1024"


def heads(num_classes: int) -> dict[str, Head]:
    """What is compared, by name."""
    return {
        FULL: of_all_classes(full),
        LINEAR: of_all_classes(linear),
        FEW: log_uniform(num_classes, 128),
        MANY: log_uniform(num_classes, 1024),
    }


# --- training -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fit:
    """One head, trained.

    Attributes:
      train: the training loss before each step, as the head sees it.
      held_out: pairs (steps taken, loss of the held-out text by the full softmax).
      seconds: of each step.
      temporary: bytes of temporary memory of the compiled step; NaN where XLA does not say.
    """

    train: np.ndarray
    held_out: list[tuple[int, float]]
    seconds: np.ndarray
    temporary: float

    @property
    def loss(self) -> float:
        """The held-out loss at the end."""
        return self.held_out[-1][1]

    @property
    def tokens_per_second(self) -> float:
        """By the median step: the first calls, and what else the machine does, stay out."""
        return BATCH_SIZE / float(np.median(self.seconds))


@jax.jit
def _held_out_part(params, windows):
    known = windows[:, -1] < params["head"]["bias"].size
    x, head = features(params, {"words": windows})
    logits = x @ head["table"].T + head["bias"][None, :]
    return jaxent.weighted_sum(jaxent.cross_entropy(logits, windows[:, -1], where=known), known)


def held_out_loss(params: Params, text: Text) -> float:
    """Nats a known word by the full softmax: parts add up over the pieces."""
    parts = (_held_out_part(params, piece) for piece in text.held_out)
    return float(sum(parts, jaxent.WeightedSum(jnp.zeros(()), jnp.zeros(()))).mean())


def fit(head: Head, text: Text, seed: int, steps: int, advance: Callable[[], None]) -> Fit:
    """Trains a new model. A seed has its initial model and its batches, whatever the head."""
    rows = np.random.default_rng(seed).integers(len(text.train), size=(steps, BATCH_SIZE))
    windows, keys = jnp.asarray(text.train), jax.random.split(jax.random.key(seed), steps)

    def batch(step):
        return {"words": windows[rows[step]], "key": keys[step]}

    params = init(jax.random.key(seed), text.num_classes)
    state = head.init(params)
    step_of = jax.jit(head.step, donate_argnums=(0, 1)).lower(params, state, batch(0)).compile()
    shown = {round(steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
    losses, seconds, held_out = [], [], [(0, held_out_loss(params, text))]
    for i in range(steps):
        given = jax.block_until_ready(batch(i))
        start = time.perf_counter()
        params, state, part = jax.block_until_ready(step_of(params, state, given))
        seconds.append(time.perf_counter() - start)
        losses.append(float(part.mean()))
        if i + 1 in shown:
            held_out.append((i + 1, held_out_loss(params, text)))
        advance()
    return Fit(
        train=np.array(losses),
        held_out=held_out,
        seconds=np.array(seconds),
        temporary=getattr(step_of.memory_analysis(), "temp_size_in_bytes", math.nan),
    )


def num_steps(seeds: int, steps: int) -> int:
    """How often :func:`run` calls ``advance``."""
    return len(heads(2)) * seeds * steps


def run(
    text: Text,
    seeds: int,
    steps: int,
    describe: Callable[[str], None],
    advance: Callable[[], None],
) -> dict[str, list[Fit]]:
    """Fits every head ``seeds`` times; the fits by name."""
    fits = {}
    for name, head in heads(text.num_classes).items():
        describe(name)
        fits[name] = [fit(head, text, seed, steps, advance) for seed in range(seeds)]
    return fits


# --- what it says -------------------------------------------------------------------------------

LINEAR_BOUND, MANY_BOUND, FEW_BOUND = 1e-4, 0.03, 0.15  # nats of held-out loss

MEANS = "Means over the seeds. "
LEGEND = f"""\
A seed gives all heads the same first model and batches.
  held-out   nats a word of text that training has not seen, by full softmax
  - full     how much more than with the full head
  words/s    by the median step of {BATCH_SIZE} words, compilation left out
  temporary  memory of one compiled step beside parameters and batch
The linear head is the full softmax in other words: only rounding tells their
losses apart. A sampled softmax is an estimate; its model comes as close as its
sample is large."""


def table(fits: Mapping[str, list[Fit]]) -> str:
    """A plain-text table, a row a head."""
    of_full = np.mean([f.loss for f in fits[FULL]])
    lines = [f"{'head':<16}{'held-out':>10}{'- full':>10}{'words/s':>10}{'temporary':>12}"]
    lines.append("-" * len(lines[0]))
    for name, runs in fits.items():
        loss = np.mean([f.loss for f in runs])
        speed = np.mean([f.tokens_per_second for f in runs])
        more = loss - of_full
        gap = "0" if more == 0 else f"{more:+.1e}" if name == LINEAR else f"{more:+.3f}"
        lines.append(
            f"{name:<16}{loss:>10.3f}{'' if name == FULL else gap:>10}{speed:>10,.0f}"
            f"{runs[0].temporary / 1e6:>9.1f} MB"
        )
    return "\n".join(lines)


def faults(fits: Mapping[str, list[Fit]], unigram_loss: float) -> list[str]:
    """In which way, if any, the heads do not do what theory says."""
    loss = {name: float(np.mean([f.loss for f in runs])) for name, runs in fits.items()}
    rounding = max(abs(a.loss - b.loss) for a, b in zip(fits[LINEAR], fits[FULL], strict=True))
    claims = {
        f"linear is {rounding:.1e} nats from full, more than {LINEAR_BOUND}": (
            rounding <= LINEAR_BOUND
        ),
        **{
            f"{name} is {loss[name] - loss[FULL]:+.3f} nats from full, more than {bound}": (
                abs(loss[name] - loss[FULL]) <= bound
            )
            for name, bound in ((MANY, MANY_BOUND), (FEW, FEW_BOUND))
        },
        f"full has {loss[FULL]:.3f} nats, frequencies alone {unigram_loss:.3f}": (
            loss[FULL] < unigram_loss
        ),
    }
    return [claim for claim, holds in claims.items() if not holds]


def agreement(fits: Mapping[str, list[Fit]]) -> str:
    """How close the heads are, in a sentence."""
    steps = max(
        float(np.abs(a.train - b.train).max())
        for a, b in zip(fits[LINEAR], fits[FULL], strict=True)
    )
    few, many = (
        np.mean([f.loss for f in fits[name]]) - np.mean([f.loss for f in fits[FULL]])
        for name in (FEW, MANY)
    )
    return (
        f"The heads agree: linear takes the steps of full (training losses at most\n{steps:.0e} "
        f"apart), sampled ends {few:+.3f} nats from it with 128 classes and {many:+.3f}\nwith 1024."
    )


@plot.house_style
def picture(folder: Path, fits: Mapping[str, list[Fit]], unigram_loss: float) -> Path:
    """Draws the first seed's held-out loss against its time in steps; returns the file's path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    ax = figure.subplots()
    styles = zip(plot.COLORS, plot.DASHES, plot.MARKERS, strict=True)
    for (name, runs), (color, dashes, marker) in zip(fits.items(), styles, strict=False):
        fit = runs[0]
        seconds = np.cumsum(fit.seconds)
        ax.plot(
            [seconds[steps - 1] for steps, _ in fit.held_out[1:]],
            [loss for _, loss in fit.held_out[1:]],
            color=color, linestyle=dashes, marker=marker, label=name,
        )  # fmt: skip
    ax.axhline(unigram_loss, color=plot.GREY, linewidth=1)
    at_left = ax.get_yaxis_transform()
    ax.text(0.01, unigram_loss - 0.08, "frequencies alone", color=plot.GREY, transform=at_left)
    ax.set(
        xscale="log",
        xlabel="seconds in training steps",
        ylabel="nats a held-out word",
        title="Held-out loss against training time, four heads",
    )
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    path = folder / "language_model.png"
    figure.savefig(path)
    return path
