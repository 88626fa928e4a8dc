"""What people have asked about weighted cross-entropy for years, answered by the core.

Each test is one question and its answer, with the trap that the old answers fell into. The same
questions, as a page to read: docs/founding-questions.md.
"""

import doctest
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "founding-questions.md"

# A batch of six examples and four classes, and the textbook in float64.
rng = np.random.default_rng(11)
N, C = 6, 4
X = rng.normal(scale=2, size=(N, C)).astype(np.float32)
Y = np.array([0, 3, 1, 1, 2, 3])
TABLE = np.array([0.5, 2.0, 1.0, 4.0], np.float32)
LOG_P = X.astype(np.float64) - np.log(np.exp(X.astype(np.float64)).sum(-1, keepdims=True))
P = np.exp(LOG_P)
NLL = -LOG_P[np.arange(N), Y]
W = TABLE[Y].astype(np.float64)
COUNTS = jnp.array([1000, 2300, 20310, 6700])


def close(actual, expected, rtol=2e-6, atol=1e-7):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def gradient(f, x):
    return np.asarray(jax.jit(jax.grad(f))(x))


# --- FQ-000: class weights with integer labels --------------------------------------------------


def test_class_weights_with_integer_labels():
    """Q: How do I weight classes with integer labels?

    A: Look up each label's weight and hand them to the mean: weighted_mean divides by the sum of
    the weights (PyTorch), nonzero_mean by the number of weights that are not 0 (TensorFlow 1).
    """
    losses = jaxent.cross_entropy(X, Y)
    weights = jaxent.class_weights(Y, TABLE)
    close(losses, NLL)
    close(weights, W)
    close(jaxent.weighted_mean(losses, weights), (W * NLL).sum() / W.sum())
    close(jaxent.nonzero_mean(losses, weights), (W * NLL).sum() / N)

    slope = gradient(lambda x: jaxent.weighted_mean(jaxent.cross_entropy(x, Y), weights), X)
    close(slope, W[:, None] * (P - np.eye(C)[Y]) / W.sum())


def test_weighted_cross_entropy_with_logits_is_a_sigmoid_loss():
    """Q: Is weighted_cross_entropy_with_logits, with its pos_weight, weighted *softmax* loss?

    A: No. It is sigmoid_cross_entropy(pos_weight=): each class is a question of its own. Adding a
    constant to all logits changes it, which no softmax loss does.
    """
    one_hot = np.eye(C, dtype=np.float32)[Y]
    sigmoid = jaxent.sigmoid_cross_entropy(X, one_hot, pos_weight=TABLE)
    x = X.astype(np.float64)
    close(sigmoid, np.where(one_hot, TABLE * np.log1p(np.exp(-x)), np.log1p(np.exp(x))), rtol=1e-5)

    moved = jaxent.sigmoid_cross_entropy(X + 3, one_hot, pos_weight=TABLE)
    assert np.abs(moved.sum(-1) - sigmoid.sum(-1)).min() > 0.5
    close(jaxent.cross_entropy(X + 3, Y), NLL, rtol=1e-5)


def test_pos_weight_never_reaches_a_multi_class_loss():
    """Q: May I give a pos_weight to the loss of classes that exclude each other?

    A: No function takes both: the sigmoid loss refuses integer labels, the others a pos_weight.
    """
    with pytest.raises(ValueError, match="cross_entropy"):
        jaxent.sigmoid_cross_entropy(X, Y, pos_weight=TABLE)
    for function in (jaxent.cross_entropy, jaxent.softmax_stats, jaxent.soft_cross_entropy):
        with pytest.raises(TypeError, match="pos_weight"):
            function(X, Y, pos_weight=TABLE)


def test_multiplying_logits_by_class_weights_is_not_weighting_the_loss():
    """Q: Can I multiply the logits by the class weights, as the most copied answer does?

    A: No. It shrinks the loss of the very class it should protect and punishes examples of other
    classes; weight 0 does not remove an example. Weights multiply losses.
    """
    logits = jnp.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    labels = jnp.array([2, 0])
    table = jnp.array([1.0, 1.0, 5.0])  # class 2 is rare
    right = jaxent.cross_entropy(logits, labels) * jaxent.class_weights(labels, table)
    wrong = jaxent.cross_entropy(logits * table[None], labels)
    e = np.e
    close(right, [5 * (np.log(2 + e) - 1), np.log(1 + 2 * e) - 1])  # 2.757, 0.862
    close(wrong, [np.log(2 + e**5) - 5, np.log(1 + e + e**5) - 1], rtol=1e-5)  # 0.013, 4.025
    assert wrong[0] < 0.03 < 1 < right[0]  # the rare example all but vanishes
    assert wrong[1] > 4 * right[1]  # for class 2's weight, which is not its label's

    nothing = jnp.array([1.0, 1.0, 0.0])
    assert jaxent.weighted_sum(right, jaxent.class_weights(labels, nothing)).weight == 1
    assert jaxent.cross_entropy(logits * nothing[None], labels)[0] > 1  # log 3, from weight 0


