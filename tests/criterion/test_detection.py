"""What the detection loss promises: its documented uses, edge cases, terms, layers, mining and errors."""

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor, nn

from tests.support.guards import take_gpu_path
from tests.support.matcher_cases import CASES
from tests.support.problems import Problem, random_boxes, random_problem
from uotod.loss import (
    DetectionLoss,
    GIoULoss,
    IoULoss,
    MassNormalizer,
    MultipleObjectiveLoss,
    NegativeProbLoss,
    SigmoidFocalLoss,
    TargetNormalizer,
)
from uotod.match import ClosestTarget, Hungarian, IoUThreshold, SoftMin, UnbalancedSinkhorn
from uotod.plan import Plan
from uotod.solvers.mining import mine_hard_negatives

N = "none"


def cross_entropy(**options) -> nn.Module:
    return nn.CrossEntropyLoss(reduction=N, **options)


def boxes_loss() -> MultipleObjectiveLoss:
    return MultipleObjectiveLoss([nn.L1Loss(reduction=N), GIoULoss(reduction=N)], [5.0, 2.0])


def simple(matcher=None, **options) -> DetectionLoss:
    matcher = Hungarian(loc_match_module=nn.L1Loss(reduction=N)) if matcher is None else matcher
    return DetectionLoss(cross_entropy(), boxes_loss(), matcher, **options)


def gradients(loss: Tensor, problem: Problem) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(problem.input.values()), allow_unused=True))


