"""jaxent.compat.torch beside torch.nn.functional."""

import itertools
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import agree, cotangents, distributions, draw, is_float, ours, rounded

torch = pytest.importorskip("torch")

from jaxent.compat import torch as F  # noqa: E402

theirs = torch.nn.functional
torch.set_num_threads(1)
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
REDUCTIONS = ("mean", "sum", "none")


def tensor(x, dtype):
    return torch.tensor(x).to(DTYPES[dtype]) if is_float(x) else torch.tensor(x)


def reference(function, primals, dtype, **fixed):
    primals = [tensor(p, dtype).requires_grad_() for p in primals]
    fixed = {k: tensor(v, dtype) if isinstance(v, np.ndarray) else v for k, v in fixed.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kl_div's, on its own default
        value = function(*primals, **fixed)
    value.backward(torch.tensor(cotangents(tuple(value.shape))).to(value.dtype))
    gradients = [p.grad.double().numpy() for p in primals]
    return value.detach().double().numpy(), str(value.dtype).removeprefix("torch."), gradients


def check(name, primals, dtype="float32", compiled=True, **fixed):
    primals = [rounded(p, dtype) for p in primals]
    fixed = {k: rounded(v, dtype) for k, v in fixed.items()}
    agree(
        ours(getattr(F, name), primals, dtype, compiled, **fixed),
        reference(getattr(theirs, name), primals, dtype, **fixed),
        dtype,
        (name, [p.shape for p in primals], dtype, fixed),
    )


SHAPES = [(6, 5), (5,), (3, 4, 2), (2, 3, 2, 3), (2, 4, 1, 2, 2)]  # classes on 1, or 0 of (5,)
TABLE = np.array([0.5, 0.0, 2.0, 1.25, 3.0])


def classes_of(shape):
    return shape[min(1, len(shape) - 1)]


def labels_of(shape, ignored=-100):
    batch = shape[:1] * (len(shape) > 1) + shape[2:]
    labels = np.random.default_rng(3).integers(0, classes_of(shape), batch)
    return np.where(np.arange(labels.size).reshape(batch) % 3 == 1, ignored, labels)


def options(full):
    """Weighted or not, smoothed or not, each reduction; a part of them where not ``full``."""
    every = itertools.product((False, True), (0.0, 0.1), REDUCTIONS)
    return list(every) if full else [(True, 0.1, "mean"), (False, 0.1, "none"), (True, 0.0, "sum")]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy_of_indices(shape):
    for weighted, smoothing, reduction in options(shape == SHAPES[0]):
        for ignored in (-100, 1) if shape == SHAPES[0] else (-100,):
            check(
                "cross_entropy",
                [draw(1, *shape)],
                target=labels_of(shape, ignored),
                weight=TABLE[: classes_of(shape)] if weighted else None,
                ignore_index=ignored,
                label_smoothing=smoothing,
                reduction=reduction,
                compiled=shape != SHAPES[0],
            )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy_of_probabilities(shape):
    q = 1.5 * distributions(2, *shape, axis=min(1, len(shape) - 1))  # rows need not sum to 1
    for weighted, smoothing, reduction in options(shape == SHAPES[0]):
        check(
            "cross_entropy",
            [draw(1, *shape), q],
            weight=TABLE[: classes_of(shape)] if weighted else None,
            label_smoothing=smoothing,
            reduction=reduction,
            compiled=shape != SHAPES[0],
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    """A result has the input's dtype; uint8 labels are as good as int64."""
    x, y, q = draw(4, 6, 5), labels_of((6, 5)), distributions(5, 6, 5)
    check("cross_entropy", [x], dtype, target=y, weight=TABLE, label_smoothing=0.1)
    check("cross_entropy", [x, q], dtype, reduction="none")
    check("cross_entropy", [x], dtype, target=np.abs(y).astype(np.uint8) % 5, reduction="none")
    check("nll_loss", [np.log(q)], dtype, target=y, weight=TABLE)
    check("binary_cross_entropy_with_logits", [x, q], dtype, pos_weight=TABLE)
    # 0.01 of an ulp of 16 bits is no logarithm: probabilities away from 1
    check("binary_cross_entropy", [0.8 * q + 0.1, q], dtype, weight=TABLE)
    check("kl_div", [np.log(distributions(6, 6, 5)), q], dtype, reduction="batchmean")
    check("multilabel_soft_margin_loss", [x, q], dtype, weight=TABLE)
    check("soft_margin_loss", [x], dtype, target=np.sign(q - 0.2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nll_loss(shape):
    for weighted, _, reduction in options(shape == SHAPES[0]):
        check(
            "nll_loss",
            [draw(1, *shape)],  # taken as it is: nothing need sum to 1
            target=labels_of(shape),
            weight=TABLE[: classes_of(shape)] if weighted else None,
            reduction=reduction,
            compiled=shape != SHAPES[0],
        )


def linear_arguments(*batch):
    return draw(1, *batch, 3, scale=1.0), draw(2, 5, 3), draw(3, 5)


def test_linear_cross_entropy():
    """Reductions, weights, smoothing, bias; all rows at once and in chunks of 4."""
    x, head, bias = linear_arguments(6)
    y = np.array([0, 4, -100, 2, 2, 1])
    for weighted, smoothing, reduction in options(True):
        check(
            "linear_cross_entropy",
            [x, head],
            target=y,
            linear_bias=bias,
            weight=TABLE if weighted else None,
            label_smoothing=smoothing,
            reduction=reduction,
            compiled=False,
        )
    _, _, wanted = reference(theirs.linear_cross_entropy, [x, head], "float32", target=y)
    _, _, chunked = ours(F.linear_cross_entropy, [x, head], "float32", target=y, options=4)
    for got, want in zip(chunked, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_linear_cross_entropy_of_other_targets():
    x, head, bias = linear_arguments(6)
    name = "linear_cross_entropy"
    check(name, [x, head], target=distributions(4, 6, 5), linear_bias=bias)
    check(name, [x[0], head], target=np.array(2))
    check(name, [x, head], target=np.full(6, 3), ignore_index=3)
    wide = draw(5, 5, 2, 3)
    check(name, [x, wide], target=np.arange(12).reshape(6, 2) % 5, weight=TABLE)


@pytest.mark.parametrize("shape", [(), (5,), (6, 5), (2, 3, 5), (2, 1, 2, 5)], ids=str)
def test_binary_cross_entropy_with_logits(shape):
    x, z = draw(7, *(shape or (1,))).reshape(shape), np.random.default_rng(8).uniform(size=shape)
    columns = TABLE if shape else np.array(2.0)
    rows = np.linspace(0, 2, 6)[:, None] if shape == (6, 5) else columns
    for weight, positive in itertools.product((None, columns, rows), (None, columns)):
        check("binary_cross_entropy_with_logits", [x, z], weight=weight, pos_weight=positive)
    for reduction in REDUCTIONS:
        check("binary_cross_entropy_with_logits", [x, z], weight=rows, reduction=reduction)


@pytest.mark.parametrize("shape", [(), (5,), (6, 5), (2, 3, 5), (2, 1, 2, 5), (1, 2, 1, 2, 5)])
def test_binary_cross_entropy(shape):
    p, z = (np.asarray(u) for u in np.random.default_rng(8).uniform(0.01, 0.99, (2, *shape)))
    columns = TABLE if shape else np.array(2.0)
    rows = np.linspace(0, 2, 6)[:, None] if shape == (6, 5) else columns
    check("binary_cross_entropy", [p, z], weight=columns)
    for reduction in REDUCTIONS:
        check("binary_cross_entropy", [p, z], weight=rows, reduction=reduction, compiled=False)
        check(
            "binary_cross_entropy",
            [p],
            target=np.asarray(z.round()),
            reduction=reduction,
            compiled=False,
        )


@pytest.mark.parametrize(
    ("shape", "other"), [((6, 5), (6, 5)), ((5,), (6, 5)), ((6, 5), (5,)), ((2, 3, 5), (3, 1))]
)
def test_kl_div(shape, other):
    log_p, q = np.log(distributions(1, *shape)), distributions(2, *other)
    for reduction in (*REDUCTIONS, "batchmean"):
        check("kl_div", [log_p, q], reduction=reduction)
    check("kl_div", [log_p, np.log(q)], log_target=True, reduction="none")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_margins_that_are_soft(reduction):
    x, z = draw(7, 6, 5), np.random.default_rng(8).uniform(size=(6, 5))
    name, rows = "multilabel_soft_margin_loss", np.linspace(0, 2, 6)[:, None]
    for weight in (None, TABLE, rows):
        check(name, [x, z], weight=weight, reduction=reduction)
    check(name, [x], target=z.round().astype(int), reduction=reduction)
    check(name, [x, z[:1]], reduction=reduction)
    check(name, [x[0], z[0]], reduction=reduction)
    check(name, [x[:0], z[:0]], reduction=reduction)
    for shape in ((), (5,), (2, 1, 3, 5)):
        x = draw(7, *(shape or (1,))).reshape(shape)
        for y in (np.asarray(np.sign(x[::-1] if shape else x)), np.full((1,) * len(shape), -1)):
            check("soft_margin_loss", [x], target=y, reduction=reduction)
    check("soft_margin_loss", [np.zeros((0, 5))], target=np.zeros((0, 5)), reduction=reduction)


CLASSES = {
    "CrossEntropyLoss": (labels_of((6, 5)), {"weight": TABLE, "label_smoothing": 0.1}),
    "NLLLoss": (labels_of((6, 5), 1), {"weight": TABLE, "ignore_index": 1}),
    "BCEWithLogitsLoss": (np.full((6, 5), 0.3), {"weight": TABLE, "pos_weight": TABLE + 1}),
    "BCELoss": (np.full((6, 5), 0.3), {"weight": TABLE}),
    "KLDivLoss": (np.log(distributions(2, 6, 5)), {"log_target": True}),
    "MultiLabelSoftMarginLoss": (np.full((6, 5), 0.3), {"weight": TABLE}),
    "SoftMarginLoss": (np.sign(draw(2, 6, 5)), {}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    y, options = CLASSES[name]
    x = np.log(distributions(1, 6, 5))
    x = np.exp(x) if name == "BCELoss" else x
    tensors = {k: tensor(v, "float32") if is_float(v) else v for k, v in options.items()}
    for more in ({}, {"reduction": "none"}, {"size_average": False}):
        mine, there = partial(getattr(F, name), **more), partial(getattr(torch.nn, name), **more)
        agree(
            ours(lambda x, y, f=mine: f(**options)(x, y), [x], "float32", y=y),
            reference(lambda x, y, f=there: f(**tensors)(x, y), [x], "float32", y=y),
            "float32",
            (name, more),
        )


def test_old_reductions():
    x, y = draw(1, 6, 5), labels_of((6, 5))
    for size_average, reduce in itertools.product((None, False, True), repeat=2):
        check(
            "cross_entropy", [x], target=y, size_average=size_average, reduce=reduce, compiled=False
        )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_of_nothing(reduction):
    """A mean over no example is NaN there and here, and has no gradient."""
    nothing, x = np.zeros((0, 5)), draw(1, 4, 5)
    ignored = np.full(4, -100)
    check("cross_entropy", [nothing], target=ignored[:0], reduction=reduction)
    check("cross_entropy", [nothing, nothing], reduction=reduction)
    check("binary_cross_entropy_with_logits", [nothing, nothing], reduction=reduction)
    check("binary_cross_entropy", [nothing, nothing], reduction=reduction)
    check("kl_div", [nothing, nothing], reduction=reduction)
    check("nll_loss", [x], target=ignored, reduction=reduction)
    check("cross_entropy", [x], target=ignored, label_smoothing=0.1, reduction=reduction)


X, Y, Q = np.zeros((3, 4), np.float32), np.array([0, 1, 2]), np.full((3, 4), 0.25, np.float32)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cross_entropy", {"target": np.array([0, 1, 4])}),
        ("cross_entropy", {"target": np.array([0, 1, -1]), "label_smoothing": 0.1}),
        ("cross_entropy", {"target": Y[:2]}),
        ("cross_entropy", {"target": Y[:, None]}),
        ("cross_entropy", {"target": Y.astype(np.float32)}),
        ("cross_entropy", {"target": Q.astype(np.int64)}),
        ("cross_entropy", {"target": Q[:2]}),
        ("cross_entropy", {"target": Q, "ignore_index": 1}),
        ("cross_entropy", {"target": Y, "weight": Q[0, :3]}),
        ("cross_entropy", {"target": Q, "weight": Q[:1]}),
        ("cross_entropy", {"target": Y, "weight": Q[0, 0]}),
        ("cross_entropy", {"target": Y, "label_smoothing": 1.1}),
        ("cross_entropy", {"target": Y, "reduction": "avg"}),
        ("cross_entropy", {"target": Y, "reduction": "batchmean"}),
        ("cross_entropy", {"input": X.astype(np.int64), "target": Y}),
        ("cross_entropy", {"input": X[:, :0], "target": Y}),
        (
            "cross_entropy",
            {"input": np.zeros((2, 4, 3), np.float32), "target": np.zeros((2, 2), int)},
        ),
        ("nll_loss", {"target": Y + 2}),
        ("nll_loss", {"target": Q}),
        ("nll_loss", {"target": Y[:2]}),
        ("binary_cross_entropy_with_logits", {"target": Q[:2]}),
        ("binary_cross_entropy_with_logits", {"target": Q[0]}),
        ("binary_cross_entropy_with_logits", {"target": Q.astype(np.int64)}),
        ("binary_cross_entropy_with_logits", {"target": Q, "weight": Q[0, :3]}),
        ("binary_cross_entropy_with_logits", {"target": Q, "weight": Q[None]}),
        ("binary_cross_entropy_with_logits", {"target": Q, "pos_weight": Q[:, 0]}),
        ("binary_cross_entropy_with_logits", {"target": Q, "reduction": "batchmean"}),
        ("binary_cross_entropy", {"target": Q[:2]}),
        ("binary_cross_entropy", {"target": Q[0]}),
        ("binary_cross_entropy", {"target": Q.astype(np.float16)}),
        ("binary_cross_entropy", {"target": Q.astype(np.int64)}),
        ("binary_cross_entropy", {"target": Q + 1}),
        ("binary_cross_entropy", {"input": X - 0.1, "target": Q}),
        ("binary_cross_entropy", {"input": X * np.nan, "target": Q}),
        ("binary_cross_entropy", {"target": Q, "weight": Q[0, :3]}),
        ("binary_cross_entropy", {"target": Q, "weight": Q[None]}),
        ("binary_cross_entropy", {"target": Q, "reduction": "batchmean"}),
        ("linear_cross_entropy", {"linear_weight": X[:, :3], "target": Y}),
        ("linear_cross_entropy", {"linear_weight": X, "linear_bias": X[0], "target": Y}),
        ("linear_cross_entropy", {"linear_weight": X[0], "target": Y}),
        ("linear_cross_entropy", {"linear_weight": X, "target": Y + 1}),
        ("linear_cross_entropy", {"linear_weight": X, "target": Y[:2]}),
        ("linear_cross_entropy", {"linear_weight": X, "target": Q[:, :3], "ignore_index": 1}),
        ("linear_cross_entropy", {"linear_weight": X, "target": Y, "reduction": "avg"}),
        ("multilabel_soft_margin_loss", {"target": Q[:2]}),
        ("multilabel_soft_margin_loss", {"target": Q, "weight": Q[0, :3]}),
        ("multilabel_soft_margin_loss", {"target": Q, "reduction": "batchmean"}),
        ("multilabel_soft_margin_loss", {"target": Q, "input": X.astype(int)}),
        ("soft_margin_loss", {"target": Q[:2]}),
        ("soft_margin_loss", {"target": Q[None]}),
        ("soft_margin_loss", {"target": Q, "reduction": "batchmean"}),
        ("soft_margin_loss", {"target": Q, "input": X.astype(int)}),
        ("kl_div", {"target": Q[:2]}),
        ("kl_div", {"target": Q.astype(np.int64)}),
        ("kl_div", {"target": Q, "reduction": "avg"}),
    ],
)
def test_the_same_misuse_raises(name, arguments):
    """The same kind of error; for PyTorch's own RuntimeError, a ValueError or TypeError."""
    arguments = {"input": X} | arguments
    tensors = {k: torch.tensor(v) if hasattr(v, "dtype") else v for k, v in arguments.items()}
    with pytest.raises(Exception) as caught:
        getattr(theirs, name)(**tensors)
    kind = caught.type if caught.type in (IndexError, ValueError) else (TypeError, ValueError)
    kind = (
        (ValueError, IndexError) if "input" in arguments and not arguments["input"].size else kind
    )
    with pytest.raises(kind):
        getattr(F, name)(**arguments)


# --- where the original is wrong ----------------------------------------------------------------


def test_an_ignored_row_may_hold_anything():
    """The loss is clean there too, the gradient is NaN."""
    x = np.array([[1.0, 2.0, 0.5], [np.nan, -np.inf, np.inf]])
    y = np.array([1, -100])
    _, _, [gradient] = reference(theirs.cross_entropy, [x], "float32", target=y)
    assert np.isnan(gradient[1]).any()
    for options in (
        {},
        {"label_smoothing": 0.1},
        {"label_smoothing": 0.1, "weight": TABLE[:3] + 1},
    ):
        mine = ours(F.cross_entropy, [x], "float32", target=y, **options)
        wanted = reference(theirs.cross_entropy, [x[:1]], "float32", target=y[:1], **options)
        agree((mine[0], mine[1], [mine[2][0][:1]]), wanted, "float32")
        assert (mine[2][0][1] == 0).all()


def test_a_class_ruled_out():
    """A −inf logit: NaN there against probabilities, inf with smoothing."""
    x, q = np.array([[-np.inf, 2.0, 0.0]]), np.array([[0.0, 0.6, 0.4]])
    p = np.array([0, 1, np.exp(-2)]) / (1 + np.exp(-2))
    nll = -np.log(p[1:])
    assert np.isnan(reference(theirs.cross_entropy, [x, q], "float32")[0])
    value, _, [in_x, _] = ours(F.cross_entropy, [x, q], "float32")
    np.testing.assert_allclose(value, q[0, 1:] @ nll, rtol=1e-6)
    ct = cotangents(())
    np.testing.assert_allclose(in_x[0], ct * (p - q[0]), rtol=1e-5)
    value, _, [in_x] = ours(
        F.cross_entropy, [x], "float32", target=np.array([1]), label_smoothing=0.1
    )
    np.testing.assert_allclose(value, [0.95, 0.05] @ nll, rtol=1e-6)
    np.testing.assert_allclose(in_x[0], ct * (p - [0, 0.95, 0.05]), rtol=1e-4)
    log_p, zero = np.log([1e-300, 0.5, 0.5]), np.array([0.0, 0.5, 0.5])
    log_p[0] = -np.inf
    assert np.isnan(reference(theirs.kl_div, [log_p, zero], "float32", reduction="sum")[0])
    value, _, gradients = ours(F.kl_div, [log_p, zero], "float32", reduction="sum")
    assert value == 0 and np.isfinite(gradients[0]).all()


def test_certain_probabilities():
    """Of wrong ones 100 and a gradient of 1e12 there, of right ones no gradient."""
    p, z = np.array([0.0, 1.0, 0.0, 1.0, 1e-40]), np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    value, _, [gradient] = reference(
        theirs.binary_cross_entropy, [p], "float64", target=z, reduction="none"
    )
    ct = cotangents((5,))
    np.testing.assert_allclose(value, [100, 100, 0, 0, 40 * np.log(10)])
    np.testing.assert_allclose(gradient, ct * [-1e12, 1e12, 0, 0, -1e12])
    value, _, [gradient] = ours(F.binary_cross_entropy, [p], "float64", target=z, reduction="none")
    np.testing.assert_allclose(value, [np.inf, np.inf, 0, 0, 40 * np.log(10)])
    np.testing.assert_allclose(gradient, ct * [-np.inf, np.inf, 1, -1, -1e40])


def test_probabilities_out_of_range_under_jit():
    p = jnp.array([0.5, 1.5, -0.5, jnp.nan])
    for of in (lambda p: p, jax.grad(lambda p: F.binary_cross_entropy(p, p * 0, reduction="sum"))):
        both = jax.jit(lambda p, f=of: (f(p), F.binary_cross_entropy(p, p * 0, reduction="none")))
        np.testing.assert_array_equal(np.isnan(both(p)[1]), [False, True, True, True])
    np.testing.assert_array_equal(np.isnan(both(p)[0]), [False, True, True, True])


def test_a_confident_example():
    """Exactly 0 there, value and gradient, from a margin of 17."""
    x, y = np.array([[40.0, 0.0, 0.0]]), np.array([0])
    assert reference(theirs.cross_entropy, [x], "float32", target=y)[0] == 0
    value, _, [gradient] = ours(F.cross_entropy, [x], "float32", target=y)
    np.testing.assert_allclose(value, 2 * np.exp(-40.0), rtol=1e-5)
    wanted = cotangents(()) * np.exp(-40.0) * np.array([[-2, 1, 1]])
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5)


def test_a_mean_of_16_bit_losses():
    """20,000 losses of 10 sum to inf in float16; their mean is 10."""
    x, y = np.zeros((20000, 2)), np.ones(20000, np.int64)
    x[:, 0] = 10
    assert ours(F.cross_entropy, [x], "float16", target=y)[0] == 10


def test_derivatives_of_a_chunked_head():
    """Hessian and tangent of the chunked loss are silently 0 there."""
    x, head, _ = (jnp.asarray(a, jnp.float32) for a in linear_arguments(6))
    y = jnp.array([0, 4, 3, 2, 2, 1])

    def loss(x, options=4):
        return F.linear_cross_entropy(x, head, y, options=options)

    def full(x):
        return F.cross_entropy(x @ head.T, y)

    np.testing.assert_allclose(jax.hessian(loss)(x), jax.hessian(full)(x), atol=1e-5)
    np.testing.assert_allclose(*(jax.jvp(f, (x,), (x,))[1] for f in (loss, full)), rtol=1e-4)


def test_negative_options():
    """Taken for 0 there, or as they are."""
    with pytest.raises(ValueError, match="label_smoothing"):
        F.cross_entropy(jnp.asarray(X), jnp.asarray(Y), label_smoothing=-0.1)
    with pytest.raises(ValueError, match="pos_weight"):
        F.binary_cross_entropy_with_logits(jnp.asarray(X), jnp.asarray(Q), pos_weight=-1.0)


def test_old_reductions_of_a_batchmean():
    """Divided by the batch there, although they are said to override it."""
    x, q = np.log(distributions(1, 3, 4)), distributions(2, 3, 4)
    options = {"size_average": False, "reduction": "batchmean"}
    there = reference(theirs.kl_div, [x, q], "float32", **options)
    mine = ours(F.kl_div, [x, q], "float32", **options)
    np.testing.assert_allclose(mine[0], 3 * there[0], rtol=1e-5)
    check("kl_div", [x, q], reduction="sum")


def test_one_target_of_an_unbatched_input():
    """A value, and no gradient nor smoothing there."""
    x, y = draw(1, 5), np.array([3])
    for options in ({}, {"label_smoothing": 0.1}):
        with pytest.raises(RuntimeError):
            reference(theirs.cross_entropy, [x], "float32", target=y, **options)
        one = ours(F.cross_entropy, [x], "float32", target=y, **options)
        agree(one, ours(F.cross_entropy, [x], "float32", target=y[0], **options), "float32")
    value = theirs.cross_entropy(torch.tensor(x), torch.tensor(y))
    np.testing.assert_allclose(F.cross_entropy(jnp.asarray(x), y), value, rtol=1e-5)