def test_gradient_of_multiplied_logits_is_not_the_weighted_gradient():
    """Q: But is the gradient not the same, up to a factor?

    A: No. The right one is w_y (p - 1_y), a multiple of the unweighted; the wrong one scales each
    *column* by its class weight and moves the probabilities.
    """
    weights = jaxent.class_weights(Y, TABLE)
    right = gradient(lambda x: jaxent.weighted_sum(jaxent.cross_entropy(x, Y), weights).total, X)
    wrong = gradient(lambda x: jaxent.cross_entropy(x * TABLE[None], Y).sum(), X)
    close(right, W[:, None] * (P - np.eye(C)[Y]))
    scaled = np.exp(X.astype(np.float64) * TABLE)
    q = scaled / scaled.sum(-1, keepdims=True)
    close(wrong, TABLE * (q - np.eye(C)[Y]), rtol=1e-5, atol=1e-6)
    close(right.sum(-1), np.zeros(N), atol=1e-5)
    assert np.abs(wrong.sum(-1)).max() > 0.5  # it even pushes all logits of a row one way


def test_swapped_arguments_are_refused():
    """Q: Old TensorFlow took (logits, labels), newer takes (labels, logits): which is it here?

    A: (logits, labels), and the other order raises an error that says so.
    """
    for function in (jaxent.cross_entropy, jaxent.softmax_stats):
        with pytest.raises(TypeError, match=r"\(logits, labels\)"):
            function(Y, X)
    with pytest.raises(TypeError, match=r"\(logits, targets\)"):
        jaxent.sigmoid_cross_entropy(Y, X)
    with pytest.raises(TypeError):
        jaxent.class_weights(TABLE, Y)


# --- FQ-001: the forms of cross-entropy, and a detection grid -----------------------------------


def test_the_four_formulas():
    """Q: What are binary, two-class, multi-class and weighted multi-class cross-entropy?

    A: sigmoid_cross_entropy, cross_entropy on two logits, cross_entropy, and its weighted sum.
    """
    x, z = X[:, 0], np.array([1, 0, 1, 1, 0, 0], np.float32)
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    close(jaxent.sigmoid_cross_entropy(x, z), -z * np.log(p) - (1 - z) * np.log(1 - p))
    pair = np.stack([np.zeros_like(x), x], -1)
    close(jaxent.cross_entropy(pair, z.astype(np.int32)), jaxent.sigmoid_cross_entropy(x, z))
    close(jaxent.cross_entropy(X, Y), NLL)
    weighted = jaxent.weighted_sum(jaxent.cross_entropy(X, Y), jaxent.class_weights(Y, TABLE))
    close(weighted.total, (W * NLL).sum())


def test_a_softmax_over_one_logit_learns_nothing():
    """Q: My network has one output; can I put it through a softmax?

    A: No: the softmax of one logit is 1, its loss and gradient are 0. One logit is a sigmoid's.
    """
    one, labels = X[:, :1], np.zeros(N, np.int32)
    assert not np.any(jaxent.cross_entropy(one, labels))
    assert not gradient(lambda x: jaxent.cross_entropy(x, labels).sum(), one).any()
    assert np.abs(gradient(lambda x: jaxent.sigmoid_stats(x, labels).nll.sum(), X[:, 0])).min() > 0


GRID = (4, 13, 13, 3, 20)


def test_the_sigmoid_loss_keeps_its_shape():
    """Q: Does the sigmoid loss sum the classes of [4, 13, 13, 3, 20]?

    A: No: elementwise. The mean over everything is 1/20 of the mean of the sums over classes.
    """
    local = np.random.default_rng(0)
    logits = local.normal(size=GRID).astype(np.float32)
    targets = local.integers(0, 2, GRID).astype(np.float32)
    losses = jaxent.sigmoid_cross_entropy(logits, targets)
    assert losses.shape == GRID
    over_all = jaxent.plain_mean(losses)
    per_cell = jaxent.plain_mean(losses.sum(-1))
    x = logits.astype(np.float64)
    close(over_all, (np.logaddexp(0, x) - targets * x).mean(), rtol=1e-5)
    close(per_cell, 20 * np.asarray(over_all), rtol=1e-5)  # as .8033 and 16.07
    assert 0.79 < over_all < 0.82


