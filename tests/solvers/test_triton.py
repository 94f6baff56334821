"""The Triton solver: optimality, and agreement with the torch solver, on a GPU or in Triton's interpreter."""

import copy
import importlib.util
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.solvers.test_sinkhorn import PENALTIES, assert_plans_close, no_synchronisation, problem, violation
from uotod.match import BalancedSinkhorn, UnbalancedSinkhorn
from uotod.solvers.sinkhorn import Transport, solve_sinkhorn
from uotod.solvers.triton import launch as host
from uotod.solvers.triton.launch import solve_triton

INF = math.inf
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter runs on the host")

# compiles without a GPU, in a process of its own: in this one the kernel may be bound to the interpreter
COMPILE = """
import warnings
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from uotod.solvers.triton.sinkhorn_kernel import solve_images
pointers = dict(cost="X", column_mass="X", active="*u8", regs="*fp64", plan="X", pred_potential="X",
                target_potential="X", iterations="*i64", residuals="X")
numbers = dict(columns="i32", preds="i32", num_iter="i32")
for dtype, newton, penalty in (("*fp32", False, 1e-3), ("*fp64", True, float("inf"))):
    constants = dict(pred_penalty=penalty, target_penalty=penalty, tol=1e-6, attainable=1e-6, eps=1e-7, low=-80.0,
                     high=60.0, newton=newton, alignment=4, K=16, width=16)
    signature = {name: kind.replace("X", dtype) for name, kind in (pointers | numbers).items()}
    source = ASTSource(solve_images, signature | dict.fromkeys(constants, "constexpr"), constants)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    assert compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["cubin"]
"""


def solve(given: tuple[Tensor, Tensor, Tensor], reg: float | Tensor, *penalties: float, **options: float) -> Transport:
    """Return the solution on the host, of a solver that waits for nothing."""
    reg = reg.to(DEVICE) if isinstance(reg, Tensor) else reg
    given = tuple(x.to(DEVICE) for x in given)
    with no_synchronisation(DEVICE):
        transport = solve_triton(*given, reg, *penalties, **options)
    return Transport(*(x.cpu() for x in transport))


@needs_triton
@pytest.mark.parametrize("reg", [0.3, 0.02])
@pytest.mark.parametrize("penalties", PENALTIES)
def test_plan_and_potentials_meet_the_optimality_conditions(penalties: tuple[float, float], reg: float) -> None:
    for shape in [(1, 0), (2, 3), (12, 5)]:
        given = problem(*shape, 1)
        transport = solve(given, reg, *penalties, tol=1e-10)
        assert transport.residual.max() <= 1e-10
        assert violation(transport, given, reg, *penalties) <= 1e-7, shape


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("penalties", [(1, 1), (1e3, 1e-3), (INF, INF), (INF, 1), (0.05, 0.05)])
def test_plan_agrees_with_the_torch_solver(penalties: tuple[float, float], dtype: torch.dtype) -> None:
    for shape, reg in [((40, 7), 0.1), ((300, 20), 0.016)]:  # one block of predictions, and several
        given = problem(*shape, 1, dtype=dtype)
        transport, expected = solve(given, reg, *penalties), solve_sinkhorn(*given, reg, *penalties)
        assert {x.dtype for x in transport} == {dtype, torch.int64}
        assert transport.residual.max() <= 1e-6
        assert_plans_close(transport.plan, expected.plan, 1e-5)
        rows, columns = transport.plan.sum(1), transport.plan.sum(2)
        if penalties[0] == INF:
            assert_plans_close(rows, torch.ones_like(rows), 1e-6)
        if penalties[1] == INF:
            assert_plans_close(columns, given[1], 1e-5)


@needs_triton
def test_columns_of_thousands_do_not_blur_the_targets_in_float32() -> None:
    given = problem(1500, 3, 1, dtype=torch.float32)
    for penalties in [(INF, INF), (1e3, 1e-3)]:
        exact = solve_sinkhorn(given[0].double(), given[1].double(), given[2], 0.011, *penalties, tol=1e-10)
        assert_plans_close(solve(given, 0.011, *penalties).plan.double(), exact.plan, 2e-6)


