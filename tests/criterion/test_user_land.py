"""Fields of one's own equal a loop over images, predictions and targets: losses, gradients and costs."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.support.docs import defined
from tests.support.problems import random_boxes
from uotod.loss import DetectionLoss, GIoULoss, MultipleObjectiveLoss, NegativeProbLoss
from uotod.match import BalancedSinkhorn, Hungarian, IoUThreshold, Matcher, SharedLayers

PAGE = "own_fields.rst"
C, P = 4, 5
H, W = 4, 3
COUNTS = [(2, 3), (1, 0, 3), (0, 0), (1,)]
MATCHERS = {"hard": Hungarian, "soft": BalancedSinkhorn}
Fields = dict[str, Tensor]


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return the Dice loss of one pair, pixel by pixel."""
    both = either = torch.zeros((), dtype=torch.float64)
    for y, x in product(range(logits.shape[0]), range(logits.shape[1])):
        probability = 1 / (1 + torch.exp(-logits[y, x]))
        wanted = float(target[y, x]) if y < target.shape[0] and x < target.shape[1] else 0.0
        both, either = both + probability * wanted, either + probability + wanted
    return 1 - (2 * both + 1) / (either + 1)


def valid_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return the Dice loss of one pair without what is predicted outside of the target's image."""
    return dice(logits[: target.shape[0], : target.shape[1]], target)


def rotated_l1(box: Tensor, target: Tensor) -> Tensor:
    return sum((box[k] - target[k]).abs() for k in range(4)) + torch.sin(box[4] - target[4]).abs()


def keypoint_l1(points: Tensor, target: Tensor, visibility: Tensor) -> Tensor:
    seen = [k for k in range(len(points)) if int(visibility[k]) > 0]
    total = sum((points[k, x] - target[k, x]).abs() for k in seen for x in range(2))
    return total / max(len(seen), 1) + 0 * points.sum()