def test_the_tiny_mean_of_a_detection_grid():
    """Q: My YOLO loss is 0.0038 and the detector finds nothing. Where did the loss go?

    A: Into the mean over 40 560 elements, nearly all of them easy. Sum the classes, keep the cells
    with an object, divide by the number of objects: 6.05.
    """
    objects = jnp.zeros(GRID[:-1], bool).at[0, :9, 4, 1].set(True)  # 9 of 2028 cells
    targets = jnp.zeros(GRID).at[0, :9, 4, 1, 7].set(1.0)
    logits = jnp.full(GRID, -6.0)  # "no" to everything, every object missed
    losses = jaxent.sigmoid_cross_entropy(logits, targets)

    easy = np.log1p(np.exp(-6))
    assert f"{jaxent.plain_mean(losses):.4f}" == "0.0038"
    part = jaxent.weighted_sum(losses.sum(-1), objects)
    close(part.weight, np.float32(9))
    close(part.total / 9, np.float64(20 * easy + 6))
    assert f"{part.mean():.2f}" == "6.05"

    slope = jax.grad(lambda x: jaxent.plain_mean(jaxent.sigmoid_cross_entropy(x, targets)))(logits)
    found = slope[0, 0, 4, 1, 7]
    nothing = jnp.where(targets == 1, 0, slope).sum()
    assert -found < 3e-5  # what a missed object can say
    assert nothing > 4 * -found  # against 40 551 elements that are right already


def test_the_log_ratio_recipe_in_both_orders():
    """Q: The log-ratio recipe prints .117 for the largest class; its text gives .293. Which?

    A: Both, they are two recipes: clip at 1 before dividing by the largest, or do not clip.
    """
    log_ratio = jaxent.weights.log_ratio
    logs = np.log(30310 / np.asarray(COUNTS, np.float64))
    close(logs, [3.411, 2.579, 0.400, 1.509], rtol=0, atol=6e-4)
    close(log_ratio(COUNTS), np.maximum(logs, 1))
    close(log_ratio(COUNTS, normalize="max"), [1, 0.756, 0.293, 0.442], rtol=0, atol=6e-4)
    unclipped = log_ratio(COUNTS, clip=None, normalize="max")
    close(unclipped, [1, 0.755, 0.117, 0.442], rtol=0, atol=1e-3)
    close(unclipped, logs / logs.max())


def test_scaling_all_class_weights_is_a_learning_rate():
    """Q: Do weights above 1 raise recall, and weights normalised to 1 precision?

    A: Neither. A constant factor scales the loss, so the step; a weighted mean cancels it.
    """
    weights = jaxent.class_weights(Y, TABLE)
    for scale in (0.25, 8.0):  # exact in binary

        def total(x, w):
            return jaxent.weighted_sum(jaxent.cross_entropy(x, Y), w).total

        def mean(x, w):
            return jaxent.weighted_mean(jaxent.cross_entropy(x, Y), w)

        slopes = jax.jit(jax.grad(total))
        np.testing.assert_array_equal(slopes(X, scale * weights), scale * slopes(X, weights))
        slopes = jax.jit(jax.grad(mean))
        close(slopes(X, scale * weights), slopes(X, weights))


def test_what_a_ratio_of_class_weights_does_change():
    """Q: Then what do class weights do?

    A: Their *ratio* moves the boundary: the best constant guess is n_c w_c / Σ n w, not n_c / N.
    """
    n = COUNTS.astype(jnp.float32)
    table = jnp.array([1.0, 2.0, 0.5, 4.0])
    best = jnp.log(n * table)  # logits of p_c = n_c w_c / Σ n w

    def objective(x, weights):
        rows = jnp.broadcast_to(x, (4, 4))
        return jaxent.weighted_mean(jaxent.cross_entropy(rows, jnp.arange(4)), n * weights)

    for factor in (1.0, 7.0):
        close(gradient(lambda x, f=factor: objective(x, f * table), best), np.zeros(4), atol=1e-6)
    assert np.abs(gradient(lambda x: objective(x, jnp.ones(4)), best)).max() > 0.1


# --- FQ-002: shapes, several heads, penalties per pair, labels that are not there ---------------


def test_sequences_take_labels_without_the_class_axis():
    """Q: Logits [batch, time, vocabulary] and labels [batch, time]: reshape, or one-hot?

    A: Neither. And what does not fit raises; nothing is broadcast.
    """
    logits, labels = X.reshape(2, 3, C), Y.reshape(2, 3)
    close(jaxent.cross_entropy(logits, labels), NLL.reshape(2, 3))
    for wrong in (labels[..., None], labels[0], labels[:, :1], Y):
        with pytest.raises(ValueError, match="labels must have the shape of logits"):
            jaxent.cross_entropy(logits, wrong)
    with pytest.raises(ValueError, match="one-hot"):
        jaxent.cross_entropy(logits, np.eye(C, dtype=np.int32)[labels])


