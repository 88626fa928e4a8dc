"""The test of the tests: wrong losses, most as some library is or was, and what kills each.

M1 to M11 are the integer-label losses that the usual tests (allclose on N(0, 1) logits, gradients
by finite differences) mostly let pass. Every one must die, here by two oracles on its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.test_util import check_grads

import jaxent


def at(x, labels):
    return jnp.take_along_axis(x, labels[..., None], -1)[..., 0]


def one_hot(logits, labels):
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


# --- M1 to M11 ------------------------------------------------------------------------------------


def m1_no_shift(logits, labels):
    return jnp.log(jnp.sum(jnp.exp(logits), -1)) - at(logits, labels)


def m2_normalizer_less_logit(logits, labels):
    return jax.nn.logsumexp(logits, -1) - at(logits, labels)


def m3_log_softmax(logits, labels):
    return -at(jax.nn.log_softmax(logits, -1), labels)


def m4_padded_vocabulary(logits, labels):
    """Padded to a multiple of 2048 with zeros, each of which counts as e^0."""
    widths = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % 2048)]
    return jax.nn.logsumexp(jnp.pad(logits, widths), -1) - at(logits, labels)


def m5_epsilon_in_the_log(logits, labels):
    return -jnp.log(at(jax.nn.softmax(logits, -1), labels) + 1e-7)


def m6_one_hot_times_log_softmax(logits, labels):
    return -jnp.sum(one_hot(logits, labels) * jax.nn.log_softmax(logits, -1), -1)


def m7_bfloat16_inside(logits, labels):
    return m3_log_softmax(logits.astype(jnp.bfloat16), labels).astype(logits.dtype)


def custom_gradient(forward, gradient):
    """``forward`` with a gradient of its own in reverse mode, and no forward mode."""

    @jax.custom_vjp
    def loss(logits, labels):
        return forward(logits, labels)

    def backward(inputs, cotangent):
        return cotangent[..., None] * gradient(*inputs), None

    loss.defvjp(lambda logits, labels: (forward(logits, labels), (logits, labels)), backward)
    return loss


def probability_less_one_hot(logits, labels):
    return jax.nn.softmax(logits, -1) - one_hot(logits, labels)


m8_gradient_half_a_permille_off = custom_gradient(
    m2_normalizer_less_logit, lambda *inputs: 1.0005 * probability_less_one_hot(*inputs)
)
m9_no_forward_mode = custom_gradient(m2_normalizer_less_logit, probability_less_one_hot)


def m10_kink_at_ties(logits, labels):
    """TensorFlow's weighted form, which two classes only can have."""
    if logits.shape[-1] != 2:
        return jaxent.cross_entropy(logits, labels)
    x, z = logits[..., 1] - logits[..., 0], labels.astype(logits.dtype)
    return (1 - z) * x + jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(-x, 0)


def m11_clipped_logits(logits, labels):
    return m3_log_softmax(jnp.clip(logits, -50, 50), labels)


MUTANTS = {
    "M1": m1_no_shift,
    "M2": m2_normalizer_less_logit,
    "M3": m3_log_softmax,
    "M4": m4_padded_vocabulary,
    "M5": m5_epsilon_in_the_log,
    "M6": m6_one_hot_times_log_softmax,
    "M7": m7_bfloat16_inside,
    "M8": m8_gradient_half_a_permille_off,
    "M9": m9_no_forward_mode,
    "M10": m10_kink_at_ties,
    "M11": m11_clipped_logits,
}
CROSS_ENTROPY = oracle.cross_entropy_oracles()


def on_hard_inputs(order):
    def check(loss):
        for classes in oracle.HARD:
            CROSS_ENTROPY[f"{order}: {classes} hard"](loss)

    return check


