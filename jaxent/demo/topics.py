"""The text of the language-model task: the manual that Python carries along. NumPy only."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

CONTEXT = 8
PIECE = 512  # words; every tenth piece is held out
WORD = re.compile(r" ?\w+|[^\w\s]|\s+")


@dataclass(frozen=True)
class Text:
    """Words as ids, and windows of ``CONTEXT`` words with the word that follows.

    Attributes:
      vocabulary: the words of the training part, the most frequent first: word i has the id i.
      train: windows, int32 ``[windows, CONTEXT + 1]``. None crosses into another piece.
      held_out: windows of each held-out piece, ``[pieces, windows, CONTEXT + 1]``. Words that
        training does not have are all ``num_classes``.
      counts: how often training has each word, ``[num_classes]``.
    """

    vocabulary: tuple[str, ...]
    train: np.ndarray
    held_out: np.ndarray
    counts: np.ndarray

    @property
    def num_classes(self) -> int:
        """How many words there are to choose from."""
        return len(self.vocabulary)

    @cached_property
    def unknown(self) -> float:
        """The share of held-out words that training does not have."""
        return float((self.held_out[..., -1] == self.num_classes).mean())

    @cached_property
    def unigram_loss(self) -> float:
        """Held-out nats a known word for who knows the words' frequencies alone."""
        labels = self.held_out[..., -1]
        labels = labels[labels < self.num_classes]
        return float(-np.log(self.counts / self.counts.sum())[labels].mean())


def manual() -> str:
    """The topics of Python's ``help()``."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def about(text: Text) -> str:
    """What the text is, for people."""
    return (
        f"the manual that Python carries along (pydoc_data.topics), {text.num_classes} words.\n"
        f"Training has {len(text.train)} places, each with the {CONTEXT} words before it; every "
        f"tenth piece\nof {PIECE} words is held out, and {text.unknown:.1%} of its words, new "
        "there, are left out of its\nloss. Frequencies alone have a loss of "
        f"{text.unigram_loss:.3f} nats a held-out word."
    )


def text(source: str) -> Text:
    """Splits a text into training and held-out windows.

    Example:
      >>> t = text("to be or not to be, that is the question. " * 999)
      >>> t.vocabulary[:3], t.train.shape[1], t.unknown
      ((' be', ' to', ' or'), 9, 0.0)
    """
    words = WORD.findall(source)
    pieces = [words[i : i + PIECE] for i in range(0, len(words) - PIECE + 1, PIECE)]
    train = [piece for i, piece in enumerate(pieces) if i % 10 != 9]
    counts = Counter(word for piece in train for word in piece)
    vocabulary = tuple(word for word, _ in counts.most_common())
    ids = {word: i for i, word in enumerate(vocabulary)}

    def windows(piece):
        known = np.array([ids.get(word, len(ids)) for word in piece], np.int32)
        return np.lib.stride_tricks.sliding_window_view(known, CONTEXT + 1)

    return Text(
        vocabulary=vocabulary,
        train=np.concatenate([windows(piece) for piece in train]),
        held_out=np.stack([windows(piece) for piece in pieces[9::10]]),
        counts=np.array([counts[word] for word in vocabulary]),
    )