@needs_triton
@pytest.mark.parametrize("penalties", [(INF, INF), (1e3, 1e-3)])
def test_a_plan_depends_on_nothing_but_its_image(penalties: tuple[float, float]) -> None:
    cost, mass, active = given = problem(20, 9)
    cost[0] *= 3  # images of different difficulty
    whole = solve(given, 0.02, *penalties).plan
    for image in range(len(cost)):
        columns = active[image].nonzero().squeeze(1)  # other than a prefix, and NaN under the rest
        one = slice(image, image + 1)
        plan = solve((cost[one, columns], mass[one, columns], active[one, columns]), 0.02, *penalties).plan
        assert_plans_close(plan[0], whole[image, columns], 1e-9)
        assert (whole[image][~active[image]] == 0).all()


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("penalties", [(1, 1), (1e3, 1e-3), (INF, INF), (INF, 0), (0, INF)])
def test_forbidden_pairs_carry_exactly_nothing(penalties: tuple[float, float], dtype: torch.dtype) -> None:
    cost, mass, active = problem(12, 5, dtype=dtype)
    cost[:, :-1] = cost[:, :-1].masked_fill(torch.rand(2, 5, 12) < 0.3, INF)
    if INF not in penalties:
        cost[0, :, 3] = INF  # a prediction without a partner
        cost[1, 2] = INF  # a target without one
    transport = solve((cost, mass, active), 0.02, *penalties)
    assert transport.residual.max() <= 1e-6
    assert all(x.isfinite().all() for x in transport)
    assert (transport.plan[cost.isinf()] == 0).all()
    assert_plans_close(transport.plan, solve_sinkhorn(cost, mass, active, 0.02, *penalties).plan, 1e-5)


@needs_triton
def test_images_may_differ_in_reg() -> None:
    given, regs = problem(20, 7, 3), torch.tensor([0.3, 0.03, 0.003], dtype=torch.float64)
    plan = solve(given, regs, 1.0, 1.0, tol=1e-9).plan
    for image, reg in enumerate(regs.tolist()):
        one = tuple(x[image : image + 1] for x in given)
        assert_plans_close(plan[image : image + 1], solve_sinkhorn(*one, reg, 1.0, 1.0, tol=1e-10).plan, 1e-7)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_converge_at_a_reg_of_a_ten_thousandth(dtype: torch.dtype) -> None:
    ties = [[9, 9, 7, 9, 7], [4, 2, 8, 1, 6], [4, 6, 0, 2, 3], [5, 5, 5, 5, 5]]
    given = (torch.tensor([ties]) / 10).to(dtype), torch.tensor([[1, 1, 1, 2]]).to(dtype), torch.ones(1, 4) > 0
    transport = solve(given, 1e-4, INF, 100)
    assert transport.residual.max() <= 1e-6
    assert_plans_close(transport.plan.sum(1), torch.ones(1, 5, dtype=dtype), 1e-5)


@needs_triton
@pytest.mark.parametrize("penalties", [(1, 1), (INF, INF), (0.02, 0.02)])
def test_too_few_steps_show_in_the_residual(penalties: tuple[float, float]) -> None:
    transport = solve(problem(40, 8), 0.01, *penalties, num_iter=2)
    assert (transport.residual > 1e-6).all()
    assert (transport.iterations == 2).all()
    assert transport.plan.isfinite().all()


