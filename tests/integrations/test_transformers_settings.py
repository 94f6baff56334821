"""What a model of transformers says of itself is heard: its numbers, its mode, its targets, what it divides by."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.test_transformers import loss_and_gradients
from tests.support.transformers_models import batch, model_of
from uotod.integrations.transformers import criterion_for, set_criterion
from uotod.loss import Branches, MovingAverageNormalizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
NUMBERS = {  # those of each family's configuration, none of them its default
    "Detr": {"class_cost": 3, "bbox_cost": 2, "giou_cost": 1, "bbox_loss_coefficient": 3, "eos_coefficient": 0.3},
    "DeformableDetr": {"class_cost": 3, "giou_cost": 1, "giou_loss_coefficient": 3, "focal_alpha": 0.6},
    "GroundingDino": {"class_cost": 3.0, "bbox_cost": 2.0, "bbox_loss_coefficient": 3.0, "focal_alpha": 0.6},
    "LwDetr": {"class_cost": 1, "class_loss_coefficient": 3, "giou_loss_coefficient": 1, "focal_alpha": 0.6},
    "RTDetr": {"matcher_alpha": 0.6, "matcher_gamma": 1.0, "matcher_class_cost": 3.0, "focal_loss_alpha": 0.5},
    "RTDetrV2": {"use_focal_loss": False, "matcher_class_cost": 3.0, "focal_loss_gamma": 1.0, "weight_loss_vfl": 2.0},
    "DFine": {"weight_loss_fgl": 0.5, "weight_loss_ddf": 0.5, "matcher_giou_cost": 1.0, "focal_loss_gamma": 1.0},
    "Deimv2": {"weight_loss_mal": 2.0, "mal_alpha": 0.5, "focal_loss_gamma": 1.5, "weight_loss_bbox": 2.0},
}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_criterion_has_the_numbers_of_the_configuration(name: str) -> None:
    model, inputs = model_of(name), batch(name)
    before = loss_and_gradients(model, inputs)[0]
    for key, value in NUMBERS[name].items():
        assert hasattr(model.config, key)
        setattr(model.config, key, value)
    expected = loss_and_gradients(model, inputs)
    assert not torch.allclose(before, expected[0])
    actual = loss_and_gradients(set_criterion(model, align="transformers"), inputs)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    for a, e in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("align", ["transformers", "published"])
@pytest.mark.parametrize("name", ["RTDetr", "DFine", "Deimv2"])
def test_a_final_layer_alone_has_a_loss(name: str, align: str) -> None:
    """In evaluation, for while training the library matches the denoising queries of DEIM with the others."""
    model, inputs = model_of(name).eval(), batch(name)
    model.config.auxiliary_loss = False
    expected = model(**inputs).loss
    output = set_criterion(model, align=align)(**inputs)
    # the library never gives the final layer its distributions
    own = output.loss_dict.get("loss_loc_fgl", 0) if align == "published" else 0
    torch.testing.assert_close(output.loss - own, expected, rtol=1e-5, atol=1e-6)
    assert output.loss_dict["num_pos"] == 3
    assert model.train()(**inputs).loss_dict["num_pos"] == 3
    assert output.auxiliary_outputs is None


def test_one_group_of_queries_trains() -> None:
    model, inputs = model_of("LwDetr"), batch("LwDetr")
    set_criterion(model)(**inputs)
    assert model.loss_function.criterion.training
    with torch.no_grad():
        model.eval()(**inputs)
    assert not model.loss_function.criterion.training
    single = model_of("LwDetr, one group")
    set_criterion(single)(**inputs)
    assert single.loss_function.criterion.training


def test_averages_rest_in_evaluation_with_gradients() -> None:
    model, inputs = model_of("LwDetr"), batch("LwDetr")
    criterion = criterion_for(model.config)
    assert isinstance(criterion, Branches)
    criterion.main.normalizer = normalizer = MovingAverageNormalizer(momentum=0.5)
    set_criterion(model, criterion).eval()(**inputs)
    assert normalizer.average == 100
    model.train()(**inputs)
    assert normalizer.average < 100


@pytest.mark.parametrize("name", ["RTDetr", "DFine"])
def test_a_step_of_micro_batches_divides_by_the_targets_of_all(name: str) -> None:
    """A loop that counts them hands `num_items_in_batch` over, and adds the losses up."""
    model, inputs = set_criterion(model_of(name).eval()), batch(name, (2, 1))
    images, labels = inputs["pixel_values"], inputs["labels"]
    whole = model(**inputs).loss
    parts = [model(images[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=3).loss for i in range(2)]
    torch.testing.assert_close(sum(parts), whole)


def test_a_divisor_that_counts_more_than_targets_says_so() -> None:
    model, inputs = set_criterion(model_of("Deimv2")), batch("Deimv2")
    with pytest.raises(ValueError, match="num_items_in_batch=3: masses must hold"):
        model(**inputs, num_items_in_batch=3)


@pytest.mark.parametrize("name", ["Yolos", "RTDetr"])
@pytest.mark.parametrize("key", ["ignore", "iscrowd"])
def test_crowds_are_ignored(name: str, key: str) -> None:
    """Neither trained nor, as targets of denoising queries, learnt from."""
    model, inputs = set_criterion(model_of(name)), batch(name, (2, 1))
    inputs["labels"][0][key] = torch.tensor([0, 1], dtype=torch.bool if key == "ignore" else torch.long)
    torch.manual_seed(2)
    output = model(**inputs)
    assert output.loss_dict["num_pos"] == 2
    if name == "RTDetr":
        with_all = set_criterion(model_of(name))
        del inputs["labels"][0][key]
        torch.manual_seed(2)
        groups = with_all(**inputs).loss_dict["num_pos_dn"] / 3
        assert output.loss_dict["num_pos_dn"] == 2 * groups


def test_weights_of_targets_reach_the_loss() -> None:
    model, inputs = set_criterion(model_of("RTDetr").eval()), batch("RTDetr")
    expected = model(**inputs).loss_dict["loss_loc"]
    for image in inputs["labels"]:
        image["loss_weight"] = torch.full((len(image["boxes"]),), 0.5)
    torch.testing.assert_close(model(**inputs).loss_dict["loss_loc"], expected / 2)


def test_targets_of_an_empty_image_may_have_no_shape() -> None:
    model, inputs = set_criterion(model_of("Yolos")), batch("Yolos", (2, 0))
    expected = model(**inputs).loss
    inputs["labels"][1] = {"class_labels": torch.tensor([]).long(), "boxes": torch.tensor([])}
    assert torch.equal(model(**inputs).loss, expected)


def test_a_subclass_with_a_configuration_of_its_own_is_of_the_family() -> None:
    class Config(transformers.YolosConfig):
        model_type = "of_ones_own"

    class MineForObjectDetection(transformers.YolosForObjectDetection):
        config_class = Config

    torch.manual_seed(0)
    model, inputs = model_of("Yolos"), batch("Yolos")
    mine = MineForObjectDetection(Config(**model.config.to_diff_dict())).train()
    mine.load_state_dict(model.state_dict())
    assert torch.equal(set_criterion(mine)(**inputs).loss, set_criterion(model)(**inputs).loss)
    assert repr(criterion_for(mine.config)) == repr(criterion_for(model.config))


def test_half_precision_does_not_round_corners() -> None:
    """The model's own numbers are in half precision; what is made of them is not."""
    model, inputs = model_of("RTDetr"), batch("RTDetr")
    handed: list[Any] = []
    set_criterion(model)
    loss = model.loss_function
    model._loss_function = lambda *args, **kwargs: (handed.append((args, kwargs)), loss(*args, **kwargs))[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**inputs)
    args, kwargs = handed[0]
    assert kwargs["enc_topk_bboxes"].dtype == torch.bfloat16
    exact = kwargs | {"enc_topk_bboxes": kwargs["enc_topk_bboxes"].float()}
    assert torch.equal(loss(*args, **kwargs)[0], loss(*args, **exact)[0])


def test_a_model_in_a_wrapper_is_not_set_from_outside() -> None:
    """The wrapper would keep the criterion for itself, and its model would go on with the loss that it has."""

    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model
            self.config, self.loss_function = model.config, model.loss_function

    with pytest.raises(TypeError, match="model must be a detector of transformers, got Wrapper: set the criterion of"):
        set_criterion(Wrapper(model_of("Yolos")))


def test_a_criterion_of_other_boxes_raises() -> None:
    from uotod import recipes

    for criterion in (recipes.detr(3, box_format="cxcywh"), recipes.rt_detr(3, box_format="xywh")):
        with pytest.raises(ValueError, match=r"criterion must read boxes as xyxy, .* got box_format"):
            set_criterion(model_of("Yolos"), criterion)


def test_a_detector_without_these_numbers_raises() -> None:
    with pytest.raises(ValueError, match="config must have the numbers of ForObjectDetectionLoss, got PPDocLayoutV3"):
        criterion_for(transformers.PPDocLayoutV3Config())