def test_log_probabilities_are_logits_and_probabilities_are_not():
    """Q: My model ends in a softmax. Can I pass its output?

    A: Pass the logits, or the log of the output. Probabilities as logits run, and their loss never
    falls below log(1 + (C - 1) / e), here 0.74.
    """
    close(jaxent.cross_entropy(LOG_P.astype(np.float32), Y), NLL, rtol=1e-5)
    perfect = np.eye(C, dtype=np.float32)[Y]
    floor = np.log(1 + (C - 1) / np.e)
    close(jaxent.cross_entropy(perfect, Y), np.full(N, floor))
    assert f"{floor:.2f}" == "0.74"
    assert jaxent.cross_entropy(P.astype(np.float32), Y).min() >= floor


def test_three_heads_of_six_classes():
    """Q: One example has three labels, [1, 4, 5], each of six classes. Three losses?

    A: One call on [batch, 3, 6]. Weights of heads are weights; a head without a label is where=.
    """
    local = np.random.default_rng(3)
    logits = local.normal(size=(2, 3, 6)).astype(np.float32)
    labels = jnp.array([[1, 4, 5], [0, 2, 3]])
    losses = jaxent.cross_entropy(logits, labels)
    assert losses.shape == (2, 3)
    apart = [jaxent.cross_entropy(logits[:, head], labels[:, head]) for head in range(3)]
    close(losses, np.stack(apart, -1))

    head_weights = jnp.broadcast_to(jnp.array([1.0, 0.5, 2.0]), (2, 3))
    expected = (np.asarray(losses, np.float64) * np.asarray(head_weights)).sum() / 7
    close(jaxent.weighted_mean(losses, head_weights), expected)

    missing = jnp.array([[1, -1, 5], [0, 2, 3]])
    where = missing >= 0
    some = jaxent.cross_entropy(logits, missing, where=where)
    close(some, np.where(where, losses, 0))
    five = np.asarray(losses, np.float64)[np.asarray(where)]
    close(jaxent.weighted_mean(some, where), five.mean())


ABCD = jnp.array([27, 59, 97, 37])  # shares .12, .27, .44, .17


def test_weights_by_share_weight_the_majority_up():
    """Q: My classes make up .12, .27, .44 and .17 of the data. Are those my weights?

    A: They are upside down: they weight the majority up. balanced gives 2.04, .93, .57, 1.49, with
    which every class has the same say.
    """
    share = np.asarray(ABCD) / 220
    close(share, [0.12, 0.27, 0.44, 0.17], rtol=0, atol=5e-3)
    table = jaxent.weights.balanced(ABCD)
    close(table, [2.04, 0.93, 0.57, 1.49], rtol=0, atol=5e-3)
    say = np.asarray(table) * share
    close(say, np.full(4, 0.25))
    say = share * share / (share * share).sum()
    assert say[2] > 0.6  # from .44
    assert say[0] < 0.06  # from .12


def test_a_table_times_one_hot_is_a_look_up():
    """Q: Is Σ_c w_c onehot_c the right weight of an example?

    A: Yes, and class_weights is it without the one-hot.
    """
    summed = (TABLE * np.eye(C, dtype=np.float32)[Y]).sum(-1)
    np.testing.assert_array_equal(jaxent.class_weights(Y, TABLE), summed)


def test_a_table_is_not_weights():
    """Q: Can I pass the class weights as the weights, for "broadcasting" to sort out?

    A: No: weights are one an example. A table of another length, or a [1, batch], is refused; look
    it up by label.
    """
    losses = jaxent.cross_entropy(X, Y)
    for wrong in (TABLE, TABLE[None], W[None].astype(np.float32), W[:, None].astype(np.float32)):
        for reduce in (jaxent.weighted_mean, jaxent.weighted_sum, jaxent.plain_mean):
            with pytest.raises(ValueError, match="weights must have the shape of losses"):
                reduce(losses, wrong)


def test_weighing_by_the_prediction_is_something_else_and_says_so():
    """Q: Does weighting penalise the class that was *estimated*?

    A: Not class_weights. If you want that, look up the prediction, or its expectation Σ_j p_j w_j.
    """
    predicted = jnp.argmax(X, -1)
    close(jaxent.class_weights(predicted, TABLE), TABLE[X.argmax(-1)])
    same_for_all = jnp.broadcast_to(TABLE, (C, C))  # each row the table: only the column matters
    close(jaxent.expected_cost(X, Y, same_for_all), P @ TABLE.astype(np.float64))
    np.testing.assert_array_equal(
        jaxent.cost_weights(Y, predicted, same_for_all), jaxent.class_weights(predicted, TABLE)
    )


