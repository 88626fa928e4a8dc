"""The truth about every loss, and the oracles that hold a loss against it.

The truth is the value and the full gradient of a loss in 60-digit arithmetic over the extended
reals: e^−inf = 0, 0 · log 0 = 0, a single logit of +inf is the limit. An oracle takes a loss and
raises Broken, with the worst input, where the loss breaks a law. test_precision.py lets jaxent pass
the oracles, test_mutants.py lets wrong losses fail them; nothing here imports jaxent.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

mp = mpmath.MPContext()
mp.dps = 60

# --- the truth, one example at a time -------------------------------------------------------------
#
# Each function takes one row and returns its value, the first derivatives of that value, then the
# second ones. What would cancel (1 − p_j, M_j − L) is a sum of terms of one sign here too, as 60
# digits do not see e^−700 beside 1. Where a loss is a sum that may cancel all the same, a function
# called _size says how large its terms are: errors are relative to them.


def _exact(number):
    return number if isinstance(number, mp.mpf) else mp.mpf(float(number))


def _product(a, b):
    return mp.zero if a == 0 or b == 0 else a * b


class Softmax:
    """Of a row of logits: ``p``, ``rest`` = 1 − p, ``surprise`` = −log p, and log Σ e^x."""

    def __init__(self, logits):
        x = [mp.mpf(v) for v in logits]
        top = max(range(len(x)), key=lambda j: x[j])
        if any(mp.isnan(v) for v in x) or x[top] == -mp.inf or x.count(mp.inf) > 1:
            self.p = self.rest = self.surprise = [mp.nan] * len(x)
            self.log_normalizer = mp.nan
            return
        gaps = [mp.zero if j == top else x[top] - v for j, v in enumerate(x)]
        weights = [mp.exp(-gap) for gap in gaps]
        others = mp.fsum(weights[:top] + weights[top + 1 :])
        log_z, total = mp.log1p(others), 1 + others
        self.p = [w / total for w in weights]
        self.rest = [(others if j == top else total - w) / total for j, w in enumerate(weights)]
        self.surprise = [gap + log_z for gap in gaps]
        self.log_normalizer = x[top] + log_z

    def hessian(self):
        """The second derivatives of any −log p_y: p_i (δ_ij − p_j)."""
        n = range(len(self.p))
        return [[self.p[i] * (self.rest[i] if i == j else -self.p[j]) for j in n] for i in n]


_cached_softmax = functools.cache(Softmax)


def softmax(logits):
    return _cached_softmax(tuple(map(float, logits)))


def cross_entropy(logits, label):
    """Value and gradient."""
    s = softmax(logits)
    gradient = list(s.p)
    gradient[label] = -s.rest[label]
    return s.surprise[label], gradient


def cross_entropy_to_second_order(logits, label):
    """Value, gradient, Hessian."""
    return *cross_entropy(logits, label), softmax(logits).hessian()


def _hessian_size(s):
    """p_i (δ_ij + p_j): what a Hessian's entries are differences of."""
    n = range(len(s.p))
    return [[s.p[i] * ((i == j) + s.p[j]) for j in n] for i in n]


def soft_cross_entropy(logits, targets):
    """Value, gradient and Hessian in the logits."""
    s, q = softmax(logits), [_exact(v) for v in targets]
    mass = mp.fsum(q)
    value = mp.fsum(_product(a, b) for a, b in zip(q, s.surprise, strict=True))
    gradient = [
        (mass - q_j) * p_j - q_j * rest_j for q_j, p_j, rest_j in zip(q, s.p, s.rest, strict=True)
    ]
    return value, gradient, [[mass * h for h in row] for row in s.hessian()]


def soft_cross_entropy_in_targets(logits, targets):
    """Value, and the gradient in the targets."""
    return soft_cross_entropy(logits, targets)[0], softmax(logits).surprise


def soft_cross_entropy_size(logits, targets):
    s, q = softmax(logits), [abs(_exact(v)) for v in targets]
    mass = mp.fsum(q)
    value = mp.fsum(_product(a, b) for a, b in zip(q, s.surprise, strict=True))
    gradient = [mass * p_j + q_j for q_j, p_j in zip(q, s.p, strict=True)]
    return value, gradient, [[mass * h for h in row] for row in _hessian_size(s)]


def kl_divergence(logits, targets):
    value, *derivatives = soft_cross_entropy(logits, targets)
    q = [_exact(v) for v in targets]
    return value + mp.fsum(v * mp.log(v) for v in q if v), *derivatives


def kl_divergence_size(logits, targets):
    value, *derivatives = soft_cross_entropy_size(logits, targets)
    q = [_exact(v) for v in targets]
    return value + mp.fsum(abs(v * mp.log(v)) for v in q if v), *derivatives


def _smooth_targets(num_classes, label, label_smoothing):
    epsilon = _exact(label_smoothing)
    targets = [epsilon / num_classes] * num_classes
    targets[label] += 1 - epsilon
    return targets


def smoothed_cross_entropy(logits, label, label_smoothing):
    return soft_cross_entropy(logits, _smooth_targets(len(logits), label, label_smoothing))


def smoothed_cross_entropy_size(logits, label, label_smoothing):
    return soft_cross_entropy_size(logits, _smooth_targets(len(logits), label, label_smoothing))


def z_loss(logits):
    s = softmax(logits)
    n, z, p = range(len(s.p)), s.log_normalizer, s.p
    return (
        z**2,
        [2 * z * p_j for p_j in p],
        [[2 * p[i] * p[j] + 2 * z * h for j, h in zip(n, s.hessian()[i], strict=True)] for i in n],
    )


