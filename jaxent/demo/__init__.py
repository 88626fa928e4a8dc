"""``python -m jaxent.demo``: class weights, logit adjustment and focal loss on real imbalance.

Trains a small network on long-tailed handwritten digits with each recipe, prints a table and draws
pictures; ``--task language-model`` compares heads for a large vocabulary. ``--help`` lists the
options.

======================  =============================================================
``data.py``             the data sets and how each is split
``recipes.py``          what is compared: one loss of logits and a batch each
``training.py``         the network, the training loop, the scores
``experiment.py``       every recipe on the same splits
``report.py``           progress, table, pictures
``language_model.py``   the second task: heads, steps, table, picture
``topics.py``           its text
``__main__.py``         options, exit status
======================  =============================================================
"""