COST = np.array(
    [[0.0, 1, 2, 5], [1, 0, 1, 1], [3, 1, 0, 1], [10, 1, 1, 0]], np.float32
)  # true 3 called 0 costs 10


def test_a_penalty_for_each_true_and_predicted_pair():
    """Q: Calling a 3 a 0 is worse than calling a 0 a 3. How do I say so?

    A: With a matrix, row = true, column = predicted: expected_cost is Σ_j M[y, j] p_j, a loss;
    cost_weights is M[y, ŷ], a weight for any loss.
    """
    close(jaxent.expected_cost(X, Y, COST), (COST[Y] * P).sum(-1))
    ups = gradient(lambda x: jaxent.expected_cost(x, Y, COST).sum(), X)
    mean = (COST[Y] * P).sum(-1, keepdims=True)
    close(ups, P * (COST[Y] - mean), rtol=1e-5, atol=1e-6)

    predicted = X.argmax(-1)
    weights = jaxent.cost_weights(Y, predicted, 1 + COST)
    np.testing.assert_array_equal(weights, 1 + COST[Y, predicted])
    close(
        jaxent.weighted_sum(jaxent.cross_entropy(X, Y), weights).total,
        ((1 + COST[Y, predicted]) * NLL).sum(),
    )
    mirrored = jaxent.expected_cost(X, Y, COST.T)
    assert np.abs(mirrored - jaxent.expected_cost(X, Y, COST)).max() > 0.1  # not symmetric
    with pytest.raises(ValueError, match="weights must have the shape of losses"):
        jaxent.weighted_sum(jaxent.cross_entropy(X, Y), COST[Y])  # [batch, classes] is no weight


def test_the_label_n_a():
    """Q: Class 0 means "not available". How do I train without those examples?

    A: where=labels != 0: loss and gradient exactly 0, even of a row of NaN, and a mean that does
    not count them. Multiplying by 0 would keep the NaN.
    """
    labels = np.array([0, 3, 1, 0, 2, 3])
    where = labels != 0
    logits = X.copy()
    logits[0] = np.nan

    def mean(x):
        return jaxent.weighted_mean(jaxent.cross_entropy(x, labels, where=where), where)

    x = X.astype(np.float64)
    nll = np.log(np.exp(x).sum(-1)) - x[np.arange(N), labels]
    close(jax.jit(mean)(logits), nll[where].mean())
    slope = gradient(mean, logits)
    assert (slope[~where] == 0).all()
    close(slope[where], (P - np.eye(C)[labels])[where] / 4)

    naive = gradient(lambda x: (jaxent.cross_entropy(x, labels) * where.astype("f4")).sum(), logits)
    assert np.isnan(naive[0]).all()
    nothing = jaxent.weighted_mean(
        jaxent.cross_entropy(X, labels, where=where & False), where & False
    )
    assert nothing == 0


def test_kl_divergence_with_zeros():
    """Q: Σ p log(p / q) gives NaN for one-hot targets like [1, 0, 0]. Why, and what instead?

    A: 0 log 0. kl_divergence takes it as 0, in the value and in the gradient.
    """
    targets = jnp.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    logits = jnp.array([[2.0, 0.0, -1.0], [0.3, 0.0, 1.0]])
    textbook = (targets * jnp.log(targets / jax.nn.softmax(logits))).sum(-1)
    assert np.isnan(textbook).all()
    x = np.asarray(logits, np.float64)
    log_q = x - np.log(np.exp(x).sum(-1, keepdims=True))
    q = np.asarray(targets, np.float64)
    expected = np.where(q > 0, q * (np.log(np.where(q > 0, q, 1)) - log_q), 0).sum(-1)
    close(jaxent.kl_divergence(logits, targets), expected)
    slope = gradient(lambda x: jaxent.kl_divergence(x, targets).sum(), logits)
    close(slope, np.exp(log_q) - q, rtol=1e-5)
    impossible = logits.at[:, 2].set(-jnp.inf)  # a class that neither side believes in
    assert np.isfinite(jaxent.kl_divergence(impossible, targets)).all()


# --- FQ-003: which function? --------------------------------------------------------------------


