"""One step of any split equals the whole batch's step: micro-batches, devices, every framework."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxent
from jaxent import train

ROWS, FEATURES, CLASSES = 24, 5, 7


@pytest.fixture(scope="module")
def batch():
    """Uneven weights, a share of padding rows that hold NaN and label −100."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    weights = rng.choice([0.1, 1.0, 30.0], ROWS).astype(np.float32)
    weights[::4] = 0.0  # dealt in turn over 4 shares, the first share is all padding
    x[0], y[0] = 1e4, -100
    return {k: jnp.asarray(v) for k, v in dict(x=x, y=y, weights=weights).items()}


def loss_fn(logits, batch):
    where = batch["weights"] != 0
    losses = jaxent.cross_entropy(logits, batch["y"], where=where)
    return jaxent.weighted_sum(losses, batch["weights"])


def linear(params, batch):
    return batch["x"] @ params["w"] + params["b"][None]


OBJECTIVE = train.objective(linear, loss_fn)


def fresh_params():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    return {"w": jnp.asarray(w), "b": jnp.zeros(CLASSES)}


def close(a, b, rtol=1e-6):
    for got, wanted in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert got.dtype == wanted.dtype
        scale = np.abs(np.asarray(wanted, np.float64)).max()
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * scale)


def whole_batch_step(params, batch, optimizer):
    """The reference: one weighted mean over the whole batch, by hand, in float64."""
    with jax.enable_x64(True):
        kept = np.asarray(batch["weights"]) != 0
        x, y, w = (np.asarray(batch[k])[kept] for k in ("x", "y", "weights"))
        w64 = jax.tree.map(lambda p: jnp.asarray(np.asarray(p, np.float64)), params)

        def mean(p):
            logits = jnp.asarray(x, jnp.float64) @ p["w"] + p["b"][None]
            own = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(y)[:, None], 1)[:, 0]
            weights = jnp.asarray(w, jnp.float64)
            return -(weights * own).sum() / weights.sum()

        loss, grads = jax.value_and_grad(mean)(w64)
        grads = jax.tree.map(np.asarray, grads)
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return float(loss), grads, optax.apply_updates(params, updates)


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 8, 24])
def test_a_step_is_the_whole_batch_step_for_any_split(batch, micro_batches):
    optimizer = optax.sgd(0.3, momentum=0.9)
    loss, _, wanted = whole_batch_step(fresh_params(), batch, optimizer)
    step = train.train_step(OBJECTIVE, optimizer, micro_batches=micro_batches)
    params, _, part = step(fresh_params(), optimizer.init(fresh_params()), batch)
    close(params, wanted)
    np.testing.assert_allclose(part.mean(), loss, rtol=1e-6)
    np.testing.assert_allclose(part.weight, batch["weights"].sum(), rtol=1e-6)


def test_accumulate_gives_the_gradient_and_sum_of_the_whole_batch(batch):
    loss, grads, _ = whole_batch_step(fresh_params(), batch, optax.sgd(1.0))
    (got, part), got_grads = jax.jit(train.accumulate(OBJECTIVE, 4))(fresh_params(), batch)
    close(got_grads, grads)
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    (plain, whole), plain_grads = train.value_and_grad(OBJECTIVE)(fresh_params(), batch)
    close((got, part, got_grads), (plain, whole, plain_grads))


def test_weights_that_depend_on_the_parameters_keep_their_gradient(batch):
    def of(params, batch):
        s = jaxent.softmax_stats(linear(params, batch), jnp.abs(batch["y"]) % CLASSES)
        return jaxent.weighted_sum(s.nll, batch["weights"] * s.other_prob)

    _, wanted = train.value_and_grad(of)(fresh_params(), batch)
    _, got = train.accumulate(of, 6)(fresh_params(), batch)
    close(got, wanted, rtol=3e-6)


