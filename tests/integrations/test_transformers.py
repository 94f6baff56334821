"""Detectors of transformers trained by one line: with the numbers of that library, and with another matcher."""

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.docs import defined_function
from tests.support.transformers_models import MODELS, batch, model_of
from uotod import recipes
from uotod.integrations.transformers import convert, criterion_for, set_criterion
from uotod.loss import DetectionLoss, MovingAverageNormalizer
from uotod.match import UnbalancedSinkhorn

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
ONE_EACH = ["Detr", "DeformableDetr", "RTDetr", "DFine", "Deimv2", "GroundingDino", "LwDetr"]
GROUPED = ("LwDetr", "RfDetr")  # in evaluation the library splits the queries of one group, too


class Heads:
    """A loss that is called on leaves in place of what a model hands over, to have the gradient there."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self.leaves: list[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, kwargs = [self._leaf(x) for x in args], {key: self._leaf(x) for key, x in kwargs.items()}
        for final, layers in ((0, 5), (3, 6)):  # logits and boxes of the final layer are among those of all
            for dim in (0, 1):
                if len(args) > layers and isinstance(args[layers], Tensor) and args[layers].dim() == 4:
                    last = args[layers].select(dim, -1)
                    if last.shape == args[final].shape and torch.equal(last, args[final]):
                        leaves[final] = leaves[layers].select(dim, -1)
        return self.loss(*leaves, **kwargs)

    def _leaf(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        # queries of random weights are nearly alike: apart, no assignment hangs on a rounding
        spread = 1 + 0.3 * torch.rand(value.shape[-2:], generator=torch.Generator().manual_seed(3))
        self.leaves.append((value.detach() * spread).requires_grad_())
        return self.leaves[-1]


def loss_and_gradients(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """Return the loss and its gradient at what the model hands to its loss, with the same denoising queries."""
    loss = model.loss_function
    model._loss_function = heads = Heads(loss)
    torch.manual_seed(2)
    value = model(**inputs).loss
    model._loss_function = loss
    return [value.detach(), *torch.autograd.grad(value, heads.leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("counts", [(2, 1), (3, 0), (0, 0)])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_are_those_of_the_library(name: str, counts: tuple[int, int]) -> None:
    if not sum(counts) and name.startswith(("DFine", "Deimv2")):
        pytest.skip("the library fails without targets")
    model, inputs = model_of(name), batch(name, counts)
    expected = loss_and_gradients(model, inputs)
    actual = loss_and_gradients(set_criterion(model, align="transformers"), inputs)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    for a, e in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in GROUPED])
def test_in_evaluation_too(name: str) -> None:
    model, inputs = model_of(name).eval(), batch(name)
    with torch.no_grad():
        expected = model(**inputs)
        actual = set_criterion(model, align="transformers")(**inputs)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert torch.equal(actual.logits, expected.logits)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_and_what_it_is_made_of_agree(name: str) -> None:
    for align in ("published", "transformers"):
        output = set_criterion(model_of(name), align=align)(**batch(name))
        terms = output.loss_dict
        assert torch.equal(terms["loss"], output.loss.detach())
        parts = [x for key, x in terms.items() if re.fullmatch(r"loss_(cls|loc|dist)(_\d+)?(_dn|_enc|_interm)?", key)]
        torch.testing.assert_close(sum(parts), terms["loss"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_outputs_of_earlier_layers_are_those_of_the_library(name: str, training: bool) -> None:
    found = []
    for model in (model_of(name), set_criterion(model_of(name), align="transformers")):
        torch.manual_seed(2)
        found.append(model.train(training)(**batch(name)).auxiliary_outputs)
    expected, actual = found
    assert (expected is None) == (actual is None)
    for theirs, ours in zip(expected or [], actual or [], strict=True):
        for key in ("logits", "pred_boxes"):
            assert torch.equal(theirs[key], ours[key])


@pytest.mark.parametrize("name", GROUPED)
def test_in_evaluation_all_queries_are_one_group(name: str) -> None:
    model, inputs = set_criterion(model_of(name)), batch(name)
    model(**inputs).loss.backward()
    with torch.no_grad():
        output = model.eval()(**inputs)
    assert output.loss_dict["num_pos"] == sum(len(x["boxes"]) for x in inputs["labels"])


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith(("DFine", "Deimv2"))])
def test_without_distributions_both_alignments_are_one(name: str) -> None:
    inputs = batch(name)
    found = []
    for align in ("published", "transformers"):
        model = set_criterion(model_of(name), align=align)
        model.loss_function.proposals = None  # which belong to the published loss
        found.append(loss_and_gradients(model, inputs)[0])
    assert torch.equal(*found)


def test_proposals_that_a_model_keeps_from_its_loss_are_fetched() -> None:
    model, inputs = model_of("DeformableDetr, two stages"), batch("DeformableDetr, two stages")
    without = set_criterion(model, align="transformers")(**inputs).loss
    output = set_criterion(model)(**inputs)
    torch.testing.assert_close(output.loss, without + output.loss_dict["loss_enc"])
    proposals = model.model(inputs["pixel_values"])
    expected = recipes.deformable_detr(3, weights={"cls": 1.0}).branches["enc_outputs"].loss
    theirs = {"class_labels": "labels", "boxes": "boxes"}
    target = [{theirs[key]: x for key, x in image.items()} for image in inputs["labels"]]
    for image in target:
        image["labels"] = torch.zeros_like(image["labels"])
        image["boxes"] = transformers.image_transforms.center_to_corners_format(image["boxes"])
    boxes = transformers.image_transforms.center_to_corners_format(proposals.enc_outputs_coord_logits.sigmoid())
    value = expected({"pred_logits": proposals.enc_outputs_class, "pred_boxes": boxes}, target)
    torch.testing.assert_close(output.loss_dict["loss_enc"], value.detach())


@pytest.mark.parametrize("name", ["DFine", "Deimv2"])
def test_published_layers_have_their_own_distributions(name: str) -> None:
    model, inputs = model_of(name), batch(name)
    handed = {}

    def spy(*args: Any, **kwargs: Any) -> Any:
        from uotod.integrations.transformers.families import arguments_of, published_loss

        loss = published_loss(model.config)
        handed.update(arguments_of(loss, *args, **kwargs))
        return loss(*args, **kwargs)

    model._loss_function = spy
    model(**inputs)
    input, _, anchors = convert(**handed)
    split = handed["denoising_meta_values"]["dn_num_split"]
    heads = torch.split(handed["outputs_class"], split, dim=2)[1].unbind(1)
    dists = torch.split(handed["predicted_corners"], split, dim=2)[1].unbind(1)
    layers = [*input["aux_outputs"][:-1], input]  # the queries of the encoder come last
    assert len(layers) == len(heads) == len(dists) + 1
    assert "pred_dist" not in layers[0]
    for layer, head in zip(layers, heads, strict=True):
        assert torch.equal(layer["pred_logits"], head)
    for layer, dist in zip(layers[1:], dists, strict=True):
        assert torch.equal(layer["pred_dist"].flatten(2), dist)
    assert anchors is not None
    assert anchors.shape == (2, 6, 4)


@pytest.mark.parametrize("name", MODELS)
def test_another_matcher_trains_it(name: str) -> None:
    model = set_criterion(model_of(name), matcher=UnbalancedSinkhorn(loc_match_module=nn.L1Loss(reduction="none")))
    assert "UnbalancedSinkhorn" in repr(model.loss_function)
    output = model(**batch(name))
    output.loss.backward()
    assert output.loss.isfinite()
    assert not any(x.requires_grad for x in output.loss_dict.values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", ONE_EACH)
def test_it_survives_copies_and_pickles(name: str) -> None:
    model, inputs = set_criterion(model_of(name)), batch(name)
    others = [copy.deepcopy(model), copy.deepcopy(model)]
    others[1]._loss_function = pickle.loads(pickle.dumps(model.loss_function))  # some models have hooks of their own
    expected = loss_and_gradients(model, inputs)[0]
    for other in others:
        torch.testing.assert_close(loss_and_gradients(other, inputs)[0], expected)


def test_proposals_are_kept_for_one_pass_only() -> None:
    """Whatever the loss is, and however often it was set: no graph outlives its step, and there are as many hooks."""
    model, inputs = model_of("DeformableDetr, two stages"), batch("DeformableDetr, two stages")
    proposals = set_criterion(set_criterion(model)).loss_function.proposals
    assert len(model.model._forward_hooks) == len(model._forward_hooks) == 1
    assert "loss_enc" in model(**inputs).loss_dict
    assert not proposals.found
    model.eval()(inputs["pixel_values"])
    assert not proposals.found
    assert "loss_enc" not in set_criterion(model, align="transformers")(**inputs).loss_dict
    assert "loss_enc" in set_criterion(model)(**inputs).loss_dict
    assert len(model.model._forward_hooks) == len(model._forward_hooks) == 1
    del model._loss_function
    assert "loss_ce" in model(**inputs).loss_dict
    assert not proposals.found


def test_the_hook_of_proposals_survives_copies() -> None:
    model, inputs = set_criterion(model_of("DeformableDetr, two stages")), batch("DeformableDetr, two stages")
    expected = model(**inputs).loss_dict["loss_enc"]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(**inputs).loss_dict["loss_enc"], expected)


def test_a_checkpoint_loads_where_the_library_is_not_there(tmp_path: Path) -> None:
    model = set_criterion(model_of("Yolos"))
    model.save_pretrained(tmp_path)
    code = f"""
