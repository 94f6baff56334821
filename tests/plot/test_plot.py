"""Properties of the figures: what a line, a colour, a cell or a bar says, and what is left alone."""

import gc
import io
import math
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from uotod.match import ClosestPrediction, ClosestTarget, Hungarian, UnbalancedSinkhorn
from uotod.plot import plot_cost, plot_matching, plot_path, plot_plan

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# figure 1 of the paper: five predictions, targets A and B, background
COST = torch.tensor([[0.61, 0.96, 0.8], [1.34, 0.88, 0.8], [0.88, 0.89, 0.8], [0.4, 0.65, 0.8], [1.11, 0.73, 0.8]])
PREDS = torch.tensor(
    [[20.0, 30, 70, 90], [120, 60, 170, 130], [75, 20, 120, 70], [30, 45, 85, 100], [110, 40, 165, 100]]
)
TARGETS = torch.tensor([[28.0, 38, 80, 98], [115, 50, 168, 115]])
PLAN = torch.tensor([[0.7, 0.04, 0.26], [0.0, 0.05, 0.95], [0.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])
BOTH = torch.ones(1, 2, dtype=torch.bool)


def sample_boxes(count: int, size: float = 200.0) -> Tensor:
    low = torch.rand(count, 2) * size * 0.8
    return torch.cat((low, low + size * (0.02 + 0.18 * torch.rand(count, 2))), dim=1)


def sample_plan(P: int, T: int) -> Tensor:
    return torch.softmax(4 * torch.randn(P, T + 1), dim=1)


def artist(figure: Figure, gid: str, panel: int = 0):
    (found,) = [item for item in figure.axes[panel].collections if item.get_gid() == gid]
    return found


def box_corners(figure: Figure, gid: str) -> set[tuple[float, ...]]:
    paths = artist(figure, gid).get_paths()
    return {tuple(np.concatenate([path.vertices.min(0), path.vertices.max(0)]).tolist()) for path in paths}


def as_set(boxes: Tensor) -> set[tuple[float, ...]]:
    return {tuple(box) for box in boxes.tolist()}


def cells(figure: Figure, panel: int = 0) -> np.ma.MaskedArray:
    """Return the values (P, T + 1) of a heat map, without the gap before the background."""
    values = figure.axes[panel].collections[0].get_array()
    return np.ma.array(np.delete(values.data, -2, axis=1), mask=np.delete(np.ma.getmaskarray(values), -2, axis=1))


def tick_texts(figure: Figure, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


# ---- plot_matching: links


@pytest.mark.parametrize(("P", "T"), [(0, 0), (0, 3), (4, 0), (1, 1), (64, 5), (900, 7)])
@pytest.mark.parametrize("min_mass", [0.01, 0.05, 0.5])
def test_there_is_one_link_for_each_mass_from_min_mass_on(P, T, min_mass):
    plan = sample_plan(P, T)
    figure = plot_matching(None, sample_boxes(P), sample_boxes(T), plan, min_mass=min_mass)
    assert len(artist(figure, "links").get_paths()) == int((plan[:, :T] >= min_mass).sum())


def test_a_mass_equal_to_min_mass_is_linked():
    plan = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    figure = plot_matching(None, PREDS[:1], TARGETS[:1], plan, min_mass=0.25)
    assert len(artist(figure, "links").get_paths()) == 1


def test_links_join_centres_and_their_widths_are_proportional_to_the_masses():
    links = artist(plot_matching(None, PREDS, TARGETS, PLAN, min_mass=0.01), "links")
    preds, targets = PREDS.view(-1, 2, 2).mean(1).numpy(), TARGETS.view(-1, 2, 2).mean(1).numpy()
    ratios = []
    for path, width in zip(links.get_paths(), links.get_linewidths(), strict=True):
        pred = np.abs(preds - path.vertices[0]).sum(1).argmin()
        target = np.abs(targets - path.vertices[1]).sum(1).argmin()
        np.testing.assert_allclose(path.vertices, [preds[pred], targets[target]])
        ratios.append(width / PLAN[pred, target].item())
    assert len(ratios) == int((PLAN[:, :2] >= 0.01).sum())
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)


def test_a_mass_has_the_same_width_in_every_plan_of_masses_up_to_1():
    widths = []
    for other in (0.1, 0.9):
        plan = torch.tensor([[0.5, 0.0, 0.5], [0.0, other, 1 - other]])
        links = artist(plot_matching(None, PREDS[:2], TARGETS, plan), "links")
        widths.append(links.get_linewidths()[0 if other > 0.5 else 1])
    assert widths[0] == pytest.approx(widths[1])


def test_masses_above_1_do_not_make_wider_links_than_1_does():
    one, eight = (
        artist(plot_matching(None, PREDS[:1], TARGETS[:1], torch.tensor([[mass, 0.0]])), "links").get_linewidths()
        for mass in (1.0, 8.0)
    )
    assert eight == pytest.approx(one)


def test_links_are_where_a_plan_without_background_has_them():
    without = plot_matching(None, PREDS, TARGETS, PLAN[:, :2])
    padded = plot_matching(None, PREDS, TARGETS, torch.nn.functional.pad(PLAN[:, :2], (0, 1)))
    for gid in ("links", "predictions", "ignored"):
        first, second = artist(without, gid), artist(padded, gid)
        for one, other in zip(first.get_paths(), second.get_paths(), strict=True):
            np.testing.assert_array_equal(one.vertices, other.vertices)
        np.testing.assert_array_equal(first.get_linewidths(), second.get_linewidths())
        np.testing.assert_array_equal(first.get_edgecolors(), second.get_edgecolors())


# ---- plot_matching: boxes, colours, names


def test_each_target_has_a_colour_of_its_own_and_its_links_share_it():
    T = 18
    figure = plot_matching(None, sample_boxes(T), sample_boxes(T), torch.eye(T, T + 1))
    colors = artist(figure, "targets").get_edgecolors()[:, :3]
    assert len(np.unique(colors.round(4), axis=0)) == T
    np.testing.assert_allclose(artist(figure, "links").get_colors()[:, :3], colors)
    np.testing.assert_allclose(artist(figure, "predictions").get_edgecolors()[:, :3], colors)


def test_a_prediction_has_the_colour_of_its_heaviest_target_or_grey_if_that_is_the_background():
    figure = plot_matching(None, PREDS, TARGETS, PLAN)
    first, second = artist(figure, "targets").get_edgecolors()[:, :3]
    matched = artist(figure, "predictions")
    assert box_corners(figure, "predictions") == as_set(PREDS[[0, 3]])
    np.testing.assert_allclose(matched.get_edgecolors()[:, :3], [first, second])
    assert box_corners(figure, "background") == as_set(PREDS[[1, 4]])
    grey = artist(figure, "background").get_edgecolors()[:, :3]
    assert np.ptp(grey, axis=1).max() == 0
    assert artist(figure, "background").get_linewidths()[0] < matched.get_linewidths()[0]


def test_a_row_of_zeros_is_dotted_and_no_other_is():
    figure = plot_matching(None, PREDS, TARGETS, PLAN)
    assert box_corners(figure, "ignored") == as_set(PREDS[2:3])
    (_, dashes), *_ = artist(figure, "ignored").get_linestyle()
    assert dashes is not None
    for gid in ("predictions", "background", "targets"):
        (_, dashes), *_ = artist(figure, gid).get_linestyle()
        assert dashes is None


def test_an_inverted_prediction_is_drawn_as_the_box_between_its_corners():
    figure = plot_matching(None, PREDS[:1, [2, 3, 0, 1]], TARGETS[:1], torch.tensor([[1.0, 0.0]]))
    assert box_corners(figure, "predictions") == as_set(PREDS[:1])


def test_of_more_than_max_preds_only_the_heaviest_linked_boxes_are_drawn_and_all_links():
    plan = sample_plan(200, 3)
    preds = sample_boxes(200)
    figure = plot_matching(None, preds, sample_boxes(3), plan, max_preds=20)
    heaviest = plan[:, :3].sum(1).topk(20).indices
    assert box_corners(figure, "predictions") | box_corners(figure, "background") == as_set(preds[heaviest])
    assert len(artist(figure, "links").get_paths()) == int((plan[:, :3] >= 0.05).sum())
    assert figure.axes[0].get_xlabel() == "20 of 200 predicted boxes are shown"


def test_no_box_is_hidden_up_to_max_preds():
    figure = plot_matching(None, PREDS, TARGETS, PLAN, max_preds=5)
    drawn = sum(len(artist(figure, gid).get_paths()) for gid in ("predictions", "background", "ignored"))
    assert drawn == 5
    assert figure.axes[0].get_xlabel() == ""


@pytest.mark.parametrize(
    ("labels", "class_names", "expected"),
    [
        (None, None, ["0", "1"]),
        ([3, 1], None, ["3", "1"]),
        ([1, 0], ["cat", "dog"], ["dog", "cat"]),
        ([1, 1], ["cat", "dog"], ["dog", "dog"]),
    ],
)
def test_targets_are_named_by_class_name_class_or_index(labels, class_names, expected):
    labels = None if labels is None else torch.tensor(labels)
    figure = plot_matching(None, PREDS, TARGETS, PLAN, target_labels=labels, class_names=class_names)
    assert [text.get_text() for text in figure.axes[0].texts] == expected


def test_names_of_nested_targets_do_not_overlap_and_stay_in_the_image():
    targets = torch.tensor(
        [[0.0, 0, 300, 200], [0, 0, 290, 190], [5, 5, 295, 195], [60, 60, 140, 140], [62, 61, 150, 150]]
    )
    names = ["aeroplane", "bicycle", "traffic light", "cat", "motorcycle"]
    image = torch.rand(3, 200, 300)
    figure = plot_matching(image, targets, targets, torch.eye(5, 6), target_labels=torch.arange(5), class_names=names)
    figure.canvas.draw()
    boxes = [text.get_bbox_patch().get_window_extent() for text in figure.axes[0].texts]
    area = figure.axes[0].get_window_extent().padded(2)
    for index, box in enumerate(boxes):
        assert area.x0 <= box.x0 <= box.x1 <= area.x1
        assert area.y0 <= box.y0 <= box.y1 <= area.y1
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_padded_targets_are_left_out_unread_and_the_others_keep_their_colour_and_index():
    boxes = torch.stack((TARGETS[0], torch.full((4,), math.nan), TARGETS[1]))
    plan = torch.stack((PLAN[:, 0], torch.full((5,), math.nan), PLAN[:, 1], PLAN[:, 2]), dim=1)
    mask = torch.tensor([True, False, True])
    labels = torch.tensor([0, -100, 1])
    figure = plot_matching(None, PREDS, boxes, plan, mask=mask)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "2"]
    full = plot_matching(None, PREDS, sample_boxes(3), sample_plan(5, 3))
    np.testing.assert_array_equal(
        artist(figure, "targets").get_edgecolors(), artist(full, "targets").get_edgecolors()[[0, 2]]
    )
    plain = plot_matching(None, PREDS, TARGETS, PLAN)
    np.testing.assert_array_equal(artist(figure, "links").get_segments(), artist(plain, "links").get_segments())
    named = plot_matching(None, PREDS, boxes, plan, mask=mask, target_labels=labels, class_names=["a", "b"])
    assert [text.get_text() for text in named.axes[0].texts] == ["a", "b"]


