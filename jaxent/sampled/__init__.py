"""A vocabulary too large to sum over: sampled losses, their samplers, adaptive softmax.

A sampler draws a few classes, their rows are gathered from the table, and a loss over these stands
in for the loss over all::

    samples = log_uniform(key, labels, num_sampled=1024, num_classes=1_000_000)
    rows = gather_rows(table, labels, samples)
    losses = jaxent.nll(sampled_softmax_stats(hidden, labels, samples, rows))
"""

from jaxent.sampled.adaptive import AdaptiveParams as AdaptiveParams
from jaxent.sampled.adaptive import adaptive_softmax_log_prob as adaptive_softmax_log_prob
from jaxent.sampled.adaptive import adaptive_softmax_params as adaptive_softmax_params
from jaxent.sampled.adaptive import adaptive_softmax_predict as adaptive_softmax_predict
from jaxent.sampled.adaptive import adaptive_softmax_stats as adaptive_softmax_stats
from jaxent.sampled.losses import accidental_hits as accidental_hits
from jaxent.sampled.losses import in_batch_softmax_stats as in_batch_softmax_stats
from jaxent.sampled.losses import nce_loss as nce_loss
from jaxent.sampled.losses import sampled_softmax_stats as sampled_softmax_stats
from jaxent.sampled.rows import RowGradient as RowGradient
from jaxent.sampled.rows import Rows as Rows
from jaxent.sampled.rows import gather_rows as gather_rows
from jaxent.sampled.rows import row_gradient as row_gradient
from jaxent.sampled.rows import sum_duplicates as sum_duplicates
from jaxent.sampled.samplers import Samples as Samples
from jaxent.sampled.samplers import UnigramTable as UnigramTable
from jaxent.sampled.samplers import all_classes as all_classes
from jaxent.sampled.samplers import learned_unigram as learned_unigram
from jaxent.sampled.samplers import log_uniform as log_uniform
from jaxent.sampled.samplers import observe as observe
from jaxent.sampled.samplers import uniform as uniform
from jaxent.sampled.samplers import unigram as unigram
from jaxent.sampled.samplers import unigram_table as unigram_table