import sys
sys.modules["uotod"] = None
from transformers import YolosForObjectDetection
print(sum(p.numel() for p in YolosForObjectDetection.from_pretrained({str(tmp_path)!r}).parameters()))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout.split()[-1]) == sum(p.numel() for p in model.parameters())
    assert not any("criterion" in key or "loss" in key for key in model.state_dict())


def test_moving_averages_follow_the_loop_of_others() -> None:
    criterion = criterion_for(model_of("DeformableDetr").config)
    criterion.main.normalizer = normalizer = MovingAverageNormalizer(momentum=0.5, initial=100.0)
    model, inputs = set_criterion(model_of("DeformableDetr"), criterion), batch("DeformableDetr")
    model(**inputs).loss.backward()
    assert normalizer.average.item() == 51.5
    with torch.no_grad():
        model.eval()(**inputs)
    assert normalizer.average.item() == 51.5


def test_half_precision_is_computed_in_single() -> None:
    model, inputs = set_criterion(model_of("Detr")), batch("Detr")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()


def test_the_line_of_the_page_trains_a_model() -> None:
    model, inputs = model_of("Detr"), batch("Detr")
    train = defined_function("transformers.rst", "train")
    losses = train(model, [inputs] * 60)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_trainer_of_the_library_trains_it(steps: int, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = set_criterion(model_of("Yolos"))
    examples = [
        {"pixel_values": image, "labels": labels} for image, labels in zip(*batch("Yolos").values(), strict=True)
    ]
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        num_train_epochs=8,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=steps,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
    )

    def collate(images: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([x["pixel_values"] for x in images]),
            "labels": [x["labels"] for x in images],
        }

    trainer = transformers.Trainer(model, arguments, train_dataset=examples, data_collator=collate)
    trainer.train()
    losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    assert losses[-1] < losses[0]


def test_what_is_no_detector_raises() -> None:
    with pytest.raises(TypeError, match="model must be a detector of transformers, got Linear"):
        set_criterion(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="config must be that of a model for object detection, got BertConfig"):
        criterion_for(transformers.BertConfig())
    model = model_of("Yolos")
    with pytest.raises(ValueError, match="matcher and criterion cannot be given together"):
        set_criterion(model, criterion_for(model.config), matcher=UnbalancedSinkhorn())
    with pytest.raises(ValueError, match="align must be one of"):
        set_criterion(model, align="theirs")
    with pytest.raises(TypeError, match="criterion must be a DetectionLoss or Branches"):
        set_criterion(model, nn.Identity())
    assert isinstance(criterion_for(model.config), DetectionLoss)
