"""The pictures show what they say, inside their frames, and leave Matplotlib's settings alone."""

import io
import itertools
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxent import plot, weights

matplotlib = pytest.importorskip("matplotlib")

COUNTS = np.array([90, 9, 1])
NAMES = ["common", "rare", "rarest"]
LOGITS = np.array([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [np.nan, np.inf, 0.0]], np.float32)
LABELS = np.array([0, 2, -100])
WHERE = np.array([True, True, False])
WEIGHTS = np.array([1.0, 5.0, 0.0], np.float32)


def heatmap(**options):
    return plot.gradient_heatmap(LOGITS, LABELS, weights=WEIGHTS, where=WHERE, **options)


PICTURES = {
    "loss_against_margin": plot.loss_against_margin,
    "gradient_heatmap": lambda: heatmap(class_names=NAMES).figure,
    "class_recall": lambda: (
        plot.class_recall(
            {"none": [0.9, 0.5, 0.1], "balanced": [[0.8, 0.6, 0.3], [0.7, 0.6, 0.5]]},
            counts=COUNTS,
            class_names=NAMES,
        ).figure
    ),
    "confusion_pair": lambda: plot.confusion_pair(
        np.eye(12), np.ones((12, 12)), class_names=[f"class number {c}" for c in range(12)]
    ),
    "weights_and_counts": lambda: plot.weights_and_counts(
        COUNTS,
        {"balanced": weights.balanced(COUNTS), "log ratio": weights.log_ratio(COUNTS)},
        class_names=NAMES,
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_texts_are_inside_titles_do_not_collide_and_settings_are_left_alone(name):
    settings, had_pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    figure = PICTURES[name]()
    figure.savefig(io.BytesIO(), format="png")
    assert dict(matplotlib.rcParams) == settings
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot

    axes = [a for ax in figure.axes for a in (ax, *ax.child_axes)]
    titles = [text for ax in axes for text in (ax._left_title, ax.title) if text.get_text()]
    texts = titles + [t for ax in axes for t in (ax.xaxis.label, ax.yaxis.label) if t.get_text()]
    texts += [
        t for ax in axes for t in (*ax.get_xticklabels(), *ax.get_yticklabels()) if shown(t, ax)
    ]
    left, bottom, right, top = figure.bbox.extents
    for text in texts:
        box = text.get_window_extent()
        inside = left <= box.x0 and box.x1 <= right and bottom <= box.y0 and box.y1 <= top
        assert inside, text.get_text()
    boxes = [text.get_window_extent() for text in titles]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def shown(tick_label, ax):
    box, frame = tick_label.get_window_extent(), ax.get_window_extent()
    centre = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    beside = frame.x0 <= centre[0] <= frame.x1 or frame.y0 <= centre[1] <= frame.y1
    return bool(tick_label.get_text()) and tick_label.get_visible() and beside


@pytest.mark.parametrize("name", PICTURES)
def test_without_matplotlib_the_error_names_the_cure(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "jaxent\[plot\]"'):
        PICTURES[name]()


# --- loss_against_margin ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loss_axes():
    return plot.loss_against_margin().axes


def test_cross_entropy_keeps_its_value_and_gradient_where_the_model_is_sure(loss_axes):
    near, far, slope_near, slope_far = loss_axes
    for ax, expected in (
        (near, lambda m: np.log1p(np.exp(-m))),
        (far, lambda m: np.log1p(np.exp(-m))),
        (slope_near, lambda m: -1 / (1 + np.exp(m))),
        (slope_far, lambda m: 1 / (1 + np.exp(m))),
    ):
        (line,) = (line for line in ax.lines if line.get_label() == "cross-entropy")
        margins, values = line.get_data()
        np.testing.assert_allclose(values, expected(margins), rtol=2e-6)
    assert margins[-1] == 40


def test_the_textbook_form_is_shown_to_lose_both(loss_axes):
    _, far, _, slope_far = loss_axes
    last = [ax.lines[0].get_xdata()[-1] for ax in (far, slope_far)]
    assert 12 < last[0] < 16 < last[1] < 18


def test_own_losses_and_subfigures():
    parent = matplotlib.figure.Figure(layout="constrained")
    left, _ = parent.subfigures(1, 2)
    assert plot.loss_against_margin({"squared": lambda s: s.nll**2}, figure=left) is left
    assert [line.get_label() for line in left.axes[0].lines] == ["squared"]
    with pytest.raises(ValueError, match="at most 7"):
        plot.loss_against_margin({str(i): lambda s: s.nll for i in range(8)})


# --- gradient_heatmap ---------------------------------------------------------------------------


def test_the_heat_map_is_the_weighted_gradient():
    p = np.exp(LOGITS[:2]) / np.exp(LOGITS[:2]).sum(-1, keepdims=True)
    expected = WEIGHTS[:2, None] * (p - np.eye(3)[LABELS[:2]])
    shown = heatmap().images[0].get_array()
    np.testing.assert_allclose(shown[:2], expected, rtol=1e-5)
    np.testing.assert_array_equal(shown[2], 0)


def test_padding_is_exactly_white_and_nothing_else_is():
    image = heatmap().images[0]
    colors = image.to_rgba(image.get_array())
    np.testing.assert_array_equal(colors[2], 1.0)
    assert (colors[:2, :, :3].min(-1) < 1).all()
    red, _, blue, _ = colors[1, LABELS[1]]
    assert blue > red  # a step raises the label's logit


def test_a_batch_of_padding_is_a_white_picture():
    ax = plot.gradient_heatmap(np.full((4, 3), np.nan), np.full(4, -1), where=np.zeros(4, bool))
    ax.figure.draw_without_rendering()
    image = ax.images[0]
    np.testing.assert_array_equal(image.to_rgba(image.get_array()), 1.0)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["padding"] * 4


def test_a_label_out_of_range_is_black():
    ax = plot.gradient_heatmap(np.zeros((2, 3), np.float32), np.array([1, -100]))
    ax.figure.draw_without_rendering()
    image = ax.images[0]
    np.testing.assert_array_equal(image.to_rgba(image.get_array())[1], [[0, 0, 0, 1]] * 3)
    assert ax.get_xlim() == (-0.5, 2.5)


@pytest.mark.parametrize("limit", [1e-6, 0.0231, 0.37, 0.9999, 1.0, 3.7, 5e4])
def test_the_colour_bar_has_round_ticks_with_minus_signs(limit):
    ticks = plot._round_ticks(limit)
    assert ticks == sorted(ticks) == [-x for x in reversed(ticks)] and 0 in ticks
    assert 5 <= len(ticks) <= 9 and 0.5 * limit <= ticks[-1] <= limit
    assert all(f"{x:.0e}"[0] in "01235" and float(f"{x:.0e}") == x for x in ticks if x >= 0)
    ax = heatmap(loss=lambda s: limit * s.nll)
    ax.figure.draw_without_rendering()
    (bar,) = (a for a in ax.figure.axes if "colour scale" in a.get_xlabel())
    texts = [label.get_text() for label in bar.get_xticklabels()]
    assert len(texts) >= 5 and not any("-" in text for text in texts)
    assert [text.removeprefix("−") for text in texts] == [
        text.removeprefix("−") for text in reversed(texts)
    ]
    boxes = [label.get_window_extent() for label in bar.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_the_heat_map_of_another_loss_on_given_axes():
    ax = matplotlib.figure.Figure().add_subplot()
    assert heatmap(loss=lambda s: 2 * s.nll, ax=ax) is ax
    np.testing.assert_allclose(ax.images[0].get_array(), 2 * heatmap().images[0].get_array())


# --- weights and results ------------------------------------------------------------------------


def test_tables_are_scaled_as_a_weighted_mean_scales_them():
    table = np.array([1.0, 2.0, 3.0])
    lines = plot.weights_and_counts(COUNTS, {"a": table, "b": 7 * table}).axes[1].lines
    scaled = lines[0].get_ydata()
    assert np.average(scaled, weights=COUNTS) == pytest.approx(1)
    np.testing.assert_allclose(scaled / scaled[0], table)
    np.testing.assert_allclose(lines[1].get_ydata(), scaled)


def test_tables_as_they_are():
    figure = plot.weights_and_counts(COUNTS, {"a": [1.0, 2.0, 3.0]}, normalize=False)
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [1.0, 2.0, 3.0])


def test_the_bars_are_the_counts():
    left, _ = plot.weights_and_counts(COUNTS, {}).axes
    np.testing.assert_array_equal([bar.get_height() for bar in left.patches], COUNTS)


def test_recall_marks_the_mean_and_draws_the_range():
    ax = plot.class_recall({"a": [[0.2, 1.0], [0.4, 0.9]]}, counts=[7, 3], class_names=["x", "y"])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [30, 95])
    segments = np.array(ax.collections[0].get_segments())
    np.testing.assert_allclose(segments[..., 1], [[20, 40], [90, 100]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x\n7", "y\n3"]


def test_confusion_is_in_per_cent_of_each_true_class():
    figure = plot.confusion_pair([[3, 1], [0, 0]], jnp.array([[1, 1], [0, 5]]), titles=("a", "b"))
    before, after = (ax.images[0].get_array() for ax in figure.axes[:2])
    np.testing.assert_array_equal(before, [[75, 25], [0, 0]])  # a class without examples is no NaN
    np.testing.assert_array_equal(after, [[50, 50], [0, 100]])
    assert [text.get_text() for text in figure.axes[1].texts] == ["50", "50", "100"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: plot.weights_and_counts([1, 2], {"a": [1.0]}), r"tables\['a'\] must have 2"),
        (lambda: plot.weights_and_counts([[1, 2]], {}), r"counts must have shape \[classes\]"),
        (lambda: plot.weights_and_counts([1, 2], {}, class_names=["x"]), "class_names must have 2"),
        (lambda: plot.class_recall({}), "1 to 7 recipes; got 0"),
        (lambda: plot.class_recall({"a": [0.1], "b": [0.1, 0.2]}), "'b' has 2"),
        (lambda: plot.class_recall({"a": [0.1, 0.2]}, counts=[1]), "counts must have 2 entries"),
        (lambda: plot.confusion_pair(np.eye(2), np.eye(3)), r"got \[2, 2\] and \[3, 3\]"),
        (lambda: plot.gradient_heatmap(np.zeros(3), np.zeros(())), r"shape \[examples, classes\]"),
    ],
)
def test_wrong_shapes_name_the_argument(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