def expected_cost(logits, label, costs):
    """Value, gradient and Hessian in the logits."""
    s, m = softmax(logits), [_exact(v) for v in costs[label]]
    n, p = range(len(m)), s.p
    top = max(n, key=lambda j: p[j])
    top_excess = mp.fsum((m[top] - m[j]) * p[j] for j in n)
    g = [p[j] * ((m[j] - m[top]) + top_excess) for j in n]
    # ∂g_i/∂x_j = p_i (δ_ij − p_j) (M_i − L) − p_i g_j; at i = j = top in terms that do not cancel
    hessian = [[-p[i] * g[j] - p[j] * g[i] for j in n] for i in n]
    for i in n:
        hessian[i][i] = g[i] * (s.rest[i] - p[i])
    return mp.fsum(m[j] * p[j] for j in n), g, hessian


def expected_cost_in_costs(logits, label, costs):
    """Value, and the gradient in the cost matrix: p in the label's row."""
    p = softmax(logits).p
    gradient = [p if i == label else [mp.zero] * len(p) for i in range(len(p))]
    return expected_cost(logits, label, costs)[0], gradient


def expected_cost_size(logits, label, costs):
    s, m = softmax(logits), [_exact(v) for v in costs[label]]
    spread = max(m) - min(m)
    return (
        mp.fsum(abs(a) * b for a, b in zip(m, s.p, strict=True)),
        [spread * p_j for p_j in s.p],
        [[2 * spread * h for h in row] for row in _hessian_size(s)],
    )


def sigmoid_cross_entropy(logit, target, pos_weight):
    """Value, the derivatives in the logit, target and weight; then the second ones, by pairs."""
    z, w = _exact(target), _exact(pos_weight)
    s = softmax([0, logit])
    (no, yes), (if_no, if_yes) = s.p, s.surprise
    return (
        _product(w * z, if_yes) + _product(1 - z, if_no),
        (1 - z) * yes - w * z * no,
        w * if_yes - if_no,
        z * if_yes,
        (w * z + 1 - z) * yes * no,
        -w * no - yes,
        -z * no,
        mp.zero,
        if_yes,
        mp.zero,
    )


def sigmoid_cross_entropy_size(logit, target, pos_weight):
    value, _, _, by_weight, *second = sigmoid_cross_entropy(logit, target, pos_weight)
    z, w = _exact(target), _exact(pos_weight)
    s = softmax([0, logit])
    slope = (1 - z) * s.p[1] + w * z * s.p[0]
    by_target = w * s.surprise[1] + s.surprise[0]
    return value, slope, by_target, by_weight, *(abs(v) for v in second)


# Losses of u = −log p_y and an option: value, ∂u, ∂option, ∂²u, ∂u ∂option, ∂²option.


def focal(u, gamma):
    u, gamma = _exact(u), _exact(gamma)
    q, p = -mp.expm1(-u), mp.exp(-u)
    r, power, log_q = u * p / q, q**gamma, mp.log1p(-p) if u > 1 else mp.log(q)
    slope = power * (1 + gamma * r)
    curvature = gamma * power / q * (2 * p + (gamma - 1) * r * p - u * p)
    value = u * power
    return value, slope, value * log_q, curvature, slope * log_q + power * r, value * log_q**2


def focal_size(u, gamma):
    """The mixed derivative takes the logarithm of a 1 − p_y that is rounded."""
    value, slope, by_gamma, curvature, mixed, by_gamma_twice = (abs(v) for v in focal(u, gamma))
    return value, slope, by_gamma, curvature, mixed + slope, by_gamma_twice


def poly1(u, epsilon):
    u, epsilon = _exact(u), _exact(epsilon)
    q, p = -mp.expm1(-u), mp.exp(-u)
    return u + epsilon * q, 1 + epsilon * p, q, -epsilon * p, p, mp.zero


def generalized_cross_entropy(u, q):
    u, q = _exact(u), _exact(q)
    if q == 0:
        return u, mp.one, -(u**2) / 2, mp.zero, -u, u**3 / 3
    with mp.workdps(400):  # t may be 1e-43, and what is left of by_q_twice is t³/3
        t = q * u
        p = mp.exp(-t)
        value = (1 - p) / q
        by_q = -(1 - (1 + t) * p) / q**2
        by_q_twice = (2 - (2 + 2 * t + t**2) * p) / q**3
    return +value, +p, +by_q, -q * p, -u * p, +by_q_twice


def through_softmax(truth):
    """A loss of (u, option) as one of (logits, label, option): value, gradient, Hessian."""

    def of_logits(logits, label, option):
        u, g = cross_entropy(logits, label)
        value, slope, _, curvature, *_ = truth(u, option)
        hessian = softmax(logits).hessian()
        n = range(len(g))
        return (
            value,
            [slope * g_j for g_j in g],
            [[curvature * g[i] * g[j] + slope * hessian[i][j] for j in n] for i in n],
        )

    return of_logits


def through_softmax_size(truth):
    def of_logits(logits, label, option):
        u, g = cross_entropy(logits, label)
        value, slope, _, curvature, *_ = (abs(v) for v in truth(u, option))
        hessian = _hessian_size(softmax(logits))
        n = range(len(g))
        return (
            value,
            [slope * abs(g_j) for g_j in g],
            [[curvature * abs(g[i] * g[j]) + slope * hessian[i][j] for j in n] for i in n],
        )

    return of_logits


def sigmoid_focal(logit, label, gamma):
    value, gradient, hessian = through_softmax(focal)([0, logit], label, gamma)
    return value, gradient[1], hessian[1][1]


def sigmoid_focal_size(logit, label, gamma):
    value, gradient, hessian = through_softmax_size(focal)([0, logit], label, gamma)
    return value, gradient[1], hessian[1][1]


def only_second_of(truth, size):
    """Value and gradient must be right relative to themselves, second derivatives to their size."""

    def of_row(*row):
        value, gradient, _ = truth(*row)
        return abs(value), [abs(g) for g in gradient], size(*row)[2]

    return of_row


def many(truth, *columns):
    """``truth`` of each row of the columns: an array (long double) for each thing it returns."""
    rows = [truth(*row) for row in zip(*columns, strict=True)]
    return tuple(_array(part) for part in zip(*rows, strict=True))