# ---- plot_matching: the image


def test_images_of_all_kinds_look_the_same():
    grey = torch.randint(0, 256, (20, 30), dtype=torch.uint8)
    shown = [
        plot_matching(image, PREDS[:0], TARGETS[:0], torch.zeros(0, 1)).axes[0].images[0].get_array()
        for image in (grey, grey.expand(3, 20, 30), grey / 255, (grey / 255).double().expand(3, 20, 30))
    ]
    for array in shown:
        assert array.shape == (20, 30, 3)
        np.testing.assert_allclose(array, shown[0], atol=1e-6)


def test_a_box_that_covers_the_image_fills_the_axes_and_pixels_are_square():
    box = torch.tensor([[0.0, 0.0, 30.0, 20.0]])
    axes = plot_matching(torch.zeros(3, 20, 30), box, box, torch.tensor([[1.0, 0.0]])).axes[0]
    assert (*axes.get_xlim(), *axes.get_ylim()) == (0, 30, 20, 0)
    assert tuple(axes.images[0].get_extent()) == (0, 30, 20, 0)
    assert axes.get_aspect() == 1


def test_an_empty_canvas_shows_all_boxes_with_y_downwards():
    axes = plot_matching(None, PREDS, TARGETS, PLAN).axes[0]
    boxes = torch.cat((PREDS, TARGETS))
    assert axes.get_xlim()[0] < boxes[:, 0].min() < boxes[:, 2].max() < axes.get_xlim()[1]
    assert axes.get_ylim()[1] < boxes[:, 1].min() < boxes[:, 3].max() < axes.get_ylim()[0]
    assert axes.get_aspect() == 1


