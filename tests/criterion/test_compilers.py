"""A criterion under compilers: one graph, in which a solver that looks at values is one operator."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, EagerAndRecordGraphs
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.docs import defined_function
from tests.support.matcher_cases import CASES as MATCHERS
from tests.support.problems import Problem, random_problem
from tests.support.recipe_cases import CASES as RECIPES, problem_for
from uotod import recipes
from uotod.loss import DetectionLoss, GIoULoss
from uotod.match import Hungarian, Matcher

# one setting of each rule, and those that solve in another way; of each kind one is not left to the long run
RULES = [name for name in MATCHERS if "-" not in name or name.endswith(("-pot", "-exact", "-rounds", "-all", "-low"))]
QUICK = ("EMD", "Hungarian", "IoUThreshold", "PartialOT", "TaskAligned", "UnbalancedSinkhorn")
# solvers on the host, or those that stop by what they find: one operator each
SOLVERS = ("BalancedPOT", "BalancedSinkhorn", "EMD", "Hungarian", "OTA", "PartialOT", "UnbalancedPOT")
SOLVERS += ("UnbalancedSinkhorn", "SharedLayers", "UnionVote", "WeightedSum")  # the last three hold a Hungarian
SOLVERS += ("IoUThreshold",)  # on a CPU


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def criterion_of(matcher: Matcher) -> DetectionLoss:
    return DetectionLoss(nn.CrossEntropyLoss(reduction="none"), GIoULoss(reduction="none"), matcher)


def loss_and_gradients(criterion: nn.Module, problem: Problem) -> list[Tensor]:
    leaves = [x for x in problem.input.values() if isinstance(x, Tensor) and x.requires_grad]
    loss = criterion(problem.input, problem.target, problem.anchors)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]


def solvers_in(graphs: list[torch.fx.GraphModule]) -> list[str]:
    """Return the names of the operators of this library in graphs and the graphs inside of them."""
    modules = [x for graph in graphs for x in graph.modules() if isinstance(x, torch.fx.GraphModule)]
    names = [str(node.target) for graph in modules for node in graph.graph.nodes]
    return [name for name in names if name.startswith("uotod.")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.long) for x in RULES])
def test_the_criterion_of_a_matcher_is_one_graph_with_one_operator_at_most(name: str) -> None:
    problem, criterion = random_problem(), criterion_of(MATCHERS[name].build())
    backend = EagerAndRecordGraphs()
    compiled = torch.compile(criterion, backend=backend, fullgraph=True)
    torch.testing.assert_close(loss_and_gradients(compiled, problem), loss_and_gradients(criterion, problem))
    assert len(backend.graphs) == 1
    assert len(solvers_in(backend.graphs)) == (1 if name.split("-")[0] in SOLVERS else 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x == "dino" else pytest.mark.long) for x in RECIPES])
def test_a_recipe_is_one_graph(name: str) -> None:
    problem, criterion = problem_for(name), getattr(recipes, name)(3)
    expected = loss_and_gradients(criterion, problem)
    compiled = torch.compile(criterion, backend="eager", fullgraph=True)
    torch.testing.assert_close(loss_and_gradients(compiled, problem), expected)


@pytest.mark.filterwarnings("ignore")
def test_other_numbers_of_targets_are_not_compiled_each() -> None:
    criterion = criterion_of(MATCHERS["Hungarian"].build())
    counter = CompileCounter()
    compiled = torch.compile(criterion, backend=counter, fullgraph=True)
    for targets in (4, 5, 6, 7, 9, 12):
        problem = random_problem(targets=targets)
        torch.testing.assert_close(loss_and_gradients(compiled, problem), loss_and_gradients(criterion, problem))
    assert counter.frame_count <= 2


def test_it_is_exported_with_its_solver() -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = criterion_of(MATCHERS["Hungarian"].build())

        def forward(self, logits: Tensor, boxes: Tensor, labels: Tensor, places: Tensor, mask: Tensor) -> Tensor:
            target = {"labels": labels, "boxes": places, "mask": mask}
            loss: Tensor = self.criterion({"pred_logits": logits, "pred_boxes": boxes}, target)
            return loss

    problem, model = random_problem(full=True), Trained()
    values = (problem.input["pred_logits"].detach(), problem.input["pred_boxes"].detach())
    values += tuple(problem.target[key] for key in ("labels", "boxes", "mask"))
    exported = torch.export.export(model, values)
    assert len(solvers_in([exported.graph_module])) == 1
    torch.testing.assert_close(exported.module()(*values), model(*values))


@pytest.mark.parametrize("name", ["Hungarian", "UnbalancedSinkhorn", "IoUThreshold", "ClosestTarget"])
def test_tensors_without_values_have_a_loss_without_a_value(name: str) -> None:
    problem, criterion = random_problem(full=True), criterion_of(MATCHERS[name].build())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made = [{key: mode.from_tensor(x) for key, x in part.items()} for part in (problem.input, problem.target)]
        loss = criterion(*made, mode.from_tensor(problem.anchors.boxes))
    assert loss.shape == ()
    assert loss.dtype == torch.float64


def test_wrong_values_are_not_looked_for_while_tracing() -> None:
    problem, criterion = (
        random_problem(full=True),
        criterion_of(Hungarian(loc_match_module=nn.L1Loss(reduction="none"))),
    )
    wrong = problem.target | {"labels": problem.target["labels"] + 100}
    with pytest.raises(ValueError, match="labels"):
        criterion(problem.input, wrong)
    compiled = torch.compile(criterion, backend="eager", fullgraph=True)
    compiled(problem.input, problem.target)


def test_targets_in_buckets_have_the_same_loss() -> None:
    problem, criterion = random_problem(), criterion_of(MATCHERS["Hungarian"].build())
    padded = defined_function("compilers.rst", "in_buckets")(problem.target)
    assert padded["labels"].shape[1] == 16
    compiled = defined_function("compilers.rst", "compiled")(criterion)
    assert isinstance(compiled, nn.Module)
    torch.testing.assert_close(criterion(problem.input, padded), criterion(problem.input, problem.target))