ORACLES = {
    "value": on_hard_inputs("value"),
    "gradient": on_hard_inputs("gradient"),
    "shift": CROSS_ENTROPY["an exact shift changes no bit"],
    "sum": CROSS_ENTROPY["gradients sum to 0"],
    "-inf": CROSS_ENTROPY["a class may be impossible"],
    "jvp": CROSS_ENTROPY["forward mode works"],
}
KILLED_BY = {
    "M1": "value gradient shift",
    "M2": "value gradient shift",
    "M3": "value gradient",
    "M4": "value gradient shift sum jvp",
    "M5": "value gradient",
    "M6": "value gradient -inf",
    "M7": "value gradient shift sum",
    "M8": "value gradient shift jvp",
    "M9": "value gradient shift jvp",
    "M10": "value gradient",
    "M11": "value gradient shift",
}


@pytest.mark.parametrize(
    ("mutant", "killer"), [(m, killer) for m, row in KILLED_BY.items() for killer in row.split()]
)
def test_dies(mutant, killer):
    with pytest.raises(oracle.Broken):
        ORACLES[killer](MUTANTS[mutant])


@pytest.mark.parametrize("name", ORACLES)
def test_jaxent_survives(name):
    ORACLES[name](jaxent.cross_entropy)


@pytest.mark.parametrize("mutant", ["M1", "M2", "M3", "M5", "M6", "M10", "M11"])
def test_passes_the_usual_tests(mutant):
    """So it takes hard inputs to kill it, and it dies of no slip of ours."""
    loss, classes = jax.jit(MUTANTS[mutant]), 2 if mutant == "M10" else 7
    logits = np.random.default_rng(0).normal(size=(6, classes)).astype(np.float32)
    labels = np.arange(6, dtype=np.int32) % classes
    truth, _ = oracle.many(oracle.cross_entropy, logits, labels)
    np.testing.assert_allclose(loss(logits, labels), truth.astype(np.float32), rtol=1e-5)
    check_grads(lambda x: loss(x, labels), (logits,), order=1, modes=["rev"])


# --- more of the same loss: right forwards, or all but --------------------------------------------


def differentiated_as(tangent):
    """jaxent's value with a derivative of one's own, in both modes."""

    @jax.custom_jvp
    def loss(logits, labels):
        return jaxent.cross_entropy(logits, labels)

    @loss.defjvp
    def _(primals, tangents):
        logits, labels = primals
        return loss(logits, labels), jnp.sum(tangent(logits, labels) * tangents[0], -1)

    return loss


def leading_label(exponential):
    """log1p(Σ e^(x_j − x_y)) for a label that leads, jaxent for one that does not."""

    def loss(logits, labels):
        others = jnp.where(one_hot(logits, labels) == 1, -jnp.inf, logits)
        lead = at(logits, labels) - jnp.max(others, -1)
        rest = jnp.sum(jnp.exp(others - jnp.max(others, -1, keepdims=True)), -1)
        mine = jnp.log1p(exponential(rest, lead))
        return jnp.where(lead > 1, mine, jaxent.cross_entropy(logits, labels))

    return loss


def matches_in_own_dtype(labels, classes):
    place = jnp.broadcast_to(jnp.arange(classes).astype(labels.dtype), (*labels.shape, classes))
    return place == labels[..., None]


def int8_arithmetic(logits, labels):
    is_label = matches_in_own_dtype(labels, logits.shape[-1])
    return -jnp.sum(jnp.where(is_label, jax.nn.log_softmax(logits, -1), 0), -1)


def wraps(logits, labels):
    return jaxent.cross_entropy(logits, labels % logits.shape[-1])


def poisons_the_value_only(logits, labels):
    good = (labels >= 0) & (labels < logits.shape[-1])
    return jnp.where(good, jaxent.cross_entropy(logits, jnp.where(good, labels, 0)), jnp.nan)


def keeps_sixteen_bits(logits, labels):
    return jaxent.cross_entropy(logits, labels).astype(logits.dtype)


def sums_in_sixteen_bits(logits, labels):
    shifted = logits - jnp.max(logits, -1, keepdims=True)
    log_z = jnp.log(jnp.sum(jnp.exp(shifted), -1, dtype=logits.dtype))
    return (log_z - at(shifted, labels)).astype(jnp.float32)