def test_a_batch_without_weight_gives_loss_and_gradient_zero(batch):
    empty = batch | {"weights": jnp.zeros(ROWS)}
    for function in (train.value_and_grad(OBJECTIVE), train.accumulate(OBJECTIVE, 3)):
        (loss, part), grads = function(fresh_params(), empty)
        assert loss == 0 and part.weight == 0
        assert all((g == 0).all() for g in jax.tree.leaves(grads))


def uneven(batch):
    """Micro-batches of different sizes, one empty of weight."""
    for rows in ([0, 4, 8, 12], list(range(1, 8)), [9, 10, 11], [13, *range(14, 24)]):
        rows = [r for r in rows if r < ROWS]
        yield {k: x[np.array(rows)] for k, x in batch.items()}


def test_weighted_multi_steps_is_the_whole_batch_step_where_multi_steps_is_not(batch):
    shares = list(uneven(batch))
    rows = jax.tree.map(lambda *x: jnp.concatenate(x), *shares)
    inner = optax.sgd(0.3, momentum=0.9)
    loss, _, wanted = whole_batch_step(fresh_params(), rows, inner)
    assert float(shares[0]["weights"].sum()) == 0
    value_and_grad = jax.jit(train.value_and_grad(OBJECTIVE))

    def run(optimizer, **extra):
        params = fresh_params()
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        parts = []
        for share in shares:
            (_, part), grads = value_and_grad(params, share)
            extra_args = {k: f(part) for k, f in extra.items()}
            updates, state = update(grads, state, params, **extra_args)
            params = optax.apply_updates(params, updates)
            parts.append(part)
        return params, sum(parts)

    params, part = run(train.weighted_multi_steps(inner, len(shares)), weight=lambda p: p.weight)
    close(params, wanted)
    np.testing.assert_allclose(part.mean(), loss, rtol=1e-6)

    with jax.numpy_dtype_promotion("standard"):
        biased, _ = run(optax.MultiSteps(inner, len(shares)))
    assert np.abs(biased["w"] - wanted["w"]).max() > 1e-2


def test_the_example_of_docs_training():
    """Weights 4, 1 and 6, gradients 2, 8 and 1: the step is 2, and MultiSteps takes 3.67."""
    seen = []
    for wrapped in (train.weighted_multi_steps, optax.MultiSteps):
        optimizer = wrapped(optax.sgd(1.0), 3)
        state = optimizer.init(jnp.zeros(()))
        for gradient, weight in ((2.0, 4.0), (8.0, 1.0), (1.0, 6.0)):
            extra = {"weight": weight} if wrapped is train.weighted_multi_steps else {}
            with jax.numpy_dtype_promotion("standard"):  # Optax itself is not strict here
                updates, state = optimizer.update(jnp.array(gradient), state, None, **extra)
        seen.append(float(-updates))
    assert seen == pytest.approx([2, 11 / 3], rel=1e-6)
    page = (pathlib.Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    assert "weights are 4, 1 and 6 and whose gradients are 2, 8 and 1" in " ".join(page.split())


def test_weighted_multi_steps_waits_steps_and_starts_again():
    optimizer = train.weighted_multi_steps(optax.sgd(1.0), lambda step: 1 + step)
    params = jnp.array([0.0, 0.0], jnp.bfloat16)
    state = optimizer.init(params)
    seen = []
    for grad, weight in [(1.0, 5.0), (2.0, 1.0), (4.0, 3.0), (7.0, 0.0), (8.0, -1.0), (2.0, 2.0)]:
        grads = jnp.full(2, grad, jnp.bfloat16)
        updates, state = jax.jit(optimizer.update)(grads, state, params, weight=weight)
        assert updates.dtype == jnp.bfloat16
        seen.append(float(updates[0]))
    # k = 1, then 2: (2 + 12) / 4, then 3: (0 − 8 + 4) / 1
    assert seen == [-1.0, 0.0, -3.5, 0.0, 0.0, 4.0]


def test_a_zero_weight_drops_a_gradient_that_is_not_finite():
    optimizer = train.weighted_multi_steps(optax.sgd(1.0), 2)
    state = optimizer.init(jnp.zeros(()))
    _, state = optimizer.update(jnp.array(jnp.nan), state, weight=0.0)
    updates, _ = optimizer.update(jnp.array(3.0), state, weight=2.0)
    assert updates == -3


def test_extra_arguments_reach_the_optimizer(batch):
    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    line_search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10))
    with jax.numpy_dtype_promotion("standard"):  # Optax itself is not strict here
        for optimizer in (plateau, train.weighted_multi_steps(plateau, 2), line_search):
            params = fresh_params()
            step = train.train_step(OBJECTIVE, optimizer)
            _, _, part = step(params, optimizer.init(params), batch)
            assert np.isfinite(part.mean())


