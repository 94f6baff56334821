"""Recipes in use: under autocast, in threads, in forked processes, and called again and again; they keep nothing."""

import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.rank_cases import Part, part_of
from tests.support.recipe_cases import CLASSES
from uotod.recipes import ALL_RECIPES

every_recipe = pytest.mark.parametrize("name", ALL_RECIPES)
# A forked process has one thread; Python 3.12 warns of the threads that its parent has.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def real(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested values with every real tensor changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: real(x, change) for key, x in value.items()}
    return [real(x, change) for x in value] if isinstance(value, list) else value


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [leaf for x in values for leaf in leaves(x)]


def example(name: str, dtype: torch.dtype = torch.float32) -> Part:
    """Return an input with two layers and every branch; targets and anchors are of float32."""
    part = part_of(name, "nothing", 1)
    input = real(part.input, lambda x: x.to(dtype).requires_grad_())
    return Part(input, real(part.target, Tensor.float), part.anchors.to(torch.float32))


def loss_of(criterion: nn.Module, part: Part) -> Tensor:
    loss: Tensor = criterion(part.input, part.target, part.anchors)
    return loss


@every_recipe
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_loss_is_that_of_float32(name: str, dtype: torch.dtype) -> None:
    criterion, part = ALL_RECIPES[name](CLASSES), example(name, dtype)
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(criterion, part)
    same = part._replace(input=real(part.input, lambda x: x.detach().float().requires_grad_()))
    expected = loss_of(criterion, same)
    assert loss.dtype == torch.float32
    # the numbers that half precision holds are computed with in float32, where only the order of sums may differ
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(loss, leaves(part.input), materialize_grads=True)
    theirs = torch.autograd.grad(expected, leaves(same.input), materialize_grads=True)
    assert sum(float(x.abs().sum()) for x in found) > 0
    for gradient, other in zip(found, theirs, strict=True):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
        # rounded once: half an ulp, 2 ** -11 and 2 ** -8 of the number; 6e-8 is the least number above 0 in float16
        torch.testing.assert_close(gradient.float(), other, rtol=2**-10 if dtype == torch.float16 else 2**-7, atol=1e-7)


@every_recipe
def test_eight_threads_have_the_loss_of_one(name: str) -> None:
    criterion = ALL_RECIPES[name](CLASSES)
    parts = [example(name)._replace(anchors=example(name).anchors) for _ in range(8)]
    for index, part in enumerate(parts):
        part.input["pred_logits"] = (part.input["pred_logits"] * (1 + index)).detach()
    expected = [loss_of(criterion, part).detach() for part in parts]
    assert len({float(x) for x in expected}) == len(parts)

    def work(index: int) -> list[Tensor]:
        return [loss_of(criterion, parts[index]).detach() for _ in range(3)]

    with ThreadPoolExecutor(len(parts)) as pool:
        for found, loss in zip(pool.map(work, range(len(parts))), expected, strict=True):
            assert all(torch.equal(x, loss) for x in found)


def answer(pipe: Any) -> None:
    """Send the loss and the sum of gradients of every recipe; for a forked process."""
    for name, recipe in ALL_RECIPES.items():
        part = example(name)
        loss = loss_of(recipe(CLASSES), part)
        gradients = torch.autograd.grad(loss, leaves(part.input), materialize_grads=True)
        pipe.send((name, float(loss.detach()), sum(float(x.abs().sum()) for x in gradients)))
    pipe.close()


@forks
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system forks no process")
def test_a_forked_process_has_the_loss_and_gradient_of_its_parent() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(theirs,))
    process.start()
    theirs.close()
    found = {}
    for _ in ALL_RECIPES:
        assert ours.poll(60), "the forked process does not answer"
        name, *values = ours.recv()
        found[name] = values
    process.join()
    assert process.exitcode == 0
    for name, recipe in ALL_RECIPES.items():
        part = example(name)
        loss = loss_of(recipe(CLASSES), part)
        gradients = torch.autograd.grad(loss, leaves(part.input), materialize_grads=True)
        assert found[name] == [float(loss.detach()), sum(float(x.abs().sum()) for x in gradients)]


def alive() -> int:
    """Return how many tensors Python holds."""
    gc.collect()
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())


def resident() -> int:
    """Return the bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@every_recipe
@pytest.mark.parametrize("calls", [4, pytest.param(100, marks=pytest.mark.long)])
def test_twice_as_many_calls_hold_no_more(name: str, calls: int) -> None:
    criterion, part = ALL_RECIPES[name](CLASSES), example(name)
    linux = Path("/proc/self/statm").exists()
    tensors, memory = [], []
    for _ in range(2):
        for _ in range(calls):
            loss_of(criterion, part)
        tensors.append(alive())
        memory.append(resident() if linux else 0)
    assert tensors[1] <= tensors[0]
    # a plan a call would be a tensor each; 4 MiB are what an allocator may keep of what it has got back
    assert memory[1] - memory[0] <= 4 * 2**20


def state(value: Any, seen: set[int]) -> Any:
    """Return every attribute of a value and of what it holds, with the numbers of tensors."""
    if isinstance(value, Tensor):
        return (id(value), value.dtype, tuple(value.flatten().tolist()))
    if isinstance(value, (str, int, float, bool, bytes, type(None), torch.dtype)):
        return value
    if id(value) in seen:
        return id(value)
    seen.add(id(value))
    if isinstance(value, dict):
        return {str(key): state(x, seen) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [state(x, seen) for x in value]
    own = getattr(value, "__dict__", None)
    return id(value) if not isinstance(own, dict) or callable(own) else (id(value), state(own, seen))


@every_recipe
def test_a_call_writes_no_attribute(name: str) -> None:
    criterion, part = ALL_RECIPES[name](CLASSES), example(name)
    before = state(criterion, set())
    loss_of(criterion, part).backward()
    criterion.terms(part.input, part.target, part.anchors)
    criterion.masses(part.input, part.target, part.anchors)
    assert state(criterion, set()) == before