def only_compiled_right(logits, labels):
    """NaN where run eagerly on a class that is ruled out."""
    loss = jaxent.cross_entropy(logits, labels)
    return loss if isinstance(loss, jax.core.Tracer) else loss + 0 * jnp.min(logits, -1)


def first_class_counts_more(logits, labels):
    return jaxent.cross_entropy(logits.at[..., 0].add(1e-3), labels)


# --- other functions ------------------------------------------------------------------------------


def soft_p_less_q(logits, targets):
    """TensorFlow's gradient: right for rows that sum to 1."""

    @jax.custom_jvp
    def loss(logits):
        return jaxent.soft_cross_entropy(logits, targets)

    @loss.defjvp
    def _(primals, tangents):
        slope = jax.nn.softmax(primals[0], -1) - targets
        return loss(*primals), jnp.sum(slope * tangents[0], -1)

    return loss(logits)


def soft_by_log_softmax(logits, targets):
    return -jnp.sum(targets * jax.nn.log_softmax(logits, -1), -1)


def soft_normalized(logits, targets):
    total = jnp.sum(targets, -1, keepdims=True)
    return jaxent.soft_cross_entropy(logits, targets / jnp.where(total == 0, 1, total))


def soft_of_positive_targets(logits, targets):
    return jaxent.soft_cross_entropy(logits, jnp.maximum(targets, 0))


def soft_in_halves(logits, targets):
    """Underflows below twice the smallest normal number."""
    return 2 * jaxent.soft_cross_entropy(logits, targets / 2)


def kl_with_epsilon(logits, targets):
    q = targets + 1e-7
    return jnp.sum(q * (jnp.log(q) - jax.nn.log_softmax(logits, -1)), -1)


def smoothing_spares_the_label(logits, labels, epsilon):
    """ε / (C − 1) on each class but the label."""
    log_p = jax.nn.log_softmax(logits, -1)
    others = (jnp.sum(log_p, -1) - at(log_p, labels)) / (logits.shape[-1] - 1)
    return -(1 - epsilon) * at(log_p, labels) - epsilon * others


def smoothing_of_unshifted_means(logits, labels, epsilon):
    mean_surprise = jax.nn.logsumexp(logits, -1) - jnp.mean(logits, -1)
    return (1 - epsilon) * jaxent.cross_entropy(logits, labels) + epsilon * mean_surprise


def focal_of_plain_power(u, gamma):
    return u * (1 - jnp.exp(-u)) ** gamma


def focal_of_clipped_probability(u, gamma):
    p = jnp.clip(jnp.exp(-u), 1e-7, 1 - 1e-7)
    return -jnp.log(p) * (1 - p) ** gamma


def focal_by_autodiff(u, gamma):
    return u * (-jnp.expm1(-u)) ** gamma


def poly1_of_plain_difference(u, epsilon):
    return u + epsilon * (1 - jnp.exp(-u))


def generalized_of_plain_difference(u, q):
    return jnp.where(q == 0, u, (1 - jnp.exp(-q * u)) / jnp.where(q == 0, 1, q))


def generalized_by_autodiff(u, q):
    return jnp.where(q == 0, u, -jnp.expm1(-q * u) / jnp.where(q == 0, 1, q))


def sigmoid_kink_at_ties(x, z, weight):
    tail = jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(-x, 0)
    return (1 - z) * x + (1 + (weight - 1) * z) * tail


def sigmoid_weight_on_both(x, z, weight):
    return weight * jaxent.sigmoid_cross_entropy(x, z)


def sigmoid_of_clipped_probability(x, z, weight):
    p = jnp.clip(jax.nn.sigmoid(x), 1e-7, 1 - 1e-7)
    return -weight * z * jnp.log(p) - (1 - z) * jnp.log(1 - p)


@functools.partial(jnp.vectorize, signature="(c),(),(c,c)->()")
def cost_by_autodiff(logits, label, costs):
    """p_j (M_j − L), in which M_j − L cancels."""
    return jnp.sum(costs[label] * jax.nn.softmax(logits))