def test_aux_is_handed_through(batch):
    def of(params, batch):
        logits = linear(params, batch)
        return loss_fn(logits, batch), logits.argmax(-1)

    optimizer = optax.sgd(0.1)
    (_, (part, aux)), _ = train.value_and_grad(of, has_aux=True)(fresh_params(), batch)
    assert part.weight > 0 and aux.shape == (ROWS,)
    step = train.train_step(of, optimizer, micro_batches=4, has_aux=True)
    _, _, (part, dealt) = step(fresh_params(), optimizer.init(fresh_params()), batch)
    np.testing.assert_array_equal(dealt.T.ravel(), aux)


def test_16_bit_parameters_accumulate_in_float32():
    """1 + 2^-9 + … in bfloat16 would lose every small share."""

    def of(params, batch):
        return jaxent.weighted_sum(params.astype(jnp.float32) * batch, jnp.ones_like(batch))

    batch = jnp.asarray(np.r_[1.0, np.full(255, 2.0**-9)].astype(np.float32))
    (_, _), grad = train.accumulate(of, 256)(jnp.ones((), jnp.bfloat16), batch)
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(grad), (1 + 255 / 512) / 256, rtol=2**-8)


def test_old_parameters_are_donated(batch):
    optimizer = optax.sgd(0.1)
    params = fresh_params()
    step = train.train_step(OBJECTIVE, optimizer)
    step(params, optimizer.init(params), batch)
    assert params["w"].is_deleted()


def test_a_state_that_holds_an_array_twice_is_not_donated_twice(batch):
    def init(params):
        return params, params

    def update(grads, state, params=None):
        return jax.tree.map(lambda g, a, b: a + b - g, grads, *state), state

    params = fresh_params()
    step = train.train_step(OBJECTIVE, optax.GradientTransformation(init, update))
    params, state, _ = step(params, init(params), batch)
    step(params, state, batch)


def test_a_step_compiles_once(batch):
    traces = []

    def counted(params, batch):
        traces.append(1)
        return OBJECTIVE(params, batch)

    optimizer = optax.sgd(0.1, momentum=0.9)
    step = train.train_step(counted, optimizer, micro_batches=3)
    params = fresh_params()
    state = optimizer.init(params)
    params, state, _ = step(params, state, batch)
    first = len(traces)
    for _ in range(3):
        params, state, _ = step(params, state, batch)
    assert len(traces) == first


