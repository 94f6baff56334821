"""The Python of the documentation runs as printed, each snippet by itself."""

import pytest
import torch

from tests.support.docs import pages, run, snippets

OWN = snippets("own_fields.rst")
SNIPPETS = [(page, index) for page in pages() for index in range(len(snippets(page)))]


def test_there_are_snippets() -> None:
    assert len(OWN) >= 5


@pytest.mark.parametrize(("page", "index"), SNIPPETS, ids=[f"{page}-{index}" for page, index in SNIPPETS])
def test_a_snippet_runs(page, index) -> None:
    if page == "lightning.rst":
        pytest.importorskip("lightning")  # without, `test_lightning` runs it on a stand-in
    for value in run(snippets(page)[index]).get("input", {}).values():
        if value.requires_grad and value.grad is not None:
            assert value.grad.isfinite().all()
            assert value.grad.abs().sum() > 0


@pytest.mark.parametrize("snippet", OWN, ids=range(len(OWN)))
def test_what_a_user_adds_fits_forty_lines(snippet) -> None:
    lines = [line for line in snippet.splitlines() if line.strip()]
    assert len(lines) <= 40


@pytest.mark.parametrize("snippet", OWN, ids=range(len(OWN)))
def test_every_field_of_ones_own_has_a_gradient(snippet) -> None:
    scope = run(snippet)
    own = [value for key, value in scope["input"].items() if key not in ("pred_logits", "pred_boxes")]
    own = own or [scope["input"]["pred_boxes"]]
    assert all(isinstance(x, torch.Tensor) and x.grad is not None for x in own)