def _array(entries):
    exact = np.array(entries, object)
    high = exact.astype(float)
    low = np.where(np.isfinite(high), exact - np.where(np.isfinite(high), high, 0), 0).astype(float)
    return high.astype(np.longdouble) + low


def exact_sums(logits, labels):
    """``many(cross_entropy, ...)`` for many classes: float64, with exact sums."""
    values, gradients = [], []
    for row, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        others = np.delete(row, label)
        top = others.max()
        sum_others, lead = math.fsum(np.exp(others - top)), row[label] - top
        if lead > 0:
            log_z = math.log1p(sum_others * math.exp(-lead))
        else:
            log_z = math.log(sum_others + math.exp(lead))
        values.append(max(-lead, 0) + log_z)
        gradients.append(np.exp(row - max(top, row[label]) - log_z))
        gradients[-1][label] = math.expm1(-values[-1])
    return np.array(values, np.longdouble), np.array(gradients, np.longdouble)


# --- how far from the truth -----------------------------------------------------------------------


def _error(got, truth):
    """|got − truth|; 0 for two NaN, and where the truth overflows to what is got."""
    got, truth = np.asarray(got), np.asarray(truth, np.longdouble)
    info = np.finfo(got.dtype)
    largest = np.longdouble(info.max) * (1 + np.longdouble(info.eps) / 4)
    overflows = np.abs(truth) >= largest
    with np.errstate(all="ignore"):
        error = np.abs(got.astype(np.longdouble) - truth)
    error = np.where(overflows, np.where(got == np.copysign(np.inf, truth), 0, np.inf), error)
    return np.where(np.isnan(truth) & np.isnan(got), 0, error)


def ulps(got, truth, size=None, flushed=1):
    """|got − truth| in units in the last place of ``size``, by default of the truth.

    A size below ``flushed`` times the smallest normal number counts as 0: XLA's CPU has no smaller.
    """
    error, info = _error(got, truth), np.finfo(np.asarray(got).dtype)
    size = np.abs(truth) if size is None else np.asarray(size, np.longdouble)
    with np.errstate(all="ignore"):
        exponent = np.frexp(np.where(np.isfinite(size), size, 1))[1] - 1
        ulp = np.ldexp(np.longdouble(1), np.where(np.isfinite(size), exponent, 0) - info.nmant)
        tiny = flushed * np.longdouble(info.tiny)
        return np.where(size < tiny, np.where(error <= tiny, 0, np.inf), error / ulp)


def relative(got, truth, size=None, floor=10):
    """|got − truth| / ``size``, by default |truth|.

    A size below ``floor`` times the smallest normal number counts as 0.
    """
    error, info = _error(got, truth), np.finfo(np.asarray(got).dtype)
    size = np.abs(truth) if size is None else np.asarray(size, np.longdouble)
    floor = floor * np.longdouble(info.tiny)
    with np.errstate(all="ignore"):
        return np.where(size > floor, error / size, np.where(error <= floor, 0, np.inf))


class Broken(AssertionError):
    """A loss is not what it should be."""


def require(errors, limit, law, *columns):
    """Every error within the limit, or Broken with the inputs of the worst row."""
    errors = np.asarray(errors, float)
    worst = errors.reshape(len(errors), -1).max(-1)
    i = np.argmax(np.where(np.isnan(worst), np.inf, worst))
    if not worst[i] <= limit:
        inputs = ", ".join(repr(np.asarray(column)[i]) for column in columns)
        raise Broken(f"{law}: {worst[i]:.3g}, more than {limit:g}, at {inputs}")


# --- cases ----------------------------------------------------------------------------------------


class Case:
    """Inputs of a loss, one example a row, and the truth about them, found when first asked for.

    ``arguments`` are those which the truth's derivatives are taken in.
    """

    def __init__(self, truth, *inputs, size=None, arguments=(0,), floor=10, flushed=1):
        self.inputs = tuple(np.asarray(column) for column in inputs)
        self.arguments, self.floor, self.flushed = arguments, floor, flushed
        self._truth, self._size = truth, size

    @functools.cached_property
    def truth(self):
        if self._truth is exact_sums:
            return exact_sums(*self.inputs)
        return many(self._truth, *self.inputs)

    @functools.cached_property
    def size(self):
        return [None] * len(self.truth) if self._size is None else many(self._size, *self.inputs)

    def in_float64(self):
        """The same numbers, and so the same truth, for a loss to work out in float64."""
        wide = [
            column.astype(np.float64) if column.dtype.kind == "f" else column
            for column in self.inputs
        ]
        case = Case(self._truth, *wide, arguments=self.arguments, floor=self.floor)
        case.truth, case.size = self.truth, self.size
        return case

    @property
    def first(self):
        """Where the first derivatives stand in the truth."""
        return range(1, 1 + len(self.arguments))

    @property
    def second(self):
        return range(1 + len(self.arguments), len(self.truth))


SECOND = {
    "forward over reverse": jax.hessian,
    "reverse over reverse": lambda f, arguments: jax.jacrev(jax.jacrev(f, arguments), arguments),
}


@functools.cache
def _compiled(loss, arguments, order):
    """The loss with all its first, or all its second, derivatives in these arguments.

    ``order`` is 1 or one of SECOND. Of the mixed second derivatives there are both, one after the
    other, with their axes in the order of the arguments.
    """

    def first(*inputs):
        def of(*chosen):
            full = list(inputs)
            for i, value in zip(arguments, chosen, strict=True):
                full[i] = value
            return loss(*full)

        losses, pull_back = jax.vjp(of, *(inputs[i] for i in arguments))
        return losses, *pull_back(jnp.ones_like(losses))

    def second(*inputs):
        blocks = SECOND[order](loss, arguments)(*inputs)
        n = range(len(arguments))

        def pair(i, j):
            rank = inputs[arguments[j]].ndim
            swapped = jnp.moveaxis(blocks[j][i], range(rank), range(-rank, 0))
            return jnp.stack([blocks[i][j], swapped])

        return tuple(pair(i, j) for i in n for j in n if i <= j)

    return jax.jit(first if order == 1 else jax.vmap(second))