class TestErrors:
    def test_a_mean_is_not_an_objective(self, batch):
        def of(params, batch):
            return jaxent.cross_entropy(linear(params, batch), jnp.abs(batch["y"]) % 7).mean()

        for function in (train.value_and_grad(of), train.accumulate(of, 2)):
            with pytest.raises(
                TypeError, match=r"must return a jaxent\.WeightedSum.*cannot be added"
            ):
                function(fresh_params(), batch)

    def test_an_array_is_said_by_its_dtype_and_shape(self, batch):
        for shape, of in ((r"\[\]", lambda p, _: p.sum()), (r"\[3\]", lambda p, _: p)):
            with pytest.raises(TypeError, match=rf"objective must .*; got float32{shape}\. A mean"):
                jax.jit(train.value_and_grad(of))(jnp.ones(3), batch)
        with pytest.raises(TypeError, match="got float"):
            train.value_and_grad(lambda params, _: 1.0)(jnp.ones(3), batch)

    def test_a_loss_fn_without_a_sum_is_named_when_the_objective_is_called(self, batch):
        of = train.objective(linear, lambda logits, _: logits.mean())
        for call in (of, jax.jit(of), train.value_and_grad(of), train.accumulate(of, 2)):
            with pytest.raises(
                TypeError, match=r"^loss_fn must return a jaxent\.WeightedSum.*\[\]"
            ):
                call(fresh_params(), batch)
        of = train.objective(linear, lambda logits, _: (logits.mean(), logits))
        with pytest.raises(TypeError, match=r"^loss_fn must return \(jaxent\.WeightedSum, aux\)"):
            of(fresh_params(), batch)

    def test_aux_and_has_aux_go_together(self, batch):
        def with_aux(params, batch):
            return OBJECTIVE(params, batch), batch["y"]

        with pytest.raises(TypeError, match=r"got tuple\. If it returns .* say has_aux=True"):
            train.value_and_grad(with_aux)(fresh_params(), batch)
        with pytest.raises(TypeError, match=r"got WeightedSum\. Without aux, leave has_aux out"):
            train.value_and_grad(OBJECTIVE, has_aux=True)(fresh_params(), batch)

    def test_micro_batches_must_divide_the_batch(self, batch):
        with pytest.raises(ValueError, match=r"micro_batches=5 must divide.*\[24.*weight 0"):
            train.accumulate(OBJECTIVE, 5)(fresh_params(), batch)
        with pytest.raises(ValueError, match="at least 1; got 0"):
            train.accumulate(OBJECTIVE, 0)


# --- devices ----------------------------------------------------------------------------------


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(request.param,) * 2)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("over", ["data", ("data", "model")], ids=str)
def test_a_step_over_a_2x2_mesh_is_the_whole_batch_step(batch, mesh, over, micro_batches):
    optimizer = optax.sgd(0.3)
    loss, _, wanted = whole_batch_step(fresh_params(), batch, optimizer)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(over)))
        params = jax.device_put(fresh_params(), NamedSharding(mesh, PartitionSpec()))
        state = jax.jit(optimizer.init)(params)
        step = train.train_step(OBJECTIVE, optimizer, micro_batches=micro_batches)
        params, _, part = step(params, state, sharded)
    close(jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, wanted))
    np.testing.assert_allclose(part.mean(), loss, rtol=1e-6)


def test_psum_inside_shard_map_is_the_whole_batch_step(batch):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    _, grads, _ = whole_batch_step(fresh_params(), batch, optax.sgd(1.0))
    spec = PartitionSpec("data")

    def gradient(params, shard):
        def of(params, shard):
            return OBJECTIVE(params, shard).psum("data")

        return train.value_and_grad(of)(params, shard)[1]

    mapped = jax.shard_map(
        gradient, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec()
    )
    got = jax.jit(mapped)(fresh_params(), jax.device_put(batch, NamedSharding(mesh, spec)))
    close(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, grads))


# --- frameworks -------------------------------------------------------------------------------