@needs_triton
def test_masses_too_large_for_the_dtype_show_in_the_residual() -> None:
    cost, mass, active = problem(4, 2, full=True, dtype=torch.float32)
    for penalties in [(0, 0), (0.01, 0.01)]:
        assert solve((cost - 5, mass, active), 0.05, *penalties).residual.tolist() == [INF, INF]


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_ever_nan(dtype: torch.dtype) -> None:
    cost, mass, active = problem(6, 4)
    cost[1] = cost[1].masked_fill(torch.rand(5, 6) < 0.5, INF)
    for scale in (1e6, -50.0):  # at -50 the masses themselves leave the range of float32
        given = ((cost * scale).nan_to_num(INF, INF, INF).to(dtype), mass.to(dtype), active)
        for reg in (1e3, 1e-6):
            for penalties in [(1, 1), (INF, INF), (0, 0), (1e12, 1e-12)]:
                transport = solve(given, reg, *penalties, num_iter=3)
                assert all(x.isfinite().all() for x in transport[:4]), (scale, reg, penalties)
                assert (transport.plan >= 0).all()
                assert not transport.residual.isnan().any()


@needs_triton
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_problems_have_empty_plans(shape: tuple[int, int, int]) -> None:
    transport = solve((torch.rand(shape), torch.ones(shape[:2]), torch.ones(shape[:2]) > 0), 0.1, 1.0, 1.0)
    assert transport.plan.shape == shape
    assert transport.residual.tolist() == [0.0] * shape[0]


@needs_triton
@pytest.mark.parametrize(("columns", "reg"), [(128, 0.1), (512, 2.0)])
def test_more_columns_than_the_kernel_takes_go_to_the_torch_solver(columns: int, reg: float) -> None:
    kernel, torch_solver = (problem(2, count, 1) for count in (columns - 1, columns))
    for given in (kernel, torch_solver):
        assert_plans_close(solve(given, reg, 1.0, 1.0).plan, solve_sinkhorn(*given, reg, 1.0, 1.0).plan, 1e-5)
    given = tuple(x.to(DEVICE) for x in torch_solver)
    assert torch.equal(solve_triton(*given, reg, 1.0, 1.0).plan, solve_sinkhorn(*given, reg, 1.0, 1.0).plan)


@needs_triton
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("rule", [BalancedSinkhorn, UnbalancedSinkhorn])
def test_matchers_take_the_solver_by_name(rule: type[BalancedSinkhorn], background: bool) -> None:
    matcher = rule(solver="triton", background=background)
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    for targets in (3, 0):
        cost = torch.rand(3, 10, targets + background)
        cost[..., targets:] = 0.5
        given = cost.to(DEVICE), mask[:, :targets].to(DEVICE)
        expected = rule(background=background).compute_matching(cost, mask[:, :targets])
        assert_plans_close(matcher.compute_matching(*given).cpu(), expected, 1e-5)
    for twin in (matcher, copy.deepcopy(matcher), pickle.loads(pickle.dumps(matcher))):
        assert "solver='triton'" in repr(twin)


@needs_triton
def test_a_matcher_reports_a_plan_far_from_converged() -> None:
    matcher = UnbalancedSinkhorn(solver="triton", num_iter=1, validate=True)
    with pytest.warns(UserWarning, match="reached a residual of .* after num_iter=1 steps"):
        matcher.compute_matching(torch.rand(1, 12, 4, device=DEVICE), torch.ones(1, 3, device=DEVICE) > 0)


@needs_triton
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_the_kernel_compiles() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_gpu
@needs_triton
def test_a_cuda_graph_captures_the_solver() -> None:
    cost, mass, active = (x.to(DEVICE) for x in problem(300, 20, dtype=torch.float32))
    solve_triton(cost, mass, active, 0.016, 1.0, 1.0)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        transport = solve_triton(cost, mass, active, 0.016, 1.0, 1.0)
    cost.copy_(cost.flip(2))
    graph.replay()
    assert_plans_close(transport.plan, solve_triton(cost, mass, active, 0.016, 1.0, 1.0).plan, 1e-6)


def test_a_tensor_on_the_cpu_raises_and_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="solver='triton' needs tensors on a CUDA device, got cpu: use solver='torch'"):
        solve_triton(*problem(3, 2), 0.1, 1.0, 1.0)


def test_a_missing_package_raises_and_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs Triton: pip install \"uotod\[triton\]\""):
        UnbalancedSinkhorn(solver="triton").compute_matching(torch.rand(1, 3, 2), torch.ones(1, 1) > 0)