def test_sparse_and_dense_labels_are_one_loss():
    """Q: sparse_softmax or softmax?

    A: The same loss. Integer labels: cross_entropy. Rows of probabilities: soft_cross_entropy.
    """
    one_hot = np.eye(C, dtype=np.float32)[Y]
    close(jaxent.soft_cross_entropy(X, one_hot), jaxent.cross_entropy(X, Y))
    soft = rng.dirichlet(np.ones(C), N).astype(np.float32)
    close(jaxent.soft_cross_entropy(X, soft), -(soft * LOG_P).sum(-1), rtol=1e-5)


def test_a_sigmoid_is_a_softmax_of_two_classes():
    """Q: Sigmoid or softmax?

    A: Softmax if classes exclude each other, sigmoid if not. For two classes they are one: the
    sigmoid of x is the softmax of (0, x).
    """
    x = np.linspace(-90, 90, 37).astype(np.float32)
    pair = np.stack([np.zeros_like(x), x], -1)
    for label in (0, 1):
        labels = np.full(x.shape, label)
        close(jaxent.sigmoid_cross_entropy(x, labels), jaxent.cross_entropy(pair, labels), atol=0)


def test_sigmoid_targets_need_not_be_one_hot():
    """Q: Must labels of the sigmoid loss be one-hot?

    A: No: several classes at once, none, or any value from 0 to 1.
    """
    targets = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0.3, 0.5, 1, 0]], np.float32)
    x = X[:3].astype(np.float64)
    close(jaxent.sigmoid_cross_entropy(X[:3], targets), np.logaddexp(0, x) - targets * x, rtol=1e-5)
    close(
        gradient(lambda x: jaxent.sigmoid_cross_entropy(x, targets).sum(), X[:3]),
        1 / (1 + np.exp(-x)) - targets,
        rtol=1e-5,
    )


# --- FQ-004: an imbalanced binary problem -------------------------------------------------------


def test_half_a_million_negatives():
    """Q: 500 000 negatives, 31 000 positives. What pos_weight?

    A: negatives / positives, 16.13 (one over the share of positives would be 17.13). Then the best
    constant guess is 1/2 instead of 6 %.
    """
    pos_weight = jaxent.weights.positive(500_000, 31_000)
    assert f"{pos_weight:.2f}" == "16.13"
    assert f"{531 / 31:.2f}" == "17.13"

    def objective(x, weight):
        losses = jaxent.sigmoid_cross_entropy(
            jnp.stack([x, x]), jnp.array([0.0, 1.0]), pos_weight=weight
        )
        return jaxent.weighted_mean(losses, jnp.array([500_000.0, 31_000.0]))

    close(gradient(lambda x: objective(x, pos_weight), jnp.float32(0)), 0.0, atol=1e-7)
    unweighted = jnp.log(jnp.float32(31 / 500))
    close(gradient(lambda x: objective(x, 1.0), unweighted), 0.0, atol=1e-7)
    assert abs(gradient(lambda x: objective(x, 531 / 31), jnp.float32(0))) > 0.02


def test_pos_weight_is_the_ratio_of_two_balanced_class_weights():
    """Q: And with two logits instead of one?

    A: balanced class weights, whose ratio is that pos_weight.
    """
    table = jaxent.weights.balanced(jnp.array([500_000, 31_000]))
    close(table[1] / table[0], np.asarray(jaxent.weights.positive(500_000, 31_000)))
    x, labels = X[:, 0], np.array([0, 1, 1, 0, 0, 1])
    two = jaxent.cross_entropy(np.stack([np.zeros_like(x), x], -1), labels)
    weighted = two * jaxent.class_weights(labels, table / table[0])
    one = jaxent.sigmoid_cross_entropy(x, labels, pos_weight=table[1] / table[0])
    close(one, weighted, rtol=1e-5)


def test_the_answer_with_49_votes():
    """Q: class_weight = [31/531, 500/531]; multiply the logits by it?

    A: The 49-vote answer, and wrong: the loss of a confident positive *falls* with its weight, and
    a classifier trained by it learns to undo the weights.
    """
    table = jnp.array([31 / 531, 500 / 531])
    logits = jnp.array([[2.0, 3.0], [3.0, 2.0]])
    labels = jnp.array([1, 0])
    wrong = jaxent.cross_entropy(logits * table[None], labels)
    right = jaxent.cross_entropy(logits, labels) * jaxent.class_weights(labels, table)
    close(right, np.log1p(np.exp(-1)) * np.array([500, 31]) / 531)
    close(wrong, np.log1p(np.exp([(2 * 31 - 3 * 500) / 531, (2 * 500 - 3 * 31) / 531])), rtol=1e-5)
    assert wrong[1] > 1.5 > 0.1 > wrong[0]  # the negative, which should hardly count, counts most

    # Its best constant guess is still the prior: x_c table_c = log n_c. Nothing was rebalanced.
    n = jnp.array([500_000.0, 31_000.0])
    undone = jnp.log(n) / table

    def objective(x):
        rows = jnp.broadcast_to(x * table, (2, 2))
        return jaxent.weighted_mean(jaxent.cross_entropy(rows, jnp.arange(2)), n)

    close(gradient(objective, undone), np.zeros(2), atol=1e-5)