# ---- plot_cost


def test_the_heat_map_of_a_cost_holds_and_prints_it_with_the_background_apart():
    figure = plot_cost(COST)
    axes = figure.axes[0]
    np.testing.assert_allclose(cells(figure), COST, rtol=1e-6)
    assert [text.get_text() for text in axes.texts] == [f"{value:.2f}" for value in COST.flatten().tolist()]
    assert tick_texts(figure, "x") == ["0", "1", "∅"]
    assert tick_texts(figure, "y") == ["0", "1", "2", "3", "4"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("target", "prediction")
    steps = np.diff(axes.get_xticks())
    assert steps[1] > steps[0] == 1
    assert figure.axes[1].get_ylabel() == "cost"


def test_forbidden_pairs_are_hatched_and_only_they():
    cost = COST.clone()
    cost[1, 0] = cost[4, 1] = math.inf
    figure = plot_cost(cost)
    np.testing.assert_array_equal(np.ma.getmaskarray(cells(figure)), cost.isinf())
    hatched = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert hatched
    assert len(figure.axes[0].texts) == cost.isfinite().sum()
    assert not any(patch.get_hatch() for patch in plot_cost(COST).axes[0].patches)
    low, high = figure.axes[0].collections[0].get_clim()
    assert (low, high) == (pytest.approx(0.4), pytest.approx(1.11))


@pytest.mark.parametrize("value", [0.0, 3.5, math.inf])
def test_a_constant_cost_can_be_drawn(value):
    assert png(plot_cost(torch.full((3, 2), value)))


@pytest.mark.parametrize(
    ("annotate", "shape", "printed"),
    [(None, (5, 3), 15), (None, (80, 3), 0), (False, (5, 3), 0), (True, (40, 12), 480)],
)
def test_values_are_printed_on_request_or_if_there_are_few(annotate, shape, printed):
    assert len(plot_cost(torch.rand(shape), annotate=annotate).axes[0].texts) == printed


def test_of_many_predictions_those_with_the_cheapest_pairs_are_shown_under_their_index():
    cost = torch.rand(1000, 4)
    figure = plot_cost(cost)
    rows = cost[:, :3].amin(1).argsort()[:100].sort().values
    np.testing.assert_allclose(cells(figure), cost[rows], rtol=1e-6)
    shown = rows[(figure.axes[0].get_yticks() - 0.5).astype(int)].tolist()
    assert tick_texts(figure, "y") == [str(row) for row in shown]
    assert figure.axes[0].get_ylabel() == "prediction (100 of 1,000)"


# ---- plot_plan


def test_the_margins_of_a_plan_are_its_row_and_column_sums():
    plan = torch.rand(4, 3)
    figure = plot_plan(plan)
    np.testing.assert_allclose(cells(figure), plan, rtol=1e-6)
    above, beside = figure.axes[1], figure.axes[2]
    np.testing.assert_allclose([bar.get_height() for bar in above.patches], plan.sum(0), rtol=1e-6)
    np.testing.assert_allclose([bar.get_width() for bar in beside.patches], plan.sum(1), rtol=1e-6)
    assert [text.get_text() for text in above.texts] == [f"{value:.2f}" for value in plan.sum(0).tolist()]
    assert figure.axes[3].get_ylabel() == "mass"
    ticks = figure.axes[0].get_xticks()
    np.testing.assert_allclose([bar.get_x() + bar.get_width() / 2 for bar in above.patches], ticks)


def test_column_sums_count_the_predictions_that_are_not_shown():
    plan = sample_plan(500, 2)
    figure = plot_plan(plan)
    rows = plan[:, :2].sum(1).argsort(descending=True, stable=True)[:100].sort().values
    np.testing.assert_allclose(cells(figure), plan[rows], rtol=1e-6)
    np.testing.assert_allclose([bar.get_height() for bar in figure.axes[1].patches][:2], plan[:, :2].sum(0), rtol=1e-5)


def test_a_background_that_dwarfs_the_targets_is_cut_marked_and_labelled_with_its_mass():
    plan = torch.cat((torch.eye(40, 2), 1 - torch.eye(40, 2).sum(1, keepdim=True)), dim=1)
    above = plot_plan(plan).axes[1]
    assert above.patches[-1].get_height() < 38
    assert [text.get_text() for text in above.texts] == ["≈", "1.00", "1.00", "38.00"]


# ---- cost and plan


@pytest.mark.parametrize("plot", [plot_cost, plot_plan])
def test_padded_columns_are_left_out_unread(plot):
    matrix = torch.rand(4, 4)
    matrix[:, 1] = math.nan
    figure = plot(matrix, mask=torch.tensor([True, False, True]))
    np.testing.assert_allclose(cells(figure), matrix[:, [0, 2, 3]], rtol=1e-6)
    assert tick_texts(figure, "x") == ["0", "2", "∅"]
    colors = [to_rgb(label.get_color()) for label in figure.axes[0].get_xticklabels()]
    full = [to_rgb(label.get_color()) for label in plot(torch.rand(4, 4)).axes[0].get_xticklabels()]
    assert colors == [full[0], full[2], full[3]]


# ---- plot_path


def test_the_path_leads_from_closest_prediction_through_hungarian_to_closest_target():
    figure = plot_path(None, PREDS, TARGETS, COST, reg=1e-3, steps=3)
    plans = [cells(figure, panel) for panel in (3, 4, 5)]
    limits = ClosestPrediction(uniform_background=True), Hungarian(), ClosestTarget()
    for plan, matcher in zip(plans, limits, strict=True):
        np.testing.assert_allclose(plan, matcher.compute_matching(COST[None], BOTH)[0], atol=1e-3)


def test_each_panel_of_the_path_says_the_parameters_of_its_plan():
    figure = plot_path(None, PREDS, TARGETS, COST, reg=0.1, steps=5, title="a title")
    inf = math.inf
    penalties = [(0.0, inf), (0.1, inf), (inf, inf), (inf, 0.1), (inf, 0.0)]
    names = ["soft ClosestPrediction", "unbalanced", "balanced", "unbalanced", "soft ClosestTarget"]
    for step, (name, (pred, target)) in enumerate(zip(names, penalties, strict=True)):
        expected = f"{name}\nreg_pred = {pred:g}, reg_target = {target:g}".replace("inf", "∞")
        assert figure.axes[step].get_title() == expected
        matcher = UnbalancedSinkhorn(reg_pred=pred, reg_target=target, reg=0.1)
        plan = matcher.compute_matching(COST[None].double(), BOTH)[0]
        np.testing.assert_allclose(cells(figure, 5 + step), plan, atol=1e-6)
        assert len(artist(figure, "links", step).get_paths()) == int((plan[:, :2] >= 0.05).sum())
    assert figure.get_suptitle() == "a title"


@pytest.mark.parametrize("steps", [3, 5, 9])
def test_the_exponents_of_the_path_move_in_equal_steps(steps):
    figure = plot_path(None, PREDS, TARGETS, COST, reg=0.05, steps=steps)
    assert len(figure.axes) == 2 * steps + 1  # the last is the colour bar
    exponents = []
    for axes in figure.axes[:steps]:
        text = axes.get_title().split("\n")[1].replace("∞", "inf").split(", ")
        pred, target = (float(part.split(" = ")[1]) for part in text)
        exponents.append([1.0 if math.isinf(x) else x / (x + 0.05) for x in (pred, target)])
    rising = np.linspace(0, 1, steps // 2 + 1)
    np.testing.assert_allclose([pred for pred, _ in exponents[: steps // 2 + 1]], rising, atol=5e-3)
    np.testing.assert_allclose([target for _, target in exponents[steps // 2 :]], rising[::-1], atol=5e-3)


def test_panels_of_the_path_share_rows_scale_and_link_widths():
    preds, targets = sample_boxes(150), sample_boxes(3)
    cost = torch.cat((torch.rand(150, 3), torch.full((150, 1), 0.5)), dim=1)
    figure = plot_path(torch.rand(3, 200, 200), preds, targets, cost, steps=3)
    assert len({axes.collections[0].get_clim() for axes in figure.axes[3:6]}) == 1
    assert len({axes.collections[0].get_array().shape for axes in figure.axes[3:6]}) == 1
    assert figure.axes[3].get_ylabel() == "prediction (100 of 150)"
    assert all(axes.get_aspect() == 1 and len(axes.images) == 1 for axes in figure.axes[:3])


# ---- all of them


def all_figures(preds, targets, cost, plan, image=None):
    yield plot_matching(image, preds, targets, plan, title="matching")
    yield plot_cost(cost, title="cost")
    yield plot_plan(plan, title="plan")
    yield plot_path(image, preds, targets, cost, steps=3, title="path")


@pytest.mark.parametrize(("P", "T"), [(0, 0), (1, 0), (3, 0), (1, 1), (2, 4), (30, 3)])
def test_any_number_of_predictions_and_targets_can_be_drawn(P, T):
    cost = torch.cat((torch.rand(P, T), torch.full((P, 1), 0.8)), dim=1)
    for figure in all_figures(sample_boxes(P), sample_boxes(T), cost, sample_plan(P, T), torch.rand(3, 200, 200)):
        assert png(figure).startswith(b"\x89PNG")


def test_targets_without_predictions_can_be_drawn():
    assert png(plot_matching(None, PREDS[:0], TARGETS, torch.zeros(0, 3)))
    assert png(plot_cost(torch.zeros(0, 3)))
    assert png(plot_plan(torch.zeros(0, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_arguments_of_any_device_and_dtype_with_or_without_gradient_are_left_unchanged(dtype, device):
    originals = [PREDS, TARGETS, COST, PLAN, torch.rand(3, 140, 180)]
    preds, targets, cost, plan, image = (x.to(device, dtype, copy=True).requires_grad_() for x in originals)
    given = [preds, targets, cost, plan, image]
    copies = [x.detach().clone() for x in given]
    figures = list(all_figures(preds, targets, cost, plan, image))
    assert len(figures) == 4
    for tensor, copy in zip(given, copies, strict=True):
        assert tensor.requires_grad
        assert tensor.grad is None
        torch.testing.assert_close(tensor.detach(), copy, rtol=0, atol=0)


def test_figures_have_their_own_canvas_and_need_no_pyplot(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now fails
    for figure in all_figures(PREDS, TARGETS, COST, PLAN):
        assert isinstance(figure.canvas, FigureCanvasAgg)
        assert png(figure)


def test_figures_are_unknown_to_pyplot_and_freed_with_their_last_reference():
    from matplotlib import pyplot, rcParams

    settings, before = dict(rcParams), pyplot.get_fignums()
    references = [weakref.ref(figure) for figure in all_figures(PREDS, TARGETS, COST, PLAN)]
    assert pyplot.get_fignums() == before
    assert dict(rcParams) == settings
    gc.collect()
    assert all(reference() is None for reference in references)


@pytest.mark.parametrize("plot", [lambda: plot_cost(COST), lambda: plot_matching(None, PREDS, TARGETS, PLAN)])
def test_a_missing_matplotlib_is_reported_with_the_extra_to_install(monkeypatch, plot):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "uotod\[plot\]"'):
        plot()


def matching(**changes):
    arguments = {"image": None, "pred_boxes": PREDS, "target_boxes": TARGETS, "plan": PLAN} | changes
    return lambda: plot_matching(**arguments)


def path(**changes):
    arguments = {"image": None, "pred_boxes": PREDS, "target_boxes": TARGETS, "cost": COST} | changes
    return lambda: plot_path(**arguments)


def with_value(matrix: Tensor, value: float) -> Tensor:
    return torch.cat((matrix[:1].where(torch.arange(matrix.shape[1]) != 1, value), matrix[1:]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (matching(pred_boxes=PREDS.numpy()), TypeError, r"pred_boxes must be a tensor of real numbers, got ndarray"),
        (matching(pred_boxes=PREDS[:, :3]), ValueError, r"pred_boxes must have shape \(P, 4\), got \(5, 3\)"),
        (matching(pred_boxes=PREDS[None]), ValueError, r"pred_boxes must have shape \(P, 4\), got \(1, 5, 4\)"),
        (matching(target_boxes=TARGETS > 1), TypeError, r"target_boxes must be .* real numbers, got torch.bool"),
        (matching(target_boxes=TARGETS[0]), ValueError, r"target_boxes must have shape \(T, 4\), got \(4,\)"),
        (
            matching(pred_boxes=with_value(PREDS, math.nan)),
            ValueError,
            r"pred_boxes must be finite, got nan at \(0, 1\)",
        ),
        (matching(plan=PLAN[:4]), ValueError, r"plan must have shape \(5, T \+ 1\), got \(4, 3\)"),
        (matching(plan=PLAN[:, :1]), ValueError, r"plan must have shape \(P, T \+ 1\) = \(5, 3\), got \(5, 1\)"),
        (
            matching(plan=with_value(PLAN, -0.5)),
            ValueError,
            r"plan must be finite and at least 0, got -0.5 at \(0, 1\)",
        ),
        (matching(plan=with_value(PLAN, math.inf)), ValueError, r"plan must be finite and at least 0, got inf"),
        (matching(image=torch.rand(20, 30, 3)), ValueError, r"image must have shape \(3, H, W\), got \(20, 30, 3\)"),
        (matching(image=torch.rand(3)), ValueError, r"image must have shape \(H, W\), got \(3,\)"),
        (
            matching(image=torch.zeros(3, 0, 5)),
            ValueError,
            r"image must have at least one pixel, got shape \(3, 0, 5\)",
        ),
        (matching(image=torch.full((3, 4, 5), 255.0)), ValueError, r"image must be in \[0, 1\] .*uint8, got 255"),
        (matching(image="cat.png"), TypeError, r"image must be a tensor of real numbers, got str"),
        (matching(mask=torch.ones(2)), TypeError, r"mask must be a tensor of dtype torch.bool, got torch.float32"),
        (matching(mask=[True, True]), TypeError, r"mask must be a tensor of dtype torch.bool, got list"),
        (matching(mask=BOTH), ValueError, r"mask must have shape \(T,\) = \(2,\), got \(1, 2\)"),
        (
            matching(target_labels=torch.zeros(3).long()),
            ValueError,
            r"target_labels must have shape \(2,\), got \(3,\)",
        ),
        (matching(target_labels=torch.zeros(2)), TypeError, r"target_labels must be .* integers, got torch.float32"),
        (
            matching(target_labels=torch.tensor([0, 2]), class_names=["a", "b"]),
            ValueError,
            r"target_labels must be in \[0, 2\), got 2 at \(1,\)",
        ),
        (matching(class_names=["a"]), ValueError, r"target_labels must be given with class_names, got None"),
        (matching(min_mass=0.0), ValueError, r"min_mass must lie in \(0.0, inf\), got 0.0"),
        (matching(max_preds=-1), ValueError, r"max_preds must be at least 0, got -1"),
        (lambda: plot_cost(COST[0]), ValueError, r"cost must have shape \(P, T \+ 1\), got \(3,\)"),
        (lambda: plot_cost(COST[:, :0]), ValueError, r"cost must have shape \(P, T \+ 1\) = \(5, 1\), got \(5, 0\)"),
        (lambda: plot_cost(with_value(COST, math.nan)), ValueError, r"cost must be above -inf and not NaN, got nan"),
        (
            lambda: plot_cost(with_value(COST, -math.inf)),
            ValueError,
            r"cost must be above -inf .*, got -inf at \(0, 1\)",
        ),
        (lambda: plot_cost(COST, annotate="yes"), TypeError, r"annotate must be a bool, got 'yes'"),
        (lambda: plot_cost(COST, mask=BOTH[0, :1]), ValueError, r"mask must have shape \(T,\) = \(2,\), got \(1,\)"),
        (lambda: plot_plan(-PLAN), ValueError, r"plan must be finite and at least 0, got -0.7 at \(0, 0\)"),
        (path(cost=COST[:, :2]), ValueError, r"cost must have shape \(P, T \+ 1\) = \(5, 3\), got \(5, 2\)"),
        (path(steps=4), ValueError, r"steps must be odd, .*, got 4"),
        (path(steps=1), ValueError, r"steps must be at least 3, got 1"),
        (path(steps=3.0), TypeError, r"steps must be an integer, got 3.0"),
        (path(reg=0.0), ValueError, r"reg must lie in \(0.0, inf\), got 0.0"),
        (path(colour="red"), TypeError, r"unexpected keyword argument 'colour'"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()
