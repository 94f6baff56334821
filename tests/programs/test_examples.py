"""The training programs: they learn, resume where they stopped, end with one-line errors and leave whole files."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import BCCD
from uotod.datasets import ColorBoxes, write_coco

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = ("train_detr", "train_ssd")


@pytest.fixture(autouse=True)
def importable_examples(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


def load(name):
    return importlib.import_module(name)


def run(program, out, *arguments):
    return load(program).main([*map(str, arguments), f"--out={out}"])


@pytest.fixture
def folder(tmp_path):
    """A data set of 10 images for trainings that are over at once."""
    for seed, (split, length) in enumerate({"train": 10, "val": 3, "test": 4}.items()):
        dataset = ColorBoxes(length, size=(48, 64), num_classes=3, max_boxes=4, seed=seed)
        write_coco(dataset, tmp_path / "data", split)
    return tmp_path / "data"


def tiny(folder, *more):
    return "--data", folder, "--size=48x64", "--epochs=3", "--batch-size=4", *more


def metrics_without_times(out):
    content = json.loads((out / "metrics.json").read_text())
    return {key: value for key, value in content.items() if "seconds" not in key}


class Interrupt:
    """Takes the place of a method, and raises a KeyboardInterrupt instead of its n-th call."""

    def __init__(self, method, call):
        self.method, self.calls_left = method, call

    def __call__(self, *arguments):
        self.calls_left -= 1
        if not self.calls_left:
            raise KeyboardInterrupt
        return self.method(*arguments)


@pytest.mark.training
@pytest.mark.parametrize(
    ("program", "steps", "floor"),
    [
        pytest.param("train_detr", 200, 0.55, marks=pytest.mark.long),
        pytest.param("train_ssd", 160, 0.6, marks=pytest.mark.long),
    ],
    ids=PROGRAMS,
)
def test_a_detector_learns_color_boxes_in_a_fixed_number_of_steps(program, steps, floor, tmp_path):
    metrics = run(program, tmp_path, f"--steps={steps}")
    assert metrics["step"] == steps
    assert metrics["AP50"] > floor


@pytest.mark.long
@pytest.mark.training
@pytest.mark.skipif(not BCCD.is_dir(), reason="../shared/data/bccd is not there")
@pytest.mark.parametrize(("program", "floor"), [("train_detr", 0.2), ("train_ssd", 0.3)], ids=PROGRAMS)
def test_a_detector_learns_blood_cells_in_a_fixed_number_of_steps(program, floor, tmp_path):
    metrics = run(program, tmp_path, "--data", BCCD, "--size=96x128", "--steps=180")
    assert metrics["split"] == "test"
    assert metrics["AP50"] > floor


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("call", [pytest.param(2, marks=pytest.mark.long), 5], ids=["in epoch 1", "in epoch 2"])
def test_an_interrupted_and_resumed_training_equals_an_uninterrupted_one(program, call, folder, tmp_path, monkeypatch):
    run(program, tmp_path / "whole", *tiny(folder))
    training = load("common").Training
    method = training.fit_step
    interrupt = Interrupt(method, call)
    monkeypatch.setattr(training, "fit_step", lambda self, *arguments: interrupt(self, *arguments))
    with pytest.raises(SystemExit, match=f"interrupted; --resume continues after epoch {(call - 1) // 3} of 3"):
        run(program, tmp_path / "parts", *tiny(folder))
    monkeypatch.setattr(training, "fit_step", method)
    run(program, tmp_path / "parts", *tiny(folder, "--resume"))
    assert metrics_without_times(tmp_path / "parts") == metrics_without_times(tmp_path / "whole")
    weights, expected = (torch.load(tmp_path / name / "checkpoint.pt")["parts"]["model"] for name in ("parts", "whole"))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0)


def test_a_finished_run_leaves_whole_files_and_resuming_it_changes_nothing(folder, tmp_path):
    out = tmp_path / "run"
    metrics = run("train_detr", out, *tiny(folder, "--matcher=Hungarian"))
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt", "metrics.json", "curve.png", "predictions.png"}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("curve.png", "predictions.png"))
    assert (metrics["program"], metrics["matcher"], metrics["split"]) == ("train_detr", "Hungarian", "test")
    assert [entry["epoch"] for entry in metrics["history"]] == [1, 2, 3]
    assert metrics["step"] == metrics["history"][-1]["step"] == 9
    before = metrics_without_times(out)
    assert before["AP50"] == metrics["AP50"]
    run("train_detr", out, *tiny(folder, "--matcher=Hungarian", "--resume"))
    assert metrics_without_times(out) == before


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_matcher_trains_in_mixed_precision_too(program, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(load("common"), "draw_examples", lambda *_: None)
    for matcher in load(program).MATCHERS:
        metrics = run(program, tmp_path / matcher, *tiny(folder, f"--matcher={matcher}", "--steps=2", "--amp"))
        assert metrics["history"][0]["loss"] < 100  # and not NaN


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_recipe_trains_the_program_that_it_fits(program, folder, tmp_path, monkeypatch):
    from uotod.recipes import ALL_RECIPES

    monkeypatch.setattr(load("common"), "draw_examples", lambda *_: None)
    trained = set()
    for recipe in ALL_RECIPES:
        try:
            metrics = run(program, tmp_path / recipe, *tiny(folder, f"--recipe={recipe}", "--steps=2", "--amp"))
        except load("_recipes").DoesNotFitError as error:
            assert f"error: --recipe {recipe} does not fit {program}: " in str(error)  # noqa: PT017
            continue
        assert (metrics["recipe"], metrics["matcher"]) == (recipe, None)
        assert 0 < metrics["history"][0]["loss"] < 1000  # and not NaN
        trained.add(recipe)
    anchors = {"ssd300", "retinanet", "uot_ssd", "yolo"}
    assert anchors <= trained if program == "train_ssd" else not anchors & trained


@pytest.mark.long
@pytest.mark.training
def test_a_recipe_learns_color_boxes_in_a_fixed_number_of_steps(tmp_path):
    assert run("train_ssd", tmp_path, "--recipe=ssd300", "--steps=160")["AP50"] > 0.4


def test_heads_differ_as_their_recipes_do():
    recipes = load("_recipes")
    heads = {name: recipes.RecipeCriterion(name, 3).head for name in ("ssd300", "retinanet", "yolo")}
    assert [heads[name].num_logits for name in heads] == [4, 3, 3]
    assert [heads[name].background for name in heads] == ["first", "none", "none"]
    assert [heads[name].objectness for name in heads] == [False, False, True]
    head, scores = heads["ssd300"], torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    torch.testing.assert_close(head.scores({"pred_logits": scores.log()}), scores[..., 1:])
    outputs = {"pred_logits": torch.zeros(1, 1, 3), "pred_objectness": torch.zeros(1, 1)}
    torch.testing.assert_close(heads["yolo"].scores(outputs), torch.full((1, 1, 3), 0.25))


@pytest.mark.parametrize(("points", "objectness", "bins"), [(False, False, 0), (True, True, 0), (True, False, 5)])
def test_the_anchors_of_every_head_cover_the_image_and_start_as_predicted_boxes(points, objectness, bins):
    head = load("_recipes").Head(3, "none", objectness=objectness, bins=bins, shapes=not points)
    model = load("train_ssd").Ssd(head).eval()
    for layer in model.heads:
        torch.nn.init.zeros_(layer.weight)
    with torch.no_grad():
        outputs = model(torch.zeros(2, 3, 64, 96))
    cells = [8 * 12, 4 * 6, 2 * 3]
    preds = sum(cells) if points else sum(n * k for n, k in zip(cells, (9, 6, 6), strict=True))
    assert outputs["anchors"].shape == (preds, 4)
    assert outputs["pred_logits"].shape == (2, preds, 3)
    assert outputs["stride"].unique().tolist() == [8, 16, 32]
    assert ("pred_objectness" in outputs, "pred_dist" in outputs) == (objectness, bool(bins))
    boxes, anchors = outputs["pred_boxes"][0], outputs["anchors"]
    centres, expected = (box[:, :2] + box[:, 2:] for box in (boxes, anchors))
    torch.testing.assert_close(centres, expected)
    if not bins:
        torch.testing.assert_close(boxes, anchors)


def test_a_recipe_of_sets_does_not_fit_the_program_of_anchors(folder, tmp_path, monkeypatch):
    recipes = load("_recipes")
    criterion = load("train_detr").build_criterion("Hungarian")
    monkeypatch.setitem(recipes.ALL_RECIPES, "ssd300", lambda num_classes: criterion)
    with pytest.raises(SystemExit, match="error: --recipe ssd300 does not fit train_ssd: it reads no anchors"):
        run("train_ssd", tmp_path, *tiny(folder, "--recipe=ssd300"))
    assert run("train_detr", tmp_path, *tiny(folder, "--recipe=ssd300", "--steps=1"))["recipe"] == "ssd300"


def test_recipes_are_compared_in_a_table(folder, tmp_path, monkeypatch):
    compare, main = load("compare_recipes"), load("train_ssd").main
    monkeypatch.setattr(load("train_ssd"), "main", lambda argv: main([*argv, *map(str, tiny(folder))]))
    table = tmp_path / "table.rst"
    compare.main(["ssd300", "retinanet", "--steps=1", f"--runs={tmp_path}", f"--table={table}"])
    lines = table.read_text().splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("recipe "))
    assert lines[head].split() == ["recipe", "model", "AP50", "AP", "CPU", "seconds"]
    assert {line.split()[0] for line in lines[head + 2 : head + 4]} == {"ssd300", "retinanet"}
    assert set(lines[head - 1]) == set(lines[head + 1]) == set(lines[head + 4]) == {"=", " "}
    with pytest.raises(SystemExit):
        compare.main(["best"])
    assert "fits them: best." in compare.describe([("a", "ssd", "0.1", "0.0", "1")], ["best"], 3)


def test_the_first_of_steps_and_epochs_to_be_over_ends_the_training(folder, tmp_path):
    assert run("train_detr", tmp_path / "a", *tiny(folder, "--steps=4"))["epoch"] == 2
    assert run("train_detr", tmp_path / "b", *tiny(folder, "--steps=100"))["step"] == 9


def test_a_folder_without_a_test_split_is_tested_on_val(folder, tmp_path):
    (folder / "annotations" / "instances_test.json").unlink()
    assert run("train_ssd", tmp_path / "run", *tiny(folder, "--steps=1"))["split"] == "val"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=0"], "argument --steps: expected an integer in [1, 2^31), got '0'"),
        (["--size=100x128"], "argument --size: expected HEIGHTxWIDTH, multiples of 16"),
        (["--lr=nan"], "argument --lr: expected a positive number, got 'nan'"),
        (["--matcher=Best"], "argument --matcher: invalid choice: 'Best'"),
        (["--recipe=best"], "argument --recipe: invalid choice: 'best'"),
        (["--recipe=ssd300", "--matcher=Hungarian"], "argument --matcher: not allowed with argument --recipe"),
        (["--device=abacus"], "argument --device: expected a device that is there, got 'abacus'"),
        (["--step=3"], "unrecognized arguments: --step=3"),
    ],
)
def test_a_wrong_argument_is_a_one_line_error(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("train_ssd", tmp_path, *arguments)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_unusable_data_are_a_one_line_error(folder, tmp_path):
    with pytest.raises(SystemExit, match=r"error: --data .*nowhere: folder must be a folder with annotations/"):
        run("train_detr", tmp_path / "run", "--data", tmp_path / "nowhere")
    for split in ("val", "test"):
        (folder / "annotations" / f"instances_{split}.json").unlink()
    with pytest.raises(SystemExit, match="there must be a split val or test to evaluate on, got neither"):
        run("train_detr", tmp_path / "run", "--data", folder)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_missing_broken_or_of_another_run_is_a_one_line_error(folder, tmp_path):
    arguments, path = tiny(folder, "--resume", "--steps=3"), tmp_path / "checkpoint.pt"
    with pytest.raises(SystemExit, match="error: --resume needs the checkpoint of an interrupted run, got none at"):
        run("train_detr", tmp_path, *arguments)
    run("train_detr", tmp_path, *arguments[:-2], "--steps=3")
    for change, message in (
        (["--lr=0.5"], r"checkpoint.pt was made with --lr 0.002, got 0.5"),
        (["--matcher=Hungarian"], r"checkpoint.pt was made with --matcher UnbalancedSinkhorn, got Hungarian"),
        (["--steps=2"], r"checkpoint.pt was made with --steps 3, got 2"),
    ):
        with pytest.raises(SystemExit, match=message):
            run("train_detr", tmp_path, *arguments, *change)
    with pytest.raises(SystemExit, match=r"checkpoint.pt was made with program train_detr, got train_ssd"):
        run("train_ssd", tmp_path, *arguments)
    content = path.read_bytes()
    for broken in (b"", b"not a checkpoint", content[: len(content) // 2], content[:-1]):
        path.write_bytes(broken)
        with pytest.raises(SystemExit, match="is not a checkpoint of this program, start again without --resume"):
            run("train_detr", tmp_path, *arguments)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    checkpoint, path = load("_checkpoint"), tmp_path / "metrics.json"
    checkpoint.write_json(path, {"AP": float("nan"), "history": [{"AP": 0.5}]})
    assert json.loads(path.read_text()) == {"AP": None, "history": [{"AP": 0.5}]}

    def fail_half_way(file):
        file.write(b"{")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(path, fail_half_way)
    assert json.loads(path.read_text())["AP"] is None
    assert list(tmp_path.iterdir()) == [path]


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_only():
    batches = load("_data").EpochBatches(10, 4, seed=1)
    first = list(batches)
    assert sorted(index for batch in first for index in batch) == list(range(10))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert list(batches) == first
    batches.epoch = 1
    assert list(batches) != first
    assert list(load("_data").EpochBatches(10, 4, seed=2)) != first


def test_augmented_boxes_stay_on_what_they_bound():
    height, width = 64, 96
    images = torch.zeros(8, 3, height, width)
    boxes = torch.tensor([36.0, 28.0, 60.0, 40.0]).expand(8, 1, 4)  # near the middle: no zoom or shift cuts it
    images[:, :, 28:40, 36:60] = 0.8
    scale = torch.tensor([width, height, width, height])
    target = {"boxes": boxes / scale, "labels": torch.zeros(8, 1).long(), "mask": torch.ones(8, 1).bool()}
    moved, expected = load("_data").augment(images, target, torch.Generator().manual_seed(3))
    assert moved.shape == images.shape
    assert expected["mask"].all()
    for image, box in zip(moved.mean(1), expected["boxes"][:, 0] * scale, strict=True):
        rows, columns = ((image > 0.3).any(axis).nonzero().flatten() for axis in (1, 0))
        found = torch.stack((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        torch.testing.assert_close(found.float(), box, rtol=0, atol=1.0)


def test_augmentation_drops_targets_that_leave_the_image_and_keeps_padding_masked():
    boxes = torch.tensor([[0.0, 0.0, 0.01, 0.01], [0.4, 0.4, 0.6, 0.6], [0.4, 0.4, 0.6, 0.6]]).expand(64, 3, 4)
    target = {
        "boxes": boxes,
        "labels": torch.zeros(64, 3).long(),
        "mask": torch.tensor([True, True, False]).repeat(64, 1),
    }
    _, expected = load("_data").augment(torch.zeros(64, 3, 16, 16), target, torch.Generator().manual_seed(0))
    corner, middle, padding = expected["mask"].unbind(1)
    assert 0 < corner.sum() < 64
    assert middle.all()
    assert not padding.any()
    assert ((expected["boxes"] >= 0) & (expected["boxes"] <= 1)).all()


def test_the_demo_prints_one_table_and_writes_its_data_once(tmp_path, monkeypatch, capsys):
    demo = load("demo")
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    monkeypatch.setattr(demo, "SPLITS", {"train": 4, "val": 2, "test": 3})
    monkeypatch.setattr(demo, "SIZE", (48, 64))
    monkeypatch.setattr(demo, "STEPS", 1)
    demo.main()
    table = capsys.readouterr().out.split("\n\n")[-2].splitlines()
    assert [line.split()[0] for line in table] == ["matcher", "UnbalancedSinkhorn", "Hungarian"]
    assert (tmp_path / "Hungarian" / "predictions.png").is_file()
    demo.write_data(tmp_path / "data")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs_as_a_script_from_anywhere(program, tmp_path):
    command = [sys.executable, EXAMPLES / f"{program}.py", "--help"]
    help_text = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "--matcher" in help_text


def test_no_file_of_the_examples_is_longer_than_300_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert max(lengths.values()) <= 300, lengths