def run(loss, inputs, arguments=(0,), order=1):
    """The losses and first derivatives, or the second ones. Short rows are repeated to fill a
    batch of 512, so that one compilation serves every case of as many classes."""
    size = len(inputs[0])
    assert all(jnp.asarray(column).dtype == column.dtype for column in inputs), "rounded by JAX"
    if inputs[0].ndim == 1 or inputs[0].shape[-1] < 10:
        inputs = [
            np.resize(column, (-(-size // 512) * 512, *column.shape[1:])) for column in inputs
        ]
    return [np.asarray(out)[:size] for out in _compiled(loss, arguments, order)(*inputs)]


# --- oracles of any loss --------------------------------------------------------------------------


def value_is_right(loss, case, limit=32):
    """Every value within ``limit`` ulp of the truth."""
    got, *_ = run(loss, case.inputs, case.arguments)
    errors = ulps(got, case.truth[0], case.size[0], case.flushed)
    require(errors, limit, "ulp of the value", *case.inputs)


def gradient_is_right(loss, case, limit=1e-4):
    """Every entry of every first derivative within ``limit``, relative, of the truth."""
    got = run(loss, case.inputs, case.arguments)
    for i in case.first:
        errors = relative(got[i], case.truth[i], case.size[i], case.floor)
        require(errors, limit, f"relative error of derivative {i}", *case.inputs)


def curvature_is_right(loss, case, limit=1e-4):
    """Every entry of every second derivative within ``limit``, relative, of the truth."""
    assert case.second, "a case without second derivatives checks nothing"
    for order in SECOND:
        got = run(loss, case.inputs, case.arguments, order)
        for i, blocks in zip(case.second, got, strict=True):
            for block in np.moveaxis(blocks, 1, 0):
                errors = relative(block, case.truth[i], case.size[i], 100 * case.floor)
                require(errors, limit, f"second derivative {i}, {order}", *case.inputs)


# --- inputs ---------------------------------------------------------------------------------------

_fixed = np.random.default_rng  # called anew with a seed: no oracle's inputs depend on another's
_rng = _fixed(0)
MARGINS = np.arange(88, dtype=np.float32)


def _f32(*rows):
    return np.array(rows, np.float32)


def _i32(*labels):
    return np.array(labels, np.int32)


def _one_hot(labels, classes):
    return np.eye(classes, dtype=np.float32)[labels]


def _normal(rows, classes, scale=1.0, offset=0.0):
    """Normal logits on the 1/16 grid: float32 holds them exactly with every offset used here."""
    return np.round(_rng.normal(size=(rows, classes)) * scale * 16) / 16 + offset


def _labelled(*batches):
    """Each row twice: with its largest class as the label, and with a random one."""
    logits = np.concatenate(batches).astype(np.float32)
    labels = [logits.argmax(-1), _rng.integers(0, logits.shape[-1], len(logits))]
    return np.concatenate([logits, logits]), np.concatenate(labels).astype(np.int32)


def _margins(classes):
    """Rows [d, 0, 0, …] for d = 0 … 87, first labelled 0 and then labelled 1."""
    logits = np.zeros((88, classes), np.float32)
    logits[:, 0] = MARGINS
    return np.concatenate([logits, logits]), np.repeat(_i32(0, 1), 88)


def _rounded_margins(rows):
    """Margins up to 87 that float32 cannot hold, though it holds the logits; labelled 0, then 1."""
    top, gap = _rng.uniform(-50, 50, rows), _rng.uniform(0, 87, rows)
    logits = np.stack([top, top - gap, top - gap - _rng.uniform(0, 3, rows)], -1)
    logits = np.concatenate([logits, [[43.123, -43.5, -43.5], [-12.3, -98.7, -99.1]]])
    return np.concatenate([logits, logits]).astype(np.float32), np.repeat(_i32(0, 1), rows + 2)


def _confident(classes, margins):
    """N(0, 1) logits, but the label's, which leads the largest of the others by the margin."""
    rows = np.arange(len(margins))
    logits = _rng.normal(size=(len(rows), classes)).astype(np.float32)
    labels = _rng.integers(0, classes, len(rows), np.int32)
    logits[rows, labels] = -np.inf
    logits[rows, labels] = logits.max(-1) + np.asarray(margins, np.float32)
    return logits, labels


def _flat(classes):
    logits = np.repeat(_f32(0, 0.1, -1e6, 3e38)[:, None], classes, 1)
    return logits, _rng.integers(0, classes, 4, np.int32)


TIES = (
    _f32(
        [0, 0, 0, 0, 0, 0, 0],
        [7, 7, 0, -3, -3, -3, -3],
        [7, 7, 0, -3, -3, -3, -3],
        [0, 30, 30, 30, 30, -30, -30],
        [1e6, 1e6, 1e6, 0, 0, 0, 0],
        [1e-30, 1e-30, 0, 0, 0, 0, 0],
    ),
    _i32(4, 0, 2, 0, 1, 0),
)
HUGE = (
    _f32(
        [3e38, 3e38, 0],
        [3e38, -3e38, 0],
        [3e38, -3e38, 0],
        [-3e38, -3e38, -3e38],
        [1e38, -3.4e38, -3.4e38],
        [3.4028235e38, 3.4028235e38, 0],
        [3.4028235e38, -3.4028235e38, -3.4028235e38],
    ),
    _i32(0, 0, 1, 2, 0, 1, 1),
)
INFINITE = (
    _f32(
        [-np.inf, 2, 0],
        [-np.inf, 2, 0],
        [-np.inf, -np.inf, 0],
        [np.inf, 0, 1],
        [-np.inf, -np.inf, -np.inf],
        [np.inf, np.inf, 0],
        [np.nan, 0, 0],
    ),
    _i32(1, 0, 2, 0, 0, 0, 1),
)
_LARGEST = np.finfo(np.float32).max
EXTREMES = (
    np.repeat(
        _f32(
            *itertools.product(
                [0, 88, -104, 1e9, 3e38, -3e38, _LARGEST, -_LARGEST, np.inf, -np.inf], repeat=3
            )
        ),
        3,
        axis=0,
    ),
    np.tile(_i32(0, 1, 2), 1000),
)
RANDOM = _labelled(*(_normal(16, 7, 3, offset) for offset in (0, 1e3, 65536, 1e6)))

# The inputs that kill every mutant of reliability.md: offsets, confident rows, ties.
HARD = {
    classes: _labelled(
        *(_normal(4, classes, scale, offset) for scale in (1, 20) for offset in (0, 1000)),
        np.zeros((1, classes)),
    )
    for classes in (2, 7, 300)
}
HARD[2] = tuple(
    np.concatenate([a, b]) for a, b in zip(HARD[2], (_f32([0, 0]), _i32(1)), strict=True)
)

# −log p_y from 1e-38 to 100: those of margins −87 … 87, and more of the tiny ones.
SURPRISES = np.unique(
    np.concatenate(
        [np.log1p(np.exp(-MARGINS)), np.logaddexp(0, MARGINS), np.geomspace(2e-38, 1, 99)]
    )
).astype(np.float32)


def _grid(values, options):
    """Every value with every option."""
    pairs = np.meshgrid(np.asarray(values, np.float32), np.asarray(options, np.float32))
    return tuple(column.ravel() for column in pairs)


# --- the oracles of each loss ---------------------------------------------------------------------


def _suite(cases, value=32, gradient=1e-4, curvature=None):
    """An oracle for each case and each order of derivative."""
    checks = {}
    for name, case in cases.items():
        for order, check, limit in (
            ("value", value_is_right, value),
            ("gradient", gradient_is_right, gradient),
            ("curvature", curvature_is_right, curvature),
        ):
            if limit is not None:
                checks[f"{order}: {name}"] = functools.partial(check, case=case, limit=limit)
    return checks


# --- cross-entropy of integer labels: loss(logits, labels) ----------------------------------------

CROSS_ENTROPY = {
    "margins 0 to 87": _margins(4),
    "two classes, margins 0 to 87": _margins(2),
    "margins that float32 cannot hold": _rounded_margins(200),
    "offsets to 1e6": RANDOM,
    "ties": TIES,
    "3e38": HUGE,
    "infinities": INFINITE,
    "every triple of extremes": EXTREMES,
    "1000 classes, margins to 94": _confident(1000, [5, 17, 40, 80, 87, 90, 92, 94]),
    "131072 classes, margins to 98": _confident(131072, [17, 80, 90, 98]),
    **{f"{classes} flat": _flat(classes) for classes in (1, 2, 3, 300, 1000, 32000, 131072)},
    **{f"{classes} hard": inputs for classes, inputs in HARD.items()},
}


@functools.cache
def cross_entropy_oracles():
    few, many_classes = {}, {}
    for name, inputs in CROSS_ENTROPY.items():
        classes = inputs[0].shape[-1]
        if classes < 10 and inputs is not EXTREMES:  # second derivatives at infinity: no promise
            few[name] = Case(cross_entropy_to_second_order, *inputs)
        else:
            many_classes[name] = Case(cross_entropy if classes <= 1000 else exact_sums, *inputs)
    leading = [column[:88] for column in _margins(4)]
    few["margins 0 to 87 of the label"] = Case(cross_entropy_to_second_order, *leading)
    return {
        **_suite(few, curvature=1e-4),
        **_suite(many_classes),
        **{
            law.__name__.replace("_", " "): law
            for law in (
                an_exact_shift_changes_no_bit,
                the_order_of_the_classes_is_no_matter,
                the_size_of_the_batch_is_no_matter,
                eager_and_jit_agree,
                gradients_sum_to_0,
                a_class_may_be_impossible,
                forward_mode_works,
                every_integer_dtype_is_a_label,
                a_bad_label_poisons_its_row,
            )
        },
        **{
            f"{dtype}, {classes} classes": functools.partial(
                sixteen_bits_are_enough, dtype, classes
            )
            for dtype in ("bfloat16", "float16")
            for classes in (50257, 128256)
        },
    }


def an_exact_shift_changes_no_bit(loss):
    """On the 1/64 grid x + 256 is exact, and no difference of logits changes."""
    logits, labels = _labelled(np.round(_fixed(1).normal(size=(64, 7)) * 8 * 64) / 64)
    for call in (jax.jit(loss), loss):
        here, there = call(logits, labels), call(logits + np.float32(256), labels)
        require(np.asarray(here) != np.asarray(there), 0, "changed by + 256", logits, labels)


def the_order_of_the_classes_is_no_matter(loss):
    logits, labels = _labelled(_fixed(2).normal(size=(16, 300)) * 3)
    order = _fixed(2).permuted(np.tile(np.arange(300), (len(labels), 1)), axis=-1)
    moved = np.argsort(order, -1)[np.arange(len(labels)), labels].astype(np.int32)
    moved_logits = np.take_along_axis(logits, order, -1)
    got, expected = run(loss, (moved_logits, moved))[0], run(loss, (logits, labels))[0]
    require(ulps(got, expected), 2, "ulp between two orders", logits, labels)


def the_size_of_the_batch_is_no_matter(loss, second=lambda labels, classes: labels):
    """XLA's CPU tiles large batches; in jaxlib 0.12.0 one shape's float iota serves another."""
    for classes in (2, 3, 7):
        logits, labels = _labelled(_fixed(classes).normal(size=(1536, classes)) * 10)
        values, gradients = exact_sums(logits, labels)
        got, gradient = run(loss, (logits, second(labels, classes)))
        require(ulps(got, values), 32, "ulp of the value", logits, labels)
        require(relative(gradient, gradients), 1e-4, "error of the gradient", logits, labels)


def eager_and_jit_agree(loss):
    for logits, labels in (RANDOM, HUGE, INFINITE, _margins(2)):
        eager, jitted = loss(logits, labels), jax.jit(loss)(logits, labels)
        require(ulps(eager, jitted), 2, "ulp between eager and jit", logits, labels)


def gradients_sum_to_0(loss):
    for inputs in HARD.values():
        gradient = run(loss, inputs)[1].astype(np.float64)
        require(np.abs(gradient.sum(-1)), 1e-6, "sum of the gradient", *inputs)


def a_class_may_be_impossible(loss):
    """A logit of −inf: finite loss, zero gradient, also when nothing is compiled."""
    logits, labels = _f32([-np.inf, 2, 0], [3, -np.inf, -np.inf], [1, -np.inf, 5]), _i32(1, 0, 0)
    case = Case(cross_entropy, logits, labels)
    value_is_right(loss, case)
    gradient_is_right(loss, case)
    require(ulps(loss(logits, labels), case.truth[0]), 32, "ulp of the eager value", logits, labels)


def forward_mode_works(loss):
    """Along a common shift the derivative is 0; along any other it is that of reverse mode."""
    logits, labels = HARD[7]
    gradient = run(loss, (logits, labels))[1].astype(np.float64)
    other = _fixed(3).normal(size=logits.shape).astype(np.float32)
    jvp = jax.jit(lambda tangent: jax.jvp(lambda x: loss(x, labels), (logits,), (tangent,)))
    for tangent, truth in (np.ones_like(logits), 0), (other, (gradient * other).sum(-1)):
        try:
            _, got = jvp(tangent)
        except TypeError as error:
            raise Broken("no forward mode") from error
        require(np.abs(np.asarray(got) - truth), 1e-5, "error of a jvp", logits, labels, tangent)


def every_integer_dtype_is_a_label(loss):
    """Labels are widened before they meet a class index: 300 is 44 in eight bits."""
    logits = _fixed(4).normal(size=(4, 300)).astype(np.float32)
    labels = [0, 44, 100, 127]
    truth = many(cross_entropy, logits, labels)
    for dtype in ("int8", "uint8", "int16", "uint32"):
        case = Case(cross_entropy, logits, np.array(labels, dtype))
        case.truth = truth
        value_is_right(loss, case)
        gradient_is_right(loss, case)


def a_bad_label_poisons_its_row(loss):
    """Value and gradient are NaN, and the other rows are as they were."""
    labels = _i32(-1, 1, -4, 4, 2, 2**31 - 1, -(2**31), -100)
    logits = _fixed(5).normal(size=(8, 4)).astype(np.float32)
    value, gradient = run(loss, (logits, labels))
    good = (labels >= 0) & (labels < 4)
    require(np.isnan(value) == good, 0, "NaN value", logits, labels)
    require((np.isnan(gradient) == good[:, None]), 0, "NaN gradient", logits, labels)


def sixteen_bits_are_enough(dtype, classes, loss):
    """16-bit logits: a loss in float32, and gradients right to half a unit of the 16-bit type."""
    scales = np.array([0, 0, 1, 1, 3, 3])[:, None]
    logits = (_fixed(6).normal(size=(6, classes)) * scales).astype(jnp.dtype(dtype))
    labels = _fixed(6).integers(0, classes, 6, np.int32)
    values, gradients = exact_sums(logits, labels)
    got, gradient = run(loss, (logits, labels))
    if got.dtype != np.float32 or gradient.dtype != logits.dtype:
        raise Broken(f"of {dtype} logits: {got.dtype} losses, {gradient.dtype} gradients")
    require(ulps(got, values), 32, "ulp of the value", labels)
    info = jnp.finfo(dtype)  # float16 holds 2^−24 and its multiples below 2^−14
    exponent = np.maximum(np.frexp(gradients)[1] - 1, info.minexp)
    error = np.abs(gradient.astype(np.float64) - gradients)
    units = error / np.ldexp(np.longdouble(1), exponent - info.nmant)
    require(units, 0.51, f"units of {dtype} between a gradient and the truth", labels)


# --- soft targets: loss(logits, targets) ----------------------------------------------------------


def _one_hot_cases(truth):
    logits, labels = _margins(4)
    rounded, at = _rounded_margins(100)
    inputs = {
        "one-hot, margins 0 to 87": (logits, _one_hot(labels, 4)),
        "one-hot times 2, margins 0 to 87": (logits, 2 * _one_hot(labels, 4)),
        "one-hot, margins that float32 cannot hold": (rounded, _one_hot(at, 3)),
        "one-hot, 3e38": (HUGE[0], _one_hot(HUGE[1], 3)),
        "-inf": (
            _f32([-np.inf, 2, 0], [-np.inf, 2, 0], [-np.inf, 2, 0]),
            _f32([0, 0.6, 0.4], [0.1, 0.5, 0.4], [0, 1, 0]),
        ),
    }
    return {name: Case(truth, *pair) for name, pair in inputs.items()}


def _smallest_losses(truth):
    """One-hot rows of which the loss is just a normal number, and its gradient all but one."""
    logits = np.linspace(86.6, 87.3, 32, dtype=np.float32)[:, None] * _f32(1, 0, -1)
    case = Case(truth, logits, _one_hot([0] * 32, 3))
    return _suite({"one-hot, the smallest normal losses": case}, gradient=None)


def _distribution_cases(truth, size):
    logits, _ = RANDOM
    targets = _fixed(7).dirichlet(np.full(7, 0.3), len(logits)).astype(np.float32)
    return {
        "distributions": Case(truth, logits, targets, size=size),
        "distributions, margins 0 to 87": Case(
            truth,
            _margins(4)[0],
            np.repeat(_f32([0.7, 0.1, 0.1, 0.1], [0, 0.5, 0.5, 0]), 88, 0),
            size=size,
        ),
    }


@functools.cache
def soft_cross_entropy_oracles():
    truth, size = soft_cross_entropy, soft_cross_entropy_size
    one_hot, distributions = _one_hot_cases(truth), _distribution_cases(truth, size)
    logits, targets = distributions["distributions"].inputs
    negative = targets - np.eye(7, dtype=np.float32)[0] / 2
    sums = {
        f"rows that sum to {mass}": Case(truth, logits, targets * np.float32(mass), size=size)
        for mass in (2, 0.5, 0)
    }
    signed = {"negative targets": Case(truth, logits, negative, size=size)}
    extremes = Case(
        lambda *row: truth(*row)[:2],
        EXTREMES[0],
        _one_hot(EXTREMES[1], 3),
        size=lambda *row: only_second_of(truth, size)(*row)[:2],
    )
    in_targets = {
        "in the targets": Case(soft_cross_entropy_in_targets, logits, targets, arguments=(1,))
    }
    return {
        **_suite(one_hot | distributions | sums | signed, curvature=1e-4),
        **_suite(in_targets, gradient=1e-6),
        **_suite({"one-hot, every triple of extremes": extremes}),
        **_smallest_losses(truth),
        "the size of the batch is no matter": functools.partial(
            the_size_of_the_batch_is_no_matter, second=_one_hot
        ),
    }


@functools.cache
def kl_divergence_oracles():
    one_hot = _one_hot_cases(kl_divergence)
    del one_hot["one-hot times 2, margins 0 to 87"]  # 2 log 2 of entropy hides small losses
    distributions = _distribution_cases(kl_divergence, kl_divergence_size)
    targets = distributions["distributions"].inputs[1]
    distributions["of itself"] = Case(
        kl_divergence,
        np.log(np.maximum(targets, 1e-30)),
        targets,
        size=kl_divergence_size,
    )
    return {
        **_suite(one_hot),
        **_suite(distributions, curvature=1e-4),
        **_smallest_losses(kl_divergence),
    }


# --- losses of an option: loss(logits, labels, option), loss(u, option) ---------------------------


@functools.cache
def smoothed_oracles():
    truth, size = smoothed_cross_entropy, smoothed_cross_entropy_size
    cases = {}
    for name in ("margins 0 to 87", "offsets to 1e6", "3e38"):
        logits, labels = CROSS_ENTROPY[name]
        for epsilon in (0, 0.1, 1):
            option = np.full(len(labels), epsilon, np.float32)
            cases[f"{epsilon}, {name}"] = Case(truth, logits, labels, option, size=size, floor=1000)
    return _suite(cases, curvature=1e-4)


@functools.cache
def z_loss_oracles():
    logits, labels = (column[:32] for column in RANDOM)
    return _suite({"normal": Case(lambda x, y: z_loss(x), logits, labels)}, curvature=1e-4)


def _of_surprise(truth, options, size=None):
    return {
        f"{option:g}": Case(
            truth,
            SURPRISES,
            np.full_like(SURPRISES, option),
            size=size,
            arguments=(0, 1),
            floor=1000,
        )
        for option in options
    }


def _of_logits(truth, options):
    """Of logits (0, d) and (d, 0) for d = 0 … 87."""
    logits, labels = _margins(2)
    return {
        f"{option:g}, margins -87 to 87": Case(
            through_softmax(truth),
            logits,
            labels,
            np.full(len(labels), option, np.float32),
            size=through_softmax_size(truth),
            floor=1000,
        )
        for option in options
    }


GAMMAS, EPSILONS, QS = (0, 0.1, 0.5, 1, 2, 5), (-0.9, -0.5, -1e-3, 0, 1, 2), (0, 1e-6, 0.3, 0.7, 1)


@functools.cache
def focal_oracles():
    """Of (u, gamma). A power's relative error grows with its exponent."""
    return _suite(_of_surprise(focal, GAMMAS, focal_size), curvature=1e-4)


@functools.cache
def focal_of_logits_oracles():
    return _suite(_of_logits(focal, GAMMAS), curvature=1e-4)


@functools.cache
def sigmoid_focal_oracles():
    """Of (logit, label, gamma)."""
    logits, gammas = _grid(np.concatenate([-MARGINS, MARGINS]), GAMMAS)
    cases = {
        name: Case(
            sigmoid_focal,
            logits,
            np.full(len(logits), label, np.int32),
            gammas,
            size=sigmoid_focal_size,
            floor=1000,
        )
        for label, name in enumerate(("negatives", "positives"))
    }
    return _suite(cases, curvature=1e-4)


@functools.cache
def poly1_oracles():
    cases = _of_surprise(poly1, EPSILONS) | _of_surprise(poly1, (-1,))
    return _suite(cases, curvature=1e-4)


@functools.cache
def generalized_oracles():
    return _suite(_of_surprise(generalized_cross_entropy, QS), curvature=1e-4)


@functools.cache
def generalized_of_logits_oracles():
    return _suite(_of_logits(generalized_cross_entropy, (1e-6, 0.7)), curvature=1e-4)


# --- independent classes: loss(logits, targets, pos_weights) --------------------------------------


@functools.cache
def sigmoid_oracles():
    x = np.concatenate([np.linspace(-100, 100, 801), [3e38, -3e38, 1e-30, -1e-30, 87.3, -87.3]])
    cases = {}
    for weight in (1, 3, 0):
        for target in (0, 1, 0.3):
            inputs = (
                a.astype(np.float32) for a in (x, np.full_like(x, target), np.full_like(x, weight))
            )
            cases[f"target {target}, weight {weight}"] = Case(
                sigmoid_cross_entropy,
                *inputs,
                size=sigmoid_cross_entropy_size,
                arguments=(0, 1, 2),
                flushed=4,  # three times a flushed −log p
            )
    return _suite(cases, value=2, gradient=1e-6, curvature=1e-5)


# --- expected cost: loss(logits, labels, cost matrices) -------------------------------------------

_COSTS = {
    "0 or 1": 1 - np.eye(4),
    "graded": np.abs(np.arange(4)[:, None] - np.arange(4.0)) ** 2,
    "equal for some": np.array([[0, 1, 10, 1], [1, 0, 1, 1], [1, 1, 0, 5], [2, 2, 2, 2]]),
    "of either sign": np.array([[-1, 1, 2, -3], [1, -2, 1, 1], [1, -1, 0, 5], [3, 2, -2, 2]]),
}


@functools.cache
def expected_cost_oracles():
    logits, _ = _margins(4)
    labels = np.tile(_i32(0, 1, 2, 3), 44)
    order = np.tile(np.repeat(np.arange(4), 4), 11)
    logits = np.stack([np.roll(row, k) for row, k in zip(logits[:88], order[:88], strict=False)])
    logits = np.concatenate([logits, logits])
    strict = only_second_of(expected_cost, expected_cost_size)

    def case(costs, logits, labels, size=strict):
        batch = np.tile(costs.astype(np.float32), (len(labels), 1, 1))
        return Case(expected_cost, logits, labels, batch, size=size, floor=1000)

    cases = {
        f"costs {name}": case(
            costs, logits, labels, expected_cost_size if name == "of either sign" else strict
        )
        for name, costs in _COSTS.items()
    }
    rounded = case(1 - np.eye(3), *_rounded_margins(100))
    inputs = cases["costs of either sign"].inputs
    in_costs = {"in the costs": Case(expected_cost_in_costs, *inputs, arguments=(2,), floor=1000)}
    return {
        **_suite(cases, curvature=1e-4),
        **_suite({"margins that float32 cannot hold": rounded}),
        **_suite(in_costs, value=None, gradient=1e-6),
    }


# --- weights and means ----------------------------------------------------------------------------


@functools.cache
def class_weights_oracles():
    """Of loss(labels, table)."""

    def looks_up(class_weights):
        table = _f32(*range(300))
        for dtype in ("int8", "uint8", "int16", "int32", "uint32"):
            labels = np.array([0, 44, 100, 127], dtype)
            require(np.asarray(class_weights(labels, table)) != table[labels], 0, "weight", labels)

    def never_clamps_or_wraps(class_weights):
        labels = _i32(-1, -3, 3, 4, -100, 2**31 - 1, -(2**31))
        got = np.asarray(class_weights(labels, _f32(1, 2, 5)))
        require(~np.isnan(got), 0, "not NaN", labels)

    return {"looks up": looks_up, "never clamps or wraps": never_clamps_or_wraps}


@functools.cache
def weighted_mean_oracles():
    """Of mean(losses, weights), Σ w·l / Σ w."""

    def means(*rows):
        def is_right(mean):
            for losses, weights, truth in rows:
                got = np.asarray(mean(losses, weights))
                require(ulps(got, truth)[None], 2, "ulp of the mean", [losses], [weights])

        return is_right

    def has_no_gradient(mean):
        gradient = np.asarray(jax.grad(mean)(losses, np.zeros_like(losses)))
        require(gradient != 0, 0, "gradient of no weight", losses)

    losses = _f32(0.5, 0.25, 4)
    overflowing = np.full(20000, 10, np.float16)
    return {
        "divides by the weights": means(
            (losses, _f32(1, 3, 2), 9.25 / 6), (losses, _f32(10, 30, 20), 9.25 / 6)
        ),
        "negative weights count": means((losses, _f32(1, 3, -2), -6.75 / 2)),
        "no weight, no loss": means((losses, _f32(0, 0, 0), 0)),
        "no weight, no gradient": has_no_gradient,
        "0 times inf": means((_f32(1, np.inf, np.nan), _f32(2, 0, 0), 1)),
        "a bool mask": means((losses, np.array([True, False, True]), 2.25)),
        "float16 sums beyond its maximum": means((overflowing, np.ones_like(overflowing), 10)),
    }


@functools.cache
def mean_of_parts_oracles():
    """Of mean([(losses, weights), …]): that of the batch which the parts make up."""

    def equals_the_whole(mean):
        losses = _fixed(8).uniform(0, 4, 64).astype(np.float32)
        weights = (_fixed(8).integers(0, 9, 64) * (np.arange(64) % 7 > 0)).astype(np.float32)
        truth = math.fsum(np.float64(losses) * weights) / weights.sum()
        for cuts in ([16, 32, 48], [24]):
            parts = list(zip(np.split(losses, cuts), np.split(weights, cuts), strict=True))
            require(ulps(mean(parts), truth)[None], 2, "ulp of the mean", [cuts])

    return {"equals the whole": equals_the_whole}


# --- float64: under jax.enable_x64(True) ----------------------------------------------------------


def float64_cases():
    top, gap = _fixed(9).uniform(-500, 500, 64), _fixed(9).uniform(0, 700, 64)
    margins = np.zeros((101, 3))
    margins[:, 0] = np.arange(0, 701, 7)
    logits = np.concatenate(
        [
            margins,
            np.stack([top, top - gap, top - gap - 1], -1),
            [[1.7e308, 1.7e308, 0], [1.7e308, -1.7e308, 0], [-1.7e308, 1.7e308, 0]],
            [[1e15, 1e15 + 1, 1e15 - 2]],
        ]
    )
    labels = np.repeat(_i32(0, 1), len(logits))
    logits = np.concatenate([logits, logits])
    return {
        "cross_entropy": Case(cross_entropy_to_second_order, logits, labels),
        "soft_cross_entropy": Case(soft_cross_entropy, logits, np.eye(3)[labels]),
        "focal": Case.in_float64(_of_surprise(focal, (0.5,), focal_size)["0.5"]),
        "generalized_cross_entropy": Case.in_float64(
            _of_surprise(generalized_cross_entropy, (0.3,))["0.3"]
        ),
    }