def test_weight_times_loss_by_matrix_product():
    """Q: One-hot [batch, 2] times the transposed table, times the loss: is that right?

    A: Right, and the same as the look-up, which has no [1, batch] to trip over.
    """
    labels = np.array([0, 1, 1, 0, 0, 1])
    table = np.array([[31 / 531, 500 / 531]], np.float32)
    by_product = table @ np.eye(2, dtype=np.float32)[labels].T  # [1, batch]
    losses = jaxent.cross_entropy(X[:, :2], labels)
    looked_up = losses * jaxent.class_weights(labels, table[0])
    close(looked_up, np.asarray(by_product)[0] * np.asarray(losses))
    with pytest.raises(ValueError, match="weights must have the shape"):
        jaxent.weighted_sum(losses, by_product)


def test_balanced_mini_batches_need_importance_weights():
    """Q: I sample balanced mini-batches from imbalanced data; is the loss still that of the data?

    A: With weights target share / sampled share it is: the weighted mean of the balanced batch is
    the mean of the data.
    """
    labels = np.repeat([0, 1], [90, 10])
    logits = np.array([[2.0, 0.0], [1.0, 0.0]], np.float32)[labels]  # biased to the majority
    over_data = jaxent.weighted_mean(jaxent.cross_entropy(logits, labels))
    batch = np.concatenate([np.arange(10), np.arange(90, 100)])  # ten of each
    table = jnp.array([0.9, 0.1]) / 0.5
    losses = jaxent.cross_entropy(logits[batch], labels[batch])
    close(
        jaxent.weighted_mean(losses, jaxent.class_weights(labels[batch], table)),
        np.asarray(over_data),
        rtol=1e-5,
    )
    assert abs(jaxent.weighted_mean(losses) - over_data) > 0.1


def test_pos_weight_of_two_numbers_is_not_class_weights():
    """Q: pos_weight=[.1, 1.] on two one-hot outputs: are those class weights?

    A: No: it is two sigmoids, and each output's negative term keeps its full weight.
    """
    table = jnp.array([0.1, 1.0])
    logits, labels = X[:, :2], np.array([0, 1, 1, 0, 0, 1])
    one_hot = np.eye(2, dtype=np.float32)[labels]
    two_sigmoids = jaxent.sigmoid_cross_entropy(logits, one_hot, pos_weight=table).sum(-1)
    x = logits.astype(np.float64)
    mine = np.arange(N), labels
    other = np.arange(N), 1 - labels
    weight = np.array([0.1, 1.0])[labels]
    close(two_sigmoids, weight * np.logaddexp(0, -x[mine]) + np.logaddexp(0, x[other]), rtol=1e-5)
    meant = jaxent.cross_entropy(logits, labels) * jaxent.class_weights(labels, table)
    close(meant, weight * np.logaddexp(0, x[other] - x[mine]), rtol=1e-5)
    assert np.abs(two_sigmoids - meant).min() > 0.1


def test_five_times_the_loss_of_one_class():
    """Q: Class 3 should count five times.

    A: A table of ones with a 5 in it, which is 4 (y == 3) + 1.
    """
    table = jnp.ones(C).at[3].set(5.0)
    weights = jaxent.class_weights(Y, table)
    np.testing.assert_array_equal(weights, 4 * (Y == 3) + 1)
    close(
        jaxent.weighted_sum(jaxent.cross_entropy(X, Y), weights).total,
        NLL.sum() + 4 * NLL[Y == 3].sum(),
    )


def test_scikit_learns_balanced_weights_and_their_denominator():
    """Q: compute_sample_weight("balanced") and a division by the batch size; and at evaluation?

    A: class_weights(labels, balanced(counts)) with plain_mean. At evaluation leave the weights out.
    """
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.random.default_rng(2).choice(4, 200, p=[0.6, 0.25, 0.1, 0.05])
    logits = np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32)
    table = jaxent.weights.balanced(jaxent.weights.counts(labels, 4))
    theirs = class_weight.compute_class_weight("balanced", classes=np.arange(4), y=labels)
    close(table, theirs)
    weights = jaxent.class_weights(labels, table)
    close(weights, class_weight.compute_sample_weight("balanced", labels))

    x = logits.astype(np.float64)
    nll = np.log(np.exp(x).sum(-1)) - x[np.arange(200), labels]
    losses = jaxent.cross_entropy(logits, labels)
    close(jaxent.plain_mean(losses, weights), (theirs[labels] * nll).sum() / 200, rtol=1e-5)
    # over the data set the weights' mean is 1; over a batch it is not, and weighted_mean differs
    close(jaxent.weighted_mean(losses, weights), jaxent.plain_mean(losses, weights), rtol=1e-5)
    first = slice(0, 10)
    weighted = jaxent.weighted_mean(losses[first], weights[first])
    assert abs(weighted - jaxent.plain_mean(losses[first], weights[first])) > 0.02
    close(jaxent.weighted_mean(losses), nll.mean(), rtol=1e-5)