@functools.partial(jnp.vectorize, signature="(c),(),(c,c)->()")
def cost_transposed(logits, label, costs):
    return jaxent.expected_cost(logits, label, costs.T)


def weights_clamped(labels, table):
    return table[np.clip(labels, 0, len(table) - 1)]


def weights_wrapped(labels, table):
    return jnp.asarray(table).at[labels].get(mode="fill", fill_value=jnp.nan)


def weights_by_int8_one_hot(labels, table):
    is_label = matches_in_own_dtype(labels, len(table))
    return jnp.sum(jnp.where(is_label, jnp.broadcast_to(table, is_label.shape), 0), -1)


def mean_over_examples(losses, weights):
    return jaxent.plain_mean(losses, weights)


def mean_over_nonzero(losses, weights):
    return jaxent.nonzero_mean(losses, weights)


def mean_without_guard(losses, weights):
    weights = jnp.asarray(weights).astype(jnp.float32)
    return jnp.sum(weights * losses.astype(np.float32)) / jnp.sum(weights)


def mean_guarded_too_late(losses, weights):
    return jnp.where(jnp.sum(weights) == 0, 0, mean_without_guard(losses, weights))


def mean_of_absolute_weights(losses, weights):
    return jaxent.weighted_mean(losses, jnp.abs(weights))


def mean_in_sixteen_bits(losses, weights):
    losses = jnp.asarray(losses)
    weights = jnp.asarray(weights).astype(losses.dtype)
    return (jnp.sum(weights * losses) / jnp.sum(weights)).astype(jnp.float32)


def mean_of_means(parts):
    return sum(jaxent.weighted_mean(*part) for part in parts) / len(parts)


def mean_of_sums_over_examples(parts):
    sums = [jaxent.weighted_sum(*part) for part in parts]
    return sum(part.total for part in sums) / sum(len(losses) for losses, _ in parts)


