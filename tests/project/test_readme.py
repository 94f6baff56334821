"""The snippets of the README run as printed."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.problems import jittered, random_boxes
from uotod.match import IoUThreshold, Matcher, UnbalancedSinkhorn

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_quickstart_runs_and_gives_gradients() -> None:
    scope: dict = {}
    quickstart, swap, recipe = snippets("python")
    exec(quickstart, scope)
    for name in ("logits", "pred_boxes"):
        assert scope[name].grad.isfinite().all()
        assert scope[name].grad.abs().sum() > 0
    for line in swap.splitlines():
        exec(line, scope)
        if line.startswith("matcher ="):
            criterion = scope["criterion"]
            criterion.matching_method = scope["matcher"]
            loss = criterion({"pred_logits": scope["logits"], "pred_boxes": scope["pred_boxes"]}, scope["target"])
            assert torch.isfinite(loss)
    output = {"pred_logits": scope["logits"][..., :91], "pred_boxes": scope["pred_boxes"]}
    for line in filter(None, recipe.splitlines()):
        exec(line, scope)
        if line.startswith("criterion ="):
            assert torch.isfinite(scope["criterion"](output, scope["target"]))


def matchers_of_the_readme() -> dict[str, Matcher]:
    """Return the matchers that the README writes out, by their lines."""
    scope: dict = {}
    found = {}
    quickstart, swap, recipe = snippets("python")
    exec(quickstart, scope)
    for line in filter(None, f"matcher = matcher\n{swap}\n{recipe}".splitlines()):
        exec(line, scope)
        if line.startswith("matcher ="):
            found[line] = scope["matcher"]
        elif line.startswith("criterion ="):
            found[line] = scope["criterion"].main.matching_method
    return found


def scene(seed: int, targets: int, near: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return 100 random predictions of the README's 92 classes, `near` of them beside a target."""
    torch.manual_seed(seed)
    boxes, pred_boxes = random_boxes(1, targets).float(), random_boxes(1, 100).float()
    if near:
        pred_boxes[:, :near] = jittered(boxes[:, torch.arange(near) % targets])
    target = {"labels": torch.randint(91, (1, targets)), "boxes": boxes}
    return {"pred_logits": torch.randn(1, 100, 92), "pred_boxes": pred_boxes}, target


@pytest.mark.parametrize("targets", [1, 2, 10, 30])
@pytest.mark.parametrize("near", [0, 60])
@pytest.mark.parametrize("line", matchers_of_the_readme())
def test_a_sensible_share_of_predictions_goes_to_targets(line, near, targets) -> None:
    """About one for a target under assignment and transport; those beside a target under a threshold."""
    matcher = matchers_of_the_readme()[line]
    for seed in range(3):
        plan = matcher(*scene(seed, targets, near))[0, :, :-1]
        if isinstance(matcher, IoUThreshold):
            assert 1 <= plan.sum() <= 2 * targets + near + 5
        else:
            assert (plan.sum(0) > 0.9).all()
            assert targets * 0.99 <= plan.sum() <= 2 * targets + 1


def test_what_the_readme_says_of_the_values_of_ssd_is_so() -> None:
    (line,) = (x for x in matchers_of_the_readme() if "reg_target" in x)
    matcher = matchers_of_the_readme()[line]
    cost = {"cls_match_module": matcher.cls_match_module, "loc_match_module": matcher.loc_match_module}
    shares = {}
    for reg_target, background_cost in ((0.01, 10.0), (1.0, 10.0), (1.0, 0.5), (10.0, 10.0)):
        other = UnbalancedSinkhorn(reg_pred=100.0, reg_target=reg_target, background_cost=background_cost, **cost)
        plans = [other(*scene(seed, 2, near=0))[0, :, :-1] for seed in range(4)]
        shares[reg_target, background_cost] = float(sum(plan.sum() for plan in plans)) / 4
    assert 80 < shares.pop((0.01, 10.0)) < 100
    assert all(1.7 < share < 4 for share in shares.values())
    assert (matcher.costs.of_pairs(matcher.parse(*scene(0, 10, 0), None)) < 10).double().mean() > 0.7


def test_the_names_of_the_table_exist() -> None:
    from uotod import loss, match, recipes, utils

    table = README[README.index("## You want") :]
    names = set(re.findall(r"`([A-Z]\w+)", table)) - {"L1Loss"}
    assert len(names) > 10
    assert all(any(hasattr(module, name) for module in (match, loss, utils)) for name in names)
    called = set(re.findall(r"`(?:uotod\.)?recipes\.(\w+)", README))
    assert called
    assert called <= set(recipes.ALL_RECIPES)


def test_the_commands_are_those_of_the_makefile() -> None:
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text()
    shell = "\n".join(snippets("sh"))
    for target in re.findall(r"make (\w+)", shell):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    for tool in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert tool in shell
        assert tool.split()[0] in makefile
