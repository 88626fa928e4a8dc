"""A linear head without its logits: statistics and losses of ``hidden @ head``, chunk by chunk.

``reference.py`` says in a few lines what the numbers mean, ``dispatch.py`` is the door (arguments,
the size of a chunk), ``chunked.py`` does the work.
"""

from jaxent.linear.dispatch import linear_cross_entropy as linear_cross_entropy
from jaxent.linear.dispatch import linear_stats as linear_stats