OTHERS = {
    "cross_entropy": (
        CROSS_ENTROPY,
        {
            "p_y - 1 for the label": (
                differentiated_as(probability_less_one_hot),
                "gradient: margins 0 to 87",
            ),
            "a gradient half a permille off": (
                differentiated_as(lambda *inputs: 1.0005 * probability_less_one_hot(*inputs)),
                "gradient: ties",
            ),
            "no derivative rule for forward mode": (
                custom_gradient(jaxent.cross_entropy, probability_less_one_hot),
                "forward mode works",
            ),
            "the rounding of a margin": (
                leading_label(lambda rest, lead: rest * jnp.exp(-lead)),
                "value: margins that float32 cannot hold",
            ),
            "an exponential that underflows before the sum does not": (
                leading_label(lambda rest, lead: rest * jnp.exp(-lead)),
                "value: 1000 classes, margins to 94",
            ),
            "int8 arithmetic": (int8_arithmetic, "every integer dtype is a label"),
            "labels that wrap": (wraps, "a bad label poisons its row"),
            "a poisoned value, a finite gradient": (
                poisons_the_value_only,
                "a bad label poisons its row",
            ),
            "losses in bfloat16": (keeps_sixteen_bits, "bfloat16, 50257 classes"),
            "sums in float16": (sums_in_sixteen_bits, "float16, 128256 classes"),
            "eager is not jit": (only_compiled_right, "eager and jit agree"),
            "the first class counts more": (
                first_class_counts_more,
                "the order of the classes is no matter",
            ),
        },
    ),
    "soft_cross_entropy": (
        oracle.soft_cross_entropy_oracles(),
        {
            "p - q": (soft_p_less_q, "gradient: rows that sum to 2"),
            "p - q, no mass": (soft_p_less_q, "gradient: rows that sum to 0"),
            "log_softmax": (soft_by_log_softmax, "value: one-hot, margins 0 to 87"),
            "log_softmax, its gradient": (
                soft_by_log_softmax,
                "gradient: one-hot, margins 0 to 87",
            ),
            "0 times inf": (soft_by_log_softmax, "value: -inf"),
            "normalized": (soft_normalized, "value: rows that sum to 0.5"),
            "positive part": (soft_of_positive_targets, "value: negative targets"),
            "halves that underflow": (soft_in_halves, "value: one-hot, the smallest normal losses"),
        },
    ),
    "kl_divergence": (
        oracle.kl_divergence_oracles(),
        {
            "no entropy": (jaxent.soft_cross_entropy, "value: distributions"),
            "epsilon": (kl_with_epsilon, "value: one-hot, margins 0 to 87"),
        },
    ),
    "smoothed_nll": (
        oracle.smoothed_oracles(),
        {
            "over the other classes": (smoothing_spares_the_label, "value: 0.1, offsets to 1e6"),
            "an offset in the mean": (smoothing_of_unshifted_means, "value: 0.1, offsets to 1e6"),
        },
    ),
    "focal": (
        oracle.focal_oracles(),
        {
            "a plain power": (focal_of_plain_power, "value: 2"),
            "clipped": (focal_of_clipped_probability, "value: 0.5"),
            "clipped, its gradient": (focal_of_clipped_probability, "gradient: 0"),
            "autodiff, in gamma": (focal_by_autodiff, "gradient: 2"),
            "autodiff, twice": (focal_by_autodiff, "curvature: 0.5"),
        },
    ),
    "poly1": (
        oracle.poly1_oracles(),
        {"a plain difference": (poly1_of_plain_difference, "value: 2")},
    ),
    "generalized_cross_entropy": (
        oracle.generalized_oracles(),
        {
            "a plain difference": (generalized_of_plain_difference, "value: 0.7"),
            "autodiff": (generalized_by_autodiff, "gradient: 1"),
            "autodiff, in q": (generalized_by_autodiff, "gradient: 1e-06"),
        },
    ),
    "sigmoid_cross_entropy": (
        oracle.sigmoid_oracles(),
        {
            "a kink at 0": (sigmoid_kink_at_ties, "gradient: target 1, weight 3"),
            "x - x": (sigmoid_kink_at_ties, "value: target 0, weight 1"),
            "the weight on both terms": (sigmoid_weight_on_both, "value: target 0.3, weight 3"),
            "clipped": (sigmoid_of_clipped_probability, "value: target 1, weight 1"),
        },
    ),
    "expected_cost": (
        oracle.expected_cost_oracles(),
        {
            "autodiff": (cost_by_autodiff, "gradient: costs 0 or 1"),
            "autodiff, equal costs": (cost_by_autodiff, "gradient: costs equal for some"),
            "transposed": (cost_transposed, "value: costs equal for some"),
        },
    ),
    "class_weights": (
        oracle.class_weights_oracles(),
        {
            "clamped": (weights_clamped, "never clamps or wraps"),
            "wrapped": (weights_wrapped, "never clamps or wraps"),
            "int8 arithmetic": (weights_by_int8_one_hot, "looks up"),
        },
    ),
    "weighted_mean": (
        oracle.weighted_mean_oracles(),
        {
            "over the examples": (mean_over_examples, "divides by the weights"),
            "over the non-zero weights": (mean_over_nonzero, "divides by the weights"),
            "0 over 0": (mean_without_guard, "no weight, no loss"),
            "0 over 0, its gradient": (mean_guarded_too_late, "no weight, no gradient"),
            "0 times inf": (mean_without_guard, "0 times inf"),
            "absolute weights": (mean_of_absolute_weights, "negative weights count"),
            "in float16": (mean_in_sixteen_bits, "float16 sums beyond its maximum"),
        },
    ),
    "WeightedSum": (
        oracle.mean_of_parts_oracles(),
        {
            "mean of means": (mean_of_means, "equals the whole"),
            "over the examples": (mean_of_sums_over_examples, "equals the whole"),
        },
    ),
}


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, (_, row) in OTHERS.items() for name in row]
)
def test_dies_too(family, name):
    checks, mutants = OTHERS[family]
    mutant, killer = mutants[name]
    with pytest.raises(oracle.Broken):
        checks[killer](mutant)
