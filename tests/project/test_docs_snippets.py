"""The Python of the documentation runs as printed, each snippet by itself."""

import pytest
import torch

from tests.support.docs import pages, run, snippets

SNIPPETS = [(page, index) for page in pages() for index in range(len(snippets(page)))]


def test_there_are_snippets() -> None:
    assert len(snippets("own_fields.rst")) == 5


@pytest.mark.parametrize(("page", "index"), SNIPPETS, ids=[f"{page}-{index}" for page, index in SNIPPETS])
def test_a_snippet_runs(page, index) -> None:
    for value in run(snippets(page)[index]).get("input", {}).values():
        if value.requires_grad and value.grad is not None:
            assert value.grad.isfinite().all()
            assert value.grad.abs().sum() > 0


@pytest.mark.parametrize("index", range(5))
def test_what_a_user_adds_fits_forty_lines(index) -> None:
    lines = [line for line in snippets("own_fields.rst")[index].splitlines() if line.strip()]
    assert len(lines) <= 40


@pytest.mark.parametrize("index", range(5))
def test_every_field_of_ones_own_has_a_gradient(index) -> None:
    scope = run(snippets("own_fields.rst")[index])
    own = [value for key, value in scope["input"].items() if key not in ("pred_logits", "pred_boxes")]
    own = own or [scope["input"]["pred_boxes"]]
    assert all(isinstance(x, torch.Tensor) and x.grad is not None for x in own)
