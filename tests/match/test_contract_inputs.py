"""The contract of every matcher for each kind of input: places, labels, lists, weights, decoder layers, the loss."""

import pytest
import torch
from torch import Tensor, nn

from tests.support.matcher_cases import CASES
from tests.support.problems import Problem, jittered, matched, random_problem
from uotod.loss import DetectionLoss
from uotod.match import Matcher
from uotod.scene.scene import parse_scene
from uotod.utils import Anchors, Points

JOINT = ("SharedLayers", "UnionVote")  # match all layers together
ANY_OPTIMUM = ("Hungarian", *JOINT)  # promise an optimum, and no index among several
READERS = ("BalancedPOT", "EMD", "Hungarian", "PartialOT", "UnbalancedPOT", "WeightedSum", *JOINT)
FREE = [name for name in CASES if not name.startswith(READERS) and not name.endswith("-pot")]


def placed(problem: Problem, kind: str) -> Anchors | Points:
    """Return places near the predictions: the same ones for all images, or different ones for each."""
    boxes = problem.anchors.boxes if kind == "points" else jittered(problem.input["pred_boxes"].detach())
    if kind == "anchors of each image":
        return Anchors(boxes, problem.anchors.stride, problem.anchors.level)
    return Points((boxes[..., :2] + boxes[..., 2:]) / 2, 0.2)


def of_image(places: Anchors | Points, image: int) -> Anchors | Points:
    """Return the places of one image."""
    if places.places.dim() == 2:
        return places
    own = places.places[image : image + 1]
    if isinstance(places, Anchors):
        return Anchors(own, places.stride, places.level, places.num_levels)
    return Points(own, places.stride, places.level, places.num_levels)


def rows(values: dict[str, Tensor], image: int) -> dict[str, Tensor]:
    return {k: v[image : image + 1] for k, v in values.items()}


@pytest.mark.parametrize("kind", ["anchors of each image", "points", "points of each image"])
def test_a_plan_does_not_depend_on_its_batch_wherever_its_places_are(matcher: Matcher, kind: str) -> None:
    problem = random_problem(4, 24, 4)
    problem.target["cost_weight"] = 0.5 + torch.rand(4, 4)
    places = placed(problem, kind)
    together = matched(matcher(problem.input, problem.target, places))
    assert together.shape == (4, 24, 5)
    for b in range(4):
        alone = matcher(rows(problem.input, b), rows(problem.target, b), of_image(places, b))
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-7)


def test_one_hot_labels_are_as_good_as_integers(matcher: Matcher) -> None:
    problem = random_problem(3, 16, 4)
    one_hot = nn.functional.one_hot(problem.target["labels"].clamp(min=0), 5).double()
    plan = matched(matcher(problem.input, problem.target, problem.anchors))
    found = matcher(problem.input, problem.target | {"labels": one_hot}, problem.anchors)
    torch.testing.assert_close(found, plan, rtol=0, atol=1e-6)


def test_a_list_of_targets_is_as_good_as_a_padded_dict(matcher: Matcher) -> None:
    problem = random_problem(3, 16, 4)
    problem.target["cost_weight"] = 0.5 + torch.rand(3, 4, dtype=torch.float64)
    problem.target["ignore"] = torch.rand(3, 4) < 0.2
    mask = problem.target["mask"]
    images = [{k: v[b][mask[b]] for k, v in problem.target.items() if k != "mask"} for b in range(3)]
    plan = matched(matcher(problem.input, problem.target, problem.anchors))
    found = matcher(problem.input, images, problem.anchors)
    for b in range(3):
        count = int(mask[b].sum())
        torch.testing.assert_close(found[b, :, :count], plan[b, :, :-1][:, mask[b]], rtol=0, atol=1e-7)
        torch.testing.assert_close(found[b, :, -1], plan[b, :, -1], rtol=0, atol=1e-7)


def test_equal_weights_of_one_change_nothing(matcher: Matcher) -> None:
    problem = random_problem(3, 16, 4)
    plan = matched(matcher(problem.input, problem.target, problem.anchors))
    weighted = problem.target | {"cost_weight": torch.ones(3, 4).masked_fill(~problem.target["mask"], torch.nan)}
    assert torch.equal(matcher(problem.input, weighted, problem.anchors), plan)


@pytest.mark.parametrize("name", [name for name in CASES if name not in JOINT])
def test_the_plan_of_a_decoder_layer_is_that_of_the_layer_alone(matcher: Matcher) -> None:
    problem = random_problem(3, 16, 4)
    places = placed(problem, "anchors of each image")
    layers = [{k: v + 0.02 * torch.randn_like(v) for k, v in problem.input.items()} for _ in range(3)]
    stacked = layers[-1] | {"aux_outputs": layers[:-1]}
    plan = matched(matcher.scene_plan(parse_scene(stacked, problem.target, places, auxiliary=True)).to_dense())
    for index, layer in enumerate(layers):
        alone = matcher(layer, problem.target, places)
        torch.testing.assert_close(plan[3 * index : 3 * index + 3], alone, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("cls", "position"), [(nn.CrossEntropyLoss, "first"), (nn.BCEWithLogitsLoss, "none")], ids=["first", "none"]
)
def test_the_loss_of_every_matcher_and_its_gradient_are_finite(
    matcher: Matcher, cls: type[nn.Module], position: str, device: torch.device
) -> None:
    problem = random_problem(3, 16, 4).to(device)
    loss = DetectionLoss(cls(reduction="none"), nn.L1Loss(reduction="none"), matcher, position)
    terms = loss.terms(problem.input, problem.target, problem.anchors)
    assert terms["num_pos"] > 1e-3
    assert terms["loss"].isfinite()
    terms["loss"].backward()
    for tensor in problem.input.values():
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert (tensor.grad != 0).any()


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if not case.soft and not name.startswith(ANY_OPTIMUM)]
)
def test_the_lower_of_two_equal_indices_never_gets_less(matcher: Matcher) -> None:
    some = False
    for _ in range(50):
        cost = torch.randint(0, 4, (2, 8, 5)).double()
        cost[:, [2, 6]] = cost[:, [1, 3]]  # predictions 1 and 2 are equal, and 3 and 6
        cost[..., 2] = cost[..., 1]  # targets 1 and 2
        cost[..., -1] = 2
        plan = matcher.compute_matching(cost, torch.ones(2, 4, dtype=torch.bool))
        positive = plan[..., :-1]
        some = some or bool((positive > 1e-3).any())
        assert (positive.sum(-1)[:, [1, 3]] >= positive.sum(-1)[:, [2, 6]]).all()
        assert (positive.sum(1)[:, 1] >= positive.sum(1)[:, 2]).all()
    assert some


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", FREE)
def test_no_matcher_synchronises_but_those_whose_solver_reads_values(matcher: Matcher) -> None:
    problem = random_problem(3, 16, 4).to(torch.device("cuda"))
    expected = matched(matcher(problem.input, problem.target, problem.anchors))
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan = matcher(problem.input, problem.target, problem.anchors)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    torch.testing.assert_close(plan, expected, rtol=0, atol=1e-9)