def test_a_loss_of_clipped_probabilities_is_deaf():
    """Q: My weighted binary loss takes the log of clipped probabilities. What does that cost?

    A: Everything beyond 16.118 = -log 1e-7: there its gradient is 0. From logits nothing is lost.
    """
    x, z = jnp.array([-40.0, 40.0]), jnp.array([1.0, 0.0])

    def clipped(x):
        p = jnp.clip(jax.nn.sigmoid(x), 1e-7, 1 - 1e-7)
        return -z * jnp.log(p) - (1 - z) * jnp.log1p(-p)

    close(clipped(x), [16.118, 15.942], rtol=1e-4)  # and 1 - 1e-7 is not a float32
    assert not gradient(lambda x: clipped(x).sum(), x).any()
    close(jaxent.sigmoid_cross_entropy(x, z), [40.0, 40.0])
    close(gradient(lambda x: jaxent.sigmoid_cross_entropy(x, z).sum(), x), [-1.0, 1.0])
    sure = jaxent.sigmoid_cross_entropy(-x, z)
    close(sure, np.log1p(np.exp([-40.0, -40.0])), atol=0)  # 4e-18 and not 1e-7


# --- what the answers divide by, and what they combine with -------------------------------------


def test_the_four_meanings_of_mean():
    """Q: Which mean does "mean" mean?

    A: Say it: the sum of the weights, the number of weights that are not 0, the number of losses,
    or no mean at all.
    """
    weights = jnp.array([0.0, 2.0, 0.5, 1.0])
    losses = jnp.array([2.008, 0.792, 0.598, 1.357])  # rounded to three digits
    total = jaxent.weighted_sum(losses, weights).total
    values = [
        total,
        jaxent.weighted_mean(losses, weights),
        jaxent.plain_mean(losses, weights),
        jaxent.nonzero_mean(losses, weights),
    ]
    close(values, [3.2392, 0.9255, 0.8098, 1.0797], rtol=0, atol=1e-3)
    close(values, 3.24 / np.array([1, 3.5, 4, 3]))


def test_a_class_weight_cancels_in_a_batch_of_one():
    """Q: With batch size 1, my class weights do nothing. Why?

    A: A weighted mean of one loss is that loss. Add up WeightedSums, or divide by a plain count.
    """
    losses, weights = jaxent.cross_entropy(X, Y), jaxent.class_weights(Y, TABLE)
    each = [jaxent.weighted_sum(losses[i : i + 1], weights[i : i + 1]) for i in range(N)]
    close([part.mean() for part in each], NLL)
    close(sum(each).mean(), (W * NLL).sum() / W.sum())
    mean_of_means = np.mean([part.mean() for part in each])
    assert abs(mean_of_means - sum(each).mean()) > 0.05


def test_class_weights_multiply_the_focal_loss_and_do_not_enter_it():
    """Q: Focal loss with class weights: from the weighted cross-entropy?

    A: No: p must come from the plain loss, then weigh. At p = .6, γ = 2, w = 5 that is .4087;
    taking exp(-w nll) for p gives 2.172.
    """
    logits, label = jnp.log(jnp.array([[0.6, 0.4]])), jnp.array([0])
    right = 5 * jaxent.focal(jaxent.softmax_stats(logits, label), gamma=2.0)
    assert f"{right[0]:.4f}" == "0.4087"
    weighted = 5 * jaxent.cross_entropy(logits, label)
    wrong = (1 - jnp.exp(-weighted)) ** 2 * weighted
    assert f"{wrong[0]:.3f}" == "2.172"


# --- the page -----------------------------------------------------------------------------------


def test_the_page_prints_what_it_says():
    """docs/founding-questions.md, in order and in one namespace, as a reader would paste it."""
    text = PAGE.read_text(encoding="utf-8")
    examples = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    report = []
    with np.printoptions():  # which the page sets
        result = doctest.DocTestRunner(verbose=False).run(examples, out=report.append)
    assert result.attempted > 50
    assert result.failed == 0, "".join(report)