def prototype_bce(coefficients: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for y, x in product(range(H), range(W)):
        logit = sum(coefficients[m] * prototypes[m, y, x] for m in range(len(coefficients)))
        sign = -1.0 if bool(target[y, x]) else 1.0
        total = total + torch.log(1 + torch.exp(sign * logit))
    return total / (H * W)


@dataclass
class Case:
    """A module of the documentation.

    Attributes:
        name: its class.
        preds: sizes of the fields of a prediction.
        targets: for each field of a target a function of the number of targets and of the image.
        row: the loss of one pair, of a function that returns its fields.
        images: sizes of the fields of an image.
    """

    name: str
    preds: dict[str, tuple[int, ...]]
    targets: dict[str, Callable[[int, int], Tensor]]
    row: Callable[[Fields, Fields, int, int, int], Tensor]
    images: dict[str, tuple[int, ...]] | None = None

    def module(self) -> nn.Module:
        return defined(PAGE, self.name)()


def masks(count: int, image: int) -> Tensor:
    """Return masks of the size of their image; the first one has all of it."""
    return torch.rand(count, H - image % 2, W - image // 2) > 0.5


def whole_masks(count: int, image: int) -> Tensor:
    return torch.rand(count, H, W) > 0.5


def reals(*size: int) -> Callable[[int, int], Tensor]:
    return lambda count, image: torch.rand(count, *size, dtype=torch.float64)


CASES = [
    Case(
        "MaskDice",
        {"pred_masks": (H, W)},
        {"masks": masks},
        lambda x, y, b, i, j: dice(x["pred_masks"][b, i], y["masks"][j]),
    ),
    Case(
        "RotatedL1",
        {"pred_boxes": (5,)},
        {"boxes": reals(5)},
        lambda x, y, b, i, j: rotated_l1(x["pred_boxes"][b, i], y["boxes"][j]),
    ),
    Case(
        "KeypointL1",
        {"pred_keypoints": (3, 2)},
        {"keypoints": reals(3, 2), "visibility": lambda count, image: torch.randint(0, 3, (count, 3))},
        lambda x, y, b, i, j: keypoint_l1(x["pred_keypoints"][b, i], y["keypoints"][j], y["visibility"][j]),
    ),
    Case(
        "PrototypeBCE",
        {"pred_coefficients": (2,)},
        {"masks": whole_masks},
        lambda x, y, b, i, j: prototype_bce(x["pred_coefficients"][b, i], x["image_prototypes"][b], y["masks"][j]),
        {"image_prototypes": (2, H, W)},
    ),
]
BY_NAME = {case.name: case for case in CASES}


def layer_of(case: Case, images: int, final: bool = True) -> Fields:
    sizes = {"pred_logits": (images, P, C)} | {key: (images, P, *size) for key, size in case.preds.items()}
    if final:
        sizes |= {key: (images, *size) for key, size in (case.images or {}).items()}
    return {key: torch.randn(size, dtype=torch.float64).requires_grad_() for key, size in sizes.items()}


def problem(case: Case, counts: Sequence[int]) -> tuple[Fields, list[Fields]]:
    target = [
        {"labels": torch.randint(1, C, (count,))} | {key: make(count, b) for key, make in case.targets.items()}
        for b, count in enumerate(counts)
    ]
    return layer_of(case, len(counts)), target


def criterion(module: nn.Module, matcher: Matcher) -> DetectionLoss:
    return DetectionLoss(nn.CrossEntropyLoss(reduction="none"), module, matcher)


def expected_loss(case: Case, input: Fields, target: list[Fields], plan: Tensor) -> Tensor:
    """Return the mean over the mass of the plan of the losses of its pairs."""
    total, mass = sum(x.sum() for x in input.values()) * 0, 0.0
    for b, image in enumerate(target):
        for i, j in product(range(P), range(len(image["labels"]))):
            m = float(plan[b, i, j])
            if m > 0:
                total, mass = total + m * case.row(input, image, b, i, j), mass + m
    return total / max(mass, 1.0)


def assert_same_gradients(actual: Tensor, expected: Tensor, fields: Sequence[Tensor]) -> None:
    ours = torch.autograd.grad(actual, fields, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(expected, fields, allow_unused=True, retain_graph=True)
    for a, e, field in zip(ours, theirs, fields, strict=True):
        zero = torch.zeros_like(field)
        torch.testing.assert_close(zero if a is None else a, zero if e is None else e, rtol=1e-10, atol=1e-12)


@pytest.fixture(params=[False, True], ids=["host", "static"])
def static(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether shapes may depend on no value, as on a GPU."""
    if request.param:
        monkeypatch.setattr("uotod.scene.scene.reads_values", lambda tensor, validate: False)
    return request.param


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("kind", MATCHERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_loss_and_its_gradient_are_those_of_a_loop(case, kind, counts, static) -> None:
    matcher = MATCHERS[kind](loc_match_module=case.module())
    input, target = problem(case, counts)
    terms = criterion(case.module(), matcher).terms(input, target)
    expected = expected_loss(case, input, target, matcher(input, target))
    torch.testing.assert_close(terms["loss_loc"], expected, rtol=1e-10, atol=1e-12)
    assert_same_gradients(terms["loss_loc"], expected, list(input.values()))
    if kind == "hard":
        assert terms["num_pos"] == sum(counts)


@pytest.mark.parametrize("kind", MATCHERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decoder_layers_are_those_of_a_loop_and_share_what_belongs_to_the_image(case, kind, static) -> None:
    matcher = MATCHERS[kind](loc_match_module=case.module())
    input, target = problem(case, (2, 3))
    earlier = layer_of(case, 2, final=False)
    terms = criterion(case.module(), matcher).terms(input | {"aux_outputs": [earlier]}, target)
    shared = {key: input[key] for key in case.images or ()}
    expected = [expected_loss(case, x, target, matcher(x, target)) for x in (earlier | shared, input)]
    for name, value in zip(("loss_loc_0", "loss_loc"), expected, strict=True):
        torch.testing.assert_close(terms[name], value, rtol=1e-10, atol=1e-12)
    leaves = [*input.values(), *earlier.values()]
    assert_same_gradients(terms["loss_loc_0"] + terms["loss_loc"], sum(expected), leaves)


class Rows(nn.Module):
    """A module of rows, without the `pairwise` of another one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.needs = module, module.needs

    def forward(self, **fields: Tensor) -> Tensor:
        return self.module(**fields)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_cost_is_that_of_a_loop(case, by_rows, counts) -> None:
    module = Rows(case.module()) if by_rows else case.module()
    matcher = Hungarian(loc_match_module=module, background_cost=7.0)
    input, target = problem(case, counts)
    cost = matcher.compute_cost_matrix(input, target)
    assert cost.shape == (len(counts), P, max(counts) + 1)
    assert (cost[..., -1] == 7.0).all()
    for b, image in enumerate(target):
        assert (cost[b, :, counts[b] : -1] == float("inf")).all()
        for i, j in product(range(P), range(counts[b])):
            torch.testing.assert_close(cost[b, i, j], case.row(input, image, b, i, j).detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", ["list", "padded"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_targets_that_are_nothing_need_no_shape(case, layout) -> None:
    matcher = Hungarian(loc_match_module=case.module())
    input, _ = problem(case, (0, 0))
    nothing = dict.fromkeys(("labels", *case.targets), torch.tensor([]))
    if layout == "padded":
        nothing = {key: torch.zeros(2, 0) for key in nothing}
    target = nothing if layout == "padded" else [nothing, nothing]
    terms = criterion(case.module(), matcher).terms(input, target)
    assert terms["loss_loc"] == 0
    assert matcher.compute_cost_matrix(input, target).shape == (2, P, 1)
    terms["loss"].backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in input.values())


@pytest.mark.parametrize("name", ["RotatedL1", "KeypointL1", "PrototypeBCE"])
def test_what_lies_under_the_mask_is_never_read(name) -> None:
    case = BY_NAME[name]
    input, target = problem(case, (2, 2))
    padded = {key: torch.stack([image[key].to(torch.float64) for image in target]) for key in case.targets}
    padded |= {"labels": torch.stack([image["labels"] for image in target])}
    padded["mask"] = torch.tensor([[True, True], [True, False]])
    matcher = Hungarian(loc_match_module=case.module())
    clean = criterion(case.module(), matcher)(input, padded)
    for key in case.targets:
        padded[key] = padded[key].masked_fill(~padded["mask"].view(2, 2, *[1] * (padded[key].dim() - 2)), float("nan"))
    assert torch.equal(criterion(case.module(), matcher)(input, padded), clean)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_field_that_an_earlier_layer_lacks_skips_its_term(case, static) -> None:
    input, target = problem(case, (2, 1))
    earlier = {"pred_logits": torch.randn(2, P, C, dtype=torch.float64).requires_grad_()}
    matcher = Hungarian(cls_match_module=NegativeProbLoss(reduction="none"))
    loss = criterion(case.module(), matcher)
    terms = loss.terms(input | {"aux_outputs": [earlier]}, target)
    alone = loss.terms(input, target)
    assert terms["loss_loc_0"] == 0
    torch.testing.assert_close(terms["loss_loc"], alone["loss_loc"], rtol=1e-12, atol=1e-12)
    assert terms["loss_cls_0"] > 0
    assert_same_gradients(terms["loss_loc_0"] + terms["loss_loc"], alone["loss_loc"], list(input.values()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_field_that_is_missing_raises_and_names_who_needs_it(case) -> None:
    input, target = problem(case, (2, 1))
    matcher = Hungarian(cls_match_module=NegativeProbLoss(reduction="none"))
    loss = criterion(case.module(), matcher)
    earlier = layer_of(case, 2, final=False)
    for key in (*case.preds, *(case.images or {})):
        bare = {name: x for name, x in input.items() if name != key}
        owner = "" if key == "pred_boxes" else f" for {case.name}"
        with pytest.raises(ValueError, match=re.escape(f"input must have the key {key!r}{owner}, got the keys ")):
            loss(bare, target)
        with pytest.raises(ValueError, match=f"must have the key {key!r}"):
            loss(bare | {"aux_outputs": [earlier]}, target)
        with pytest.raises(ValueError, match=re.escape(f"input must have the key {key!r}{owner}, got the keys ")):
            Hungarian(loc_match_module=case.module())(bare, target)
    for key in case.targets:
        owner = "" if key == "boxes" else f" for {case.name}"
        bare = [{name: x for name, x in image.items() if name != key} for image in target]
        with pytest.raises(ValueError, match=re.escape(f"target must have the key {key!r}{owner}, got the keys ")):
            loss(input, bare)


def test_a_cost_of_a_field_that_an_earlier_layer_lacks_raises() -> None:
    case = BY_NAME["MaskDice"]
    input, target = problem(case, (2, 1))
    earlier = {"pred_logits": torch.randn(2, P, C, dtype=torch.float64)}
    loss = criterion(case.module(), Hungarian(loc_match_module=case.module()))
    message = "input['aux_outputs'][1] must have the key 'pred_masks' for MaskDice, got the keys ['pred_logits'"
    with pytest.raises(ValueError, match=re.escape(message)):
        loss(input | {"aux_outputs": [input, earlier]}, target)
    shared = criterion(case.module(), SharedLayers(loss.matching_method))
    terms = shared.terms(input | {"aux_outputs": [earlier]}, target)  # the final layer is all that is matched
    torch.testing.assert_close(terms["loss_loc"], loss.terms(input, target)["loss_loc"])


def test_a_rule_of_boxes_reads_none_that_a_layer_lacks() -> None:
    input = {"pred_logits": torch.randn(1, P, C), "pred_boxes": random_boxes(1, P)}
    target = {"labels": torch.tensor([[1, 2]]), "boxes": random_boxes(1, 2)}
    earlier = {"pred_logits": torch.randn(1, P, C)}
    loss = criterion(nn.L1Loss(reduction="none"), IoUThreshold())
    with pytest.raises(ValueError, match=re.escape("input['aux_outputs'][0] must have the key 'pred_boxes', got")):
        loss(input | {"aux_outputs": [earlier]}, target)


def test_box_losses_and_ones_own_add_up() -> None:
    case = BY_NAME["MaskDice"]
    input, target = problem(case, (2, 1))
    input["pred_boxes"] = random_boxes(2, P).requires_grad_()
    for image in target:
        image["boxes"] = random_boxes(len(image["labels"]))
    giou, l1 = GIoULoss(reduction="none"), nn.L1Loss(reduction="none")
    both = MultipleObjectiveLoss([l1, giou, case.module()], [5.0, 2.0, 3.0])
    matcher = Hungarian(loc_match_module=both)
    terms = criterion(both, matcher).terms(input, target)
    plan = matcher(input, target)
    for weight, name, module in ((5.0, "l1", l1), (2.0, "giou", giou), (3.0, "mask_dice", case.module())):
        alone = criterion(module, matcher).terms(input, target, plan=plan)["loss_loc"]
        torch.testing.assert_close(terms[f"loss_loc_{name}"], weight * alone, rtol=1e-12, atol=1e-12)
    parts = [x for name, x in terms.items() if name.startswith("loss_loc_")]
    torch.testing.assert_close(sum(parts), terms["loss_loc"])


# --- a term of one's own

TERM = Case(
    "MaskTerm",
    {"pred_masks": (H, W)},
    {"masks": masks},
    lambda x, y, b, i, j: valid_dice(x["pred_masks"][b, i], y["masks"][j]),
)


def with_term(matcher: Matcher, **options) -> DetectionLoss:
    return DetectionLoss(nn.CrossEntropyLoss(reduction="none"), None, matcher, extra_terms=[TERM.module()], **options)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("kind", MATCHERS)
def test_a_term_is_a_loop_that_leaves_padding_out(kind, counts, static) -> None:
    matcher = MATCHERS[kind](cls_match_module=NegativeProbLoss(reduction="none"))
    input, target = problem(TERM, counts)
    earlier = layer_of(TERM, len(counts))
    loss = with_term(matcher)
    terms = loss.terms(input | {"aux_outputs": [earlier]}, target)
    expected = [expected_loss(TERM, x, target, matcher(x, target)) for x in (earlier, input)]
    for name, value in zip(("loss_mask_0", "loss_mask"), expected, strict=True):
        torch.testing.assert_close(terms[name], value, rtol=1e-10, atol=1e-12)
    leaves = [*input.values(), *earlier.values()]
    assert_same_gradients(terms["loss_mask_0"] + terms["loss_mask"], sum(expected), leaves)
    total = sum(terms[key] for key in ("loss_cls", "loss_cls_0", "loss_mask", "loss_mask_0"))
    torch.testing.assert_close(terms["loss"], total)


def test_a_term_is_skipped_in_layers_without_its_field_and_raises_in_the_final_one(static) -> None:
    matcher = Hungarian(cls_match_module=NegativeProbLoss(reduction="none"))
    input, target = problem(TERM, (2, 1))
    bare = {"pred_logits": torch.randn(2, P, C, dtype=torch.float64)}
    loss = with_term(matcher)
    terms = loss.terms(input | {"aux_outputs": [bare]}, target)
    assert terms["loss_mask_0"] == 0
    torch.testing.assert_close(terms["loss_mask"], loss.terms(input, target)["loss_mask"], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=re.escape("input must have the key 'pred_masks' for MaskTerm")):
        loss(bare, target)


def test_the_weight_of_a_target_reaches_a_term_of_ones_own() -> None:
    matcher = Hungarian(cls_match_module=NegativeProbLoss(reduction="none"))
    input, target = problem(TERM, (2, 1))
    loss = with_term(matcher)
    plan = matcher(input, target)
    weight = [torch.tensor([0.5, 2.0]), torch.tensor([3.0])]
    weighted = [image | {"loss_weight": w} for image, w in zip(target, weight, strict=True)]
    expected = sum(
        weight[b][j] * float(plan[b, i, j]) * TERM.row(input, target[b], b, i, j)
        for b in range(2)
        for i, j in product(range(P), range(len(target[b]["labels"])))
    )
    torch.testing.assert_close(loss.terms(input, weighted)["loss_mask"], expected / 3, rtol=1e-10, atol=1e-12)
