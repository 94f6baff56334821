"""The snippets of the README run as printed."""

import re
from pathlib import Path

import torch

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
