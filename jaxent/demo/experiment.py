"""The experiment: every recipe on the same splits, one fit a seed."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxent.demo import recipes
from jaxent.demo.data import Dataset, Split
from jaxent.demo.training import Scores, fit, sigmoid_scores, softmax_scores, step_of


@dataclass(frozen=True)
class Results:
    """Scores of each seed by recipe, and what the pictures need of the last seed.

    ``counts`` are the training examples of each class (positives of each label), ``tables`` the
    weights made of them, ``logits`` the test logits of the network trained without weights.
    """

    scores: dict[str, list[Scores]]
    counts: np.ndarray
    tables: dict[str, jax.Array]
    split: Split
    logits: np.ndarray


def recipes_for(dataset: Dataset) -> dict[str, recipes.Loss]:
    """The recipes by name, the unweighted one first."""
    return recipes.SIGMOID if dataset.multi_label else recipes.SOFTMAX


def num_steps(dataset: Dataset, seeds: int, steps: int) -> int:
    """How often :func:`run` calls ``advance``."""
    return len(recipes_for(dataset)) * seeds * steps


def run(
    dataset: Dataset,
    seeds: int,
    steps: int,
    describe: Callable[[str], None],
    advance: Callable[[], None],
) -> Results:
    """Fits every recipe ``seeds`` times.

    Args:
      dataset: what to train on.
      seeds: fits a recipe.
      steps: steps a fit.
      describe: told the name of each recipe before it is fitted.
      advance: called after every step.
    """
    multi = dataset.multi_label
    tables = recipes.POSITIVE_TABLES if multi else recipes.CLASS_TABLES
    score = sigmoid_scores if multi else softmax_scores
    splits = [dataset.split(seed) for seed in range(seeds)]

    scores = {}
    for name, loss in recipes_for(dataset).items():
        describe(name)
        step = step_of(loss)
        logits = [fit(step, split, seed, steps, advance) for seed, split in enumerate(splits)]
        scores[name] = [score(x, split) for x, split in zip(logits, splits, strict=True)]
        if name == recipes.UNWEIGHTED:
            unweighted_logits = logits[-1]

    counts = splits[-1].counts
    return Results(
        scores=scores,
        counts=counts[-1] if multi else counts,
        tables={name: table(jnp.asarray(counts)) for name, table in tables.items()},
        split=splits[-1],
        logits=unweighted_logits,
    )