def steps_agree(apply, make_params, batch):
    """The step of four micro-batches is the step of the whole batch, and training goes down."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        optimizer = optax.adam(0.05, eps=1e-2)  # where g is near 0 its step is 0.05 g / eps
        of = train.objective(apply, loss_fn)
        after = []
        for micro_batches in (1, 4):
            step = train.train_step(of, optimizer, micro_batches=micro_batches)
            params = make_params()
            state = optimizer.init(params)
            params, state, first = step(params, state, batch)
            after.append(jax.tree.map(np.array, params))
        close(*after, rtol=4e-6)  # the step is up to 0.05 / eps = 5 times the gradient's rounding
        for _ in range(30):
            params, state, part = step(params, state, batch)
    assert part.mean() < 0.7 * first.mean()


def test_bare_pytrees(batch):
    steps_agree(linear, fresh_params, batch)


def test_flax_linen(batch):
    nn = pytest.importorskip("flax.linen")

    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(CLASSES)(nn.relu(nn.Dense(16)(x)))

    model = Mlp()
    steps_agree(
        lambda params, batch: model.apply({"params": params}, batch["x"]),
        lambda: model.init(jax.random.key(0), batch["x"])["params"],
        batch,
    )


def test_flax_nnx(batch):
    nnx = pytest.importorskip("flax.nnx")

    class Mlp(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(FEATURES, 16, rngs=rngs)
            self.out = nnx.Linear(16, CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.hidden(x)))

    graph = nnx.split(Mlp(nnx.Rngs(0)), nnx.Param)[0]
    steps_agree(
        lambda params, batch: nnx.merge(graph, params)(batch["x"]),
        lambda: nnx.split(Mlp(nnx.Rngs(0)), nnx.Param)[1],
        batch,
    )


def test_equinox(batch):
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(FEATURES, CLASSES, 16, 1, key=jax.random.key(0))
    _, static = eqx.partition(model, eqx.is_inexact_array)

    def make_params():
        model = eqx.nn.MLP(FEATURES, CLASSES, 16, 1, key=jax.random.key(0))
        return eqx.partition(model, eqx.is_inexact_array)[0]

    steps_agree(
        lambda params, batch: jax.vmap(eqx.combine(params, static))(batch["x"]), make_params, batch
    )


def test_complex_parameters_keep_their_imaginary_part():
    def of(params, batch):
        return jaxent.weighted_sum(jnp.square(jnp.abs(params * batch - 1)), jnp.real(batch))

    params, batch = jnp.complex64(1 + 2j), jnp.arange(4).astype(jnp.complex64)
    (_, part), truth = train.value_and_grad(of)(params, batch)
    assert abs(truth.imag) > 1
    np.testing.assert_allclose(train.accumulate(of, 2)(params, batch)[1], truth, rtol=1e-6)
    optimizer = train.weighted_multi_steps(optax.sgd(1.0), 2)
    state = optimizer.init(params)
    for share in batch[:2], batch[2:]:
        (_, part), grad = train.value_and_grad(of)(params, share)
        updates, state = optimizer.update(grad, state, params, weight=part.weight)
    np.testing.assert_allclose(updates, -truth, rtol=1e-6)


def test_float64_weights_are_gathered_in_float64():
    with jax.enable_x64(True):
        optimizer = train.weighted_multi_steps(optax.sgd(1.0), 2)
        params = jnp.zeros(())
        state = optimizer.init(params)
        weights, grads = jnp.array([1 / 3, 2 / 7]), jnp.array([0.1, -5.0])
        for w, g in zip(weights, grads, strict=True):
            updates, state = optimizer.update(g, state, params, weight=w)
        truth = -jnp.vdot(weights, grads) / weights.sum()
        np.testing.assert_allclose(updates, truth, rtol=1e-15)


def test_numbers_of_micro_batches_are_named():
    of = train.objective(lambda p, b: p * b, lambda out, b: jaxent.weighted_sum(out))
    with pytest.raises(TypeError, match="micro_batches must be a Python int; got float"):
        train.accumulate(of, 2.0)
    with pytest.raises(ValueError, match="micro_batches must be at least 1; got 0"):
        train.accumulate(of, 0)
    with pytest.raises(ValueError, match="every_k_schedule must be at least 1; got 0"):
        train.weighted_multi_steps(optax.sgd(1.0), 0)
    optimizer = train.weighted_multi_steps(optax.sgd(1.0), 2)
    with pytest.raises(ValueError, match="weight must be a scalar"):
        optimizer.update(jnp.ones(()), optimizer.init(jnp.ones(())), weight=jnp.ones(3))