class TestDocumentedUses:
    """The three uses that the documentation of the original package shows."""

    def check(self, criterion: DetectionLoss, dtype: torch.dtype) -> None:
        problem = random_problem(4, 30, 5, 6, dtype=dtype)
        loss = criterion(problem.input, problem.target, problem.anchors)
        assert loss.shape == ()
        assert loss.isfinite()
        for gradient in gradients(loss, problem):
            assert gradient.isfinite().all()
            assert gradient.abs().sum() > 0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_hungarian_on_probabilities_and_boxes(self, dtype) -> None:
        matcher = Hungarian(
            cls_match_module=NegativeProbLoss(reduction=N), loc_match_module=nn.L1Loss(reduction=N), background_cost=0.0
        )
        self.check(DetectionLoss(cross_entropy(), nn.L1Loss(reduction=N), matcher), dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_hungarian_on_anchors(self, dtype) -> None:
        matcher = Hungarian(loc_match_module=IoULoss(reduction=N), is_anchor_based=True)
        self.check(DetectionLoss(cross_entropy(), nn.L1Loss(reduction=N), matcher), dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_unbalanced_transport_on_anchors_with_mining(self, dtype) -> None:
        matcher = UnbalancedSinkhorn(
            loc_match_module=IoULoss(reduction=N),
            is_anchor_based=True,
            reg_pred=1e3,
            reg_target=1e-3,
            background_cost=0.5,
        )
        criterion = DetectionLoss(
            cls_loss_module=cross_entropy(),
            loc_loss_module=nn.L1Loss(reduction=N),
            matching_method=matcher,
            use_hard_negative_mining=True,
            neg_to_pos_ratio=3.0,
        )
        self.check(criterion, dtype)


class TestEdges:
    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize(
        ("images", "preds", "targets"), [(2, 6, 0), (0, 6, 3), (0, 6, 0), (2, 3, 6), (2, 1, 1), (2, 0, 2), (1, 1, 0)]
    )
    def test_empty_and_crowded_input_is_ordinary(self, name, reduction, images, preds, targets) -> None:
        problem = random_problem(images, preds, targets)
        criterion = simple(CASES[name].build(), reduction=reduction)
        loss = criterion(problem.input, problem.target, problem.anchors)
        assert loss.shape == ()
        assert loss.isfinite()
        for gradient in gradients(loss, problem):
            assert gradient.isfinite().all()

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("mining", [None, 3.0])
    def test_images_that_are_all_padding_are_ordinary(self, name, mining) -> None:
        problem = random_problem(2, 8, 3)
        problem.target["mask"][:] = False
        criterion = simple(CASES[name].build(), use_hard_negative_mining=mining is not None, neg_to_pos_ratio=mining)
        terms = criterion.terms(problem.input, problem.target, problem.anchors)
        assert terms["loss_loc"] == 0
        assert terms["num_pos"] == 0
        logit_gradient, box_gradient = gradients(terms["loss"], problem)
        assert (box_gradient == 0).all()
        assert (logit_gradient.abs().sum() > 0) == (mining is None)  # without positives mining keeps no negatives

    def test_the_gradient_does_not_flow_through_the_plan(self) -> None:
        problem = random_problem(2, 8, 3)
        criterion = simple(SoftMin(loc_match_module=nn.L1Loss(reduction=N), reg=0.1))
        plan = criterion.matching_method(problem.input, problem.target, problem.anchors)

        class Fixed(type(criterion.matching_method)):
            def match(self, cost, mask):
                return Plan.from_columns(plan.transpose(1, 2), mask.shape[1])

        fixed = simple(Fixed(loc_match_module=nn.L1Loss(reduction=N)))
        expected = gradients(fixed(problem.input, problem.target, problem.anchors), problem)
        for a, e in zip(
            gradients(criterion(problem.input, problem.target, problem.anchors), problem), expected, strict=True
        ):
            torch.testing.assert_close(a, e)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_gives_a_float32_loss(self, dtype) -> None:
        problem = random_problem(2, 8, 3, dtype=torch.float32)
        half = {k: v.detach().to(dtype).requires_grad_() for k, v in problem.input.items()}
        loss = simple()(half, problem.target)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, simple()({k: v.float() for k, v in half.items()}, problem.target))
        loss.backward()
        assert half["pred_logits"].grad.dtype == dtype

    def test_autocast_does_not_change_the_loss(self) -> None:
        problem = random_problem(2, 8, 3, dtype=torch.float32)
        for matcher in (None, UnbalancedSinkhorn(loc_match_module=nn.L1Loss(reduction=N))):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = simple(matcher)(problem.input, problem.target, problem.anchors)
            assert torch.equal(loss, simple(matcher)(problem.input, problem.target, problem.anchors))

    def test_a_propagated_nan_reaches_the_loss(self) -> None:
        problem = random_problem(2, 8, 3)
        with torch.no_grad():
            problem.input["pred_logits"][0, 1] = float("nan")
        matcher = Hungarian(loc_match_module=nn.L1Loss(reduction=N), nonfinite="propagate")
        assert simple(matcher)(problem.input, problem.target, problem.anchors).isnan()

    def test_inverted_predictions_have_a_loss_and_a_gradient(self) -> None:
        problem = random_problem(2, 8, 3)
        boxes = problem.input["pred_boxes"].detach()[..., [2, 3, 0, 1]].requires_grad_()
        loss = simple()(problem.input | {"pred_boxes": boxes}, problem.target)
        loss.backward()
        assert loss.isfinite()
        assert boxes.grad.abs().sum() > 0

    def test_the_static_path_of_a_gpu_gives_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = random_problem(3, 9, 4)
        for name in ("Hungarian", "SoftMin", "IoUThreshold-band"):
            criterion = simple(CASES[name].build())
            expected = criterion(problem.input, problem.target, problem.anchors)
            expected_gradients = gradients(expected, problem)
            with monkeypatch.context() as patch:
                take_gpu_path(patch)
                loss = criterion(problem.input, problem.target, problem.anchors)
                torch.testing.assert_close(loss, expected)
                for a, e in zip(gradients(loss, problem), expected_gradients, strict=True):
                    torch.testing.assert_close(a, e)


class TestTerms:
    def test_the_terms_add_up(self) -> None:
        problem = random_problem(3, 12, 4)
        layers = [{k: v * (1 + 0.1 * i) for k, v in problem.input.items()} for i in range(3)]
        cls = MultipleObjectiveLoss({"ce": cross_entropy(), "prob": NegativeProbLoss(reduction=N)}, [2.0, 1.0])
        criterion = DetectionLoss(
            cls, boxes_loss(), ClosestTarget(loc_match_module=nn.L1Loss(reduction=N), background_cost=0.5)
        )
        terms = criterion.terms({**layers[2], "aux_outputs": layers[:2]}, problem.target)
        total = torch.zeros((), dtype=torch.float64)
        for layer, suffix in ((layers[0], "_0"), (layers[1], "_1"), (layers[2], "")):
            alone = criterion.terms(layer, problem.target)
            for name in ("loss_cls", "loss_cls_ce", "loss_cls_prob", "loss_loc", "loss_loc_l1", "loss_loc_giou"):
                torch.testing.assert_close(terms[name + suffix], alone[name])
            torch.testing.assert_close(alone["loss_cls"], alone["loss_cls_ce"] + alone["loss_cls_prob"])
            torch.testing.assert_close(alone["loss_loc"], alone["loss_loc_l1"] + alone["loss_loc_giou"])
            torch.testing.assert_close(alone["loss"], alone["loss_cls"] + alone["loss_loc"])
            total = total + alone["loss"]
        torch.testing.assert_close(terms["loss"], total)
        torch.testing.assert_close(terms["loss"], criterion({**layers[2], "aux_outputs": layers[:2]}, problem.target))

    def test_the_masses_are_counted_without_gradient(self) -> None:
        problem = random_problem(3, 12, 4)
        terms = simple().terms(problem.input, problem.target, problem.anchors)
        count = problem.target["mask"].sum()
        assert terms["num_pos"] == count
        assert terms["num_neg"] == 3 * 12 - count
        assert not terms["num_pos"].requires_grad
        assert not terms["num_neg"].requires_grad
        assert terms["loss"].requires_grad

    def test_layers_are_matched_in_one_call(self) -> None:
        calls = []

        class Counting(Hungarian):
            def plan(self, batch):
                calls.append(batch.logits.shape)
                return super().plan(batch)

        problem = random_problem(2, 8, 3)
        input = problem.input | {"aux_outputs": [problem.input] * 4}
        simple(Counting(loc_match_module=nn.L1Loss(reduction=N)))(input, problem.target)
        assert calls == [(10, 8, 5)]

    def test_anchors_serve_all_layers(self) -> None:
        problem = random_problem(2, 8, 3)
        criterion = simple(IoUThreshold(is_anchor_based=True))
        for anchors in (problem.anchors, random_boxes(2, 8)):
            one = criterion(problem.input, problem.target, anchors)
            three = criterion(problem.input | {"aux_outputs": [problem.input] * 2}, problem.target, anchors)
            torch.testing.assert_close(three, 3 * one)


class TestUnknownModules:
    """User modules of aligned rows give what the known module they imitate gives."""

    class CrossEntropyByHand(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return input.logsumexp(-1) - input.gather(-1, target[:, None])[:, 0]

    class BinaryByHand(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(input, target, reduction=N)

    class DistanceByHand(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return (input - target).abs()

    @pytest.mark.parametrize("name", ["Hungarian", "SoftMin", "ClosestPrediction", "IoUThreshold-band"])
    @pytest.mark.parametrize("position", ["first", "last", "none"])
    @pytest.mark.parametrize("mining", [None, 2.0])
    def test_they_equal_the_known_modules(self, name, position, mining) -> None:
        problem = random_problem(3, 10, 4, 5, low=int(position == "first"), high=5 - (position == "last"))
        known = nn.BCEWithLogitsLoss(reduction=N) if position == "none" else cross_entropy()
        unknown = self.BinaryByHand() if position == "none" else self.CrossEntropyByHand()
        options = {"use_hard_negative_mining": mining is not None, "neg_to_pos_ratio": mining}
        results = []
        for cls, loc in ((known, nn.L1Loss(reduction=N)), (unknown, self.DistanceByHand())):
            loss = DetectionLoss(cls, loc, CASES[name].build(), position, **options)(
                problem.input, problem.target, problem.anchors
            )
            results.append([loss, *gradients(loss, problem)])
        for a, e in zip(*results, strict=True):
            torch.testing.assert_close(a, e)

    def test_their_parameters_are_trained(self) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

            def forward(self, input: Tensor, target: Tensor) -> Tensor:
                return self.scale * (input - target) ** 2

        problem = random_problem(2, 8, 3)
        criterion = DetectionLoss(cross_entropy(), Scaled(), Hungarian(loc_match_module=nn.L1Loss(reduction=N)))
        criterion(problem.input, problem.target, problem.anchors).backward()
        assert criterion.loc_loss_module.scale.grad != 0


class TestMining:
    @pytest.mark.parametrize("ratio", [0.0, 1.0, 2.5, 3.0, 1e9])
    def test_the_kept_mass_is_the_ratio_exactly(self, ratio) -> None:
        background, loss = torch.rand(4, 50, dtype=torch.float64), torch.randn(4, 50, dtype=torch.float64)
        num_pos = torch.tensor([0.0, 1.0, 3.7, 12.0], dtype=torch.float64)
        kept = mine_hard_negatives(background, loss, num_pos, ratio)
        expected = torch.minimum(ratio * num_pos, background.sum(1))
        torch.testing.assert_close(kept.sum(1), expected)
        assert (kept <= background).all()
        for b in range(4):
            order = loss[b].argsort(descending=True)
            full = (kept[b, order] == background[b, order]).long()
            assert (full.diff() <= 0).all()  # from the hardest down
            assert ((kept[b] > 0) & (kept[b] < background[b])).sum() <= 1  # only one in part

    def test_the_lowest_index_wins_ties(self) -> None:
        kept = mine_hard_negatives(torch.ones(1, 5), torch.zeros(1, 5), torch.ones(1), 2.0)
        assert kept.tolist() == [[1, 1, 0, 0, 0]]

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("ratio", [0.0, 0.4, 3.0, 1e9, torch.inf])
    def test_a_gpu_which_must_not_read_values_keeps_the_same(self, seed, ratio, monkeypatch) -> None:
        torch.manual_seed(seed)
        background, loss = torch.rand(3, 200) ** (seed % 3), torch.randint(0, 20, (3, 200)).float()
        background[torch.rand(3, 200) < 0.2] = 0
        if seed > 2:
            loss[1, ::7], loss[2, ::5], loss[2, ::3] = torch.nan, torch.inf, torch.nan
        num_pos = torch.tensor([0.3, 5.0, 20.0])
        kept = mine_hard_negatives(background, loss, num_pos, ratio, min_negatives=0.5)
        take_gpu_path(monkeypatch)
        assert torch.equal(kept, mine_hard_negatives(background, loss, num_pos, ratio, min_negatives=0.5))

    def test_a_prediction_without_background_mass_takes_no_room(self) -> None:
        kept = mine_hard_negatives(torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[9.0, 2.0, 1.0]]), torch.ones(1), 1.0)
        assert kept.tolist() == [[0, 1, 0]]

    def test_images_without_positives_keep_what_is_asked_for(self) -> None:
        problem = random_problem(2, 10, 0)
        options = {"use_hard_negative_mining": True, "neg_to_pos_ratio": 3.0}
        assert simple(**options).terms(problem.input, problem.target, problem.anchors)["num_neg"] == 0
        assert (
            simple(min_negatives=2.5, **options).terms(problem.input, problem.target, problem.anchors)["num_neg"] == 5.0
        )

    def test_hard_plans_follow_the_rule_of_ssd(self) -> None:
        problem = random_problem(3, 40, 4, full=True)
        criterion = simple(use_hard_negative_mining=True, neg_to_pos_ratio=3.0)
        plan = criterion.matching_method(problem.input, problem.target, problem.anchors)
        losses = nn.functional.cross_entropy(
            problem.input["pred_logits"].transpose(1, 2), torch.zeros(3, 40).long(), reduction=N
        )
        expected = torch.zeros((), dtype=torch.float64)
        for b in range(3):
            negative = losses[b][plan[b, :, -1] == 1].sort(descending=True).values
            expected += negative[: 3 * 4].sum()
            for i, t in plan[b, :, :-1].nonzero().tolist():
                label = problem.target["labels"][b, t]
                expected += nn.functional.cross_entropy(problem.input["pred_logits"][b, i], label)
        torch.testing.assert_close(
            criterion.terms(problem.input, problem.target, problem.anchors)["loss_cls"], expected / 12
        )


class TestNormalizers:
    def test_the_number_of_targets_divides_both(self) -> None:
        problem = random_problem(3, 12, 4)
        input = problem.input | {"aux_outputs": [problem.input]}
        total = simple(reduction="sum").terms(input, problem.target)
        mean = simple(normalizer=TargetNormalizer()).terms(input, problem.target)
        for name in ("loss", "loss_cls", "loss_loc", "loss_cls_0", "loss_loc_giou_0"):
            torch.testing.assert_close(mean[name], total[name] / problem.target["mask"].sum())

    def test_divisors_are_at_least_one(self) -> None:
        problem = random_problem(2, 3, 0)
        for normalizer in (MassNormalizer(), TargetNormalizer()):
            criterion = DetectionLoss(
                SigmoidFocalLoss(reduction=N),
                boxes_loss(),
                Hungarian(loc_match_module=GIoULoss(reduction=N)),
                "none",
                normalizer=normalizer,
            )
            total = copy.copy(criterion)
            total.reduction = "sum"
            torch.testing.assert_close(
                criterion(problem.input, problem.target, problem.anchors),
                total(problem.input, problem.target, problem.anchors),
            )


@pytest.mark.parametrize(
    ("options", "message", "error"),
    [
        ({"cls_loss_module": nn.CrossEntropyLoss()}, 'cls_loss_module must be built with reduction="none"', ValueError),
        ({"loc_loss_module": nn.L1Loss()}, 'loc_loss_module must be built with reduction="none"', ValueError),
        ({"loc_loss_module": torch.abs}, "loc_loss_module must be a torch.nn.Module, got", TypeError),
        ({"matching_method": Hungarian}, "matching_method must be a Matcher, got", TypeError),
        (
            {"bg_class_position": "middle"},
            "bg_class_position must be one of ['first', 'last', 'none'], got",
            ValueError,
        ),
        ({"reduction": "none"}, "reduction must be one of ['mean', 'sum'], got 'none'", ValueError),
        (
            {"matching_method": Hungarian(background=False)},
            "bg_class_position='first' needs a matching_method with background=True",
            ValueError,
        ),
        (
            {"use_hard_negative_mining": True},
            "neg_to_pos_ratio must be given with use_hard_negative_mining=True",
            ValueError,
        ),
        ({"neg_to_pos_ratio": 3.0}, "neg_to_pos_ratio must be given with use_hard_negative_mining=True", ValueError),
        (
            {"use_hard_negative_mining": True, "neg_to_pos_ratio": -1.0},
            "neg_to_pos_ratio must lie in [0.0, inf), got -1.0",
            ValueError,
        ),
        (
            {
                "matching_method": Hungarian(background=False),
                "bg_class_position": "none",
                "use_hard_negative_mining": True,
                "neg_to_pos_ratio": 3.0,
            },
            "use_hard_negative_mining=True needs a matching_method with background=True",
            ValueError,
        ),
        ({"normalizer": torch.sum}, "normalizer must be a Normalizer, got", TypeError),
        ({"min_negatives": -1.0}, "min_negatives must lie in [0.0, inf), got -1.0", ValueError),
        ({"use_hard_negative_mining": 1}, "use_hard_negative_mining must be a bool, got 1", TypeError),
    ],
)
def test_bad_arguments_raise(options, message, error) -> None:
    valid = {"cls_loss_module": cross_entropy(), "loc_loss_module": boxes_loss(), "matching_method": Hungarian()}
    with pytest.raises(error, match=re.escape(message)):
        DetectionLoss(**{**valid, **options})


def test_a_misspelt_argument_raises() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'neg_pos_ratio'"):
        simple(neg_pos_ratio=3.0)


def test_the_deprecated_reduction_arguments_are_those_of_torch() -> None:
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        assert simple(size_average=False).reduction == "sum"


@pytest.mark.parametrize("name", CASES)
def test_a_criterion_holds_no_state(name) -> None:
    problem = random_problem(2, 8, 3)
    criterion = simple(CASES[name].build())
    before = pickle.dumps(criterion)
    loss = criterion(problem.input, problem.target, problem.anchors)
    assert pickle.dumps(criterion) == before
    assert criterion.state_dict() == {}
    for twin in (pickle.loads(before), copy.deepcopy(criterion)):
        assert torch.equal(twin(problem.input, problem.target, problem.anchors), loss)


def test_class_weights_move_with_the_criterion() -> None:
    criterion = DetectionLoss(cross_entropy(weight=torch.ones(5)), boxes_loss(), Hungarian())
    assert list(criterion.state_dict()) == ["cls_loss_module.weight"]
    assert criterion.double().cls_loss_module.weight.dtype == torch.float64


def test_one_hot_labels_equal_integer_labels_without_a_background_class() -> None:
    problem = random_problem(3, 10, 4, 5, low=0)
    one_hot = nn.functional.one_hot(problem.target["labels"].clamp(min=0), 5)
    for cls in (SigmoidFocalLoss(alpha=0.25, reduction=N), nn.BCEWithLogitsLoss(reduction=N), cross_entropy()):
        for name in ("Hungarian", "SoftMin"):
            criterion = DetectionLoss(cls, boxes_loss(), CASES[name].build(), "none")
            expected = criterion(problem.input, problem.target, problem.anchors)
            torch.testing.assert_close(criterion(problem.input, problem.target | {"labels": one_hot}), expected)


def test_an_ignored_class_is_left_out_of_the_mean_with_and_without_weights() -> None:
    problem = random_problem(2, 8, 4)
    matcher = Hungarian(loc_match_module=nn.L1Loss(reduction=N))
    losses = [
        DetectionLoss(cross_entropy(ignore_index=2, weight=weight), nn.L1Loss(reduction=N), matcher)
        for weight in (None, torch.ones(5, dtype=torch.float64))
    ]
    one, other = (criterion(problem.input, problem.target, problem.anchors) for criterion in losses)
    torch.testing.assert_close(one, other)
