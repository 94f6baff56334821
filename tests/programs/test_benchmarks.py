"""The parts of the benchmarks that compute something: order, exponents, ratios and tables."""

import itertools

import pytest
import torch

from benchmarks.__main__ import check_equal
from benchmarks.contender import Contender
from benchmarks.measure import Spent, interleave, timed
from benchmarks.report import Table, bench_table, documentation, exponent_table, markdown, number, restructured
from benchmarks.scaling import CRITERIA, SIZES, enlarged, exponents, fit_exponent, steep
from benchmarks.targets import Target, Verdict, verdicts


def row(contender: str, rule: str = "IoU", **values) -> dict:
    fields = {"match_ms": 1.0, "forward_ms": 2.0, "full_ms": 4.0, "cpu_ms": 4.0, "peak_mib": 10.0}
    return {"workload": "S8", "contender": contender, "rule": rule, **fields, **values}


def test_each_round_goes_through_all_steps_in_an_order_of_its_own() -> None:
    order: list[str] = []
    interleave({name: lambda name=name: order.append(name) for name in "abc"}, repeats=12)
    rounds = ["".join(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert len(rounds) == 13  # the first round does not count
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 3
    again: list[str] = []
    interleave({name: lambda name=name: again.append(name) for name in "abc"}, repeats=12)
    assert again == order


def test_three_rounds_are_run_however_small_the_budget() -> None:
    order: list[str] = []
    interleave({name: lambda name=name: order.append(name) for name in "ab"}, budget=0.0)
    assert len(order) == 2 * 4


def test_the_median_is_that_of_the_rounds_that_count() -> None:
    walls = itertools.chain([100.0], itertools.cycle([1.0, 2.0, 9.0]))
    timing = interleave({"a": lambda: Spent(next(walls), 0.5)}, repeats=3)["a"]
    assert timing[:2] == (2.0, 0.5)


def test_a_step_of_another_process_is_timed_by_its_own_account() -> None:
    assert timed(lambda: Spent(3.0, 2.0)) == Spent(3.0, 2.0)
    assert timed(lambda: None).wall < 1.0


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(power: float) -> None:
    sizes = [1.0, 3.0, 8.0, 30.0]
    assert fit_exponent(sizes, [7 * size**power for size in sizes]) == pytest.approx(power)


@pytest.mark.parametrize(("sizes", "values"), [([2.0], [3.0]), ([1.0, 2.0], [0.0, 1.0])])
def test_what_has_no_exponent_gets_none(sizes: list[float], values: list[float]) -> None:
    assert fit_exponent(sizes, values) is None


def test_exponents_are_those_of_the_larger_half_and_steep_ones_are_warned_of() -> None:
    times = {1: 5.0, 2: 5.0, 4: 16.0, 8: 64.0, 16: 256.0}  # flat, then quadratic
    points = [{"criterion": "X", "size": "P", "value": v, "time_ms": t, "peak_mib": 3.0 * v} for v, t in times.items()]
    found = exponents(points)
    assert found == [{"criterion": "X", "size": "P", "time": pytest.approx(2), "memory": pytest.approx(1)}]
    assert steep(found) == ["warning: time of X grows as P^2.00"]
    assert exponent_table(found) == Table(["criterion", "time, P", "memory, P"], [["X", "2.00", "1.00"]])


@pytest.mark.parametrize("size", SIZES)
def test_the_study_enlarges_one_size_at_a_time(size: str) -> None:
    first, last = (enlarged(size, SIZES[size][i]) for i in (0, -1))
    changed = [key for key in vars(first) if getattr(first, key) != getattr(last, key)]
    assert len(changed) == 1
    assert all(callable(make) for make in CRITERIA.values())


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.01234, "0.0123"), (1.0, "1"), (12.345, "12.3"), (99.96, "100"), (1234.5, "1234")],
)
def test_numbers_have_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_ratio_of_a_row_is_that_to_the_first_of_its_workload() -> None:
    other = row("x", workload="Y1", full_ms=None, match_ms=3.0)
    table = bench_table([row("uotod"), row("peer", full_ms=6.0), other])
    assert [cells[table.head.index("of ours")] for cells in table.rows] == ["1", "1.5", "1"]


def test_both_forms_of_a_table_hold_every_cell_in_order() -> None:
    table = Table(["a", "b"], [["1", "2"], ["3", "4"]])
    assert markdown(table).splitlines() == ["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |"]
    cells = [line.split()[-1] for line in restructured(table).splitlines()[3:]]
    assert cells == ["a", "b", "1", "2", "3", "4"]


def test_a_target_is_the_ratio_of_the_peer_to_ours() -> None:
    target = Target("S8", ("peer", "IoU"), "IoU", "full_ms", 1.5)
    assert verdicts([row("uotod"), row("peer", full_ms=6.0)], [target]) == [Verdict(target, 1.5)]
    assert Verdict(target, 1.5).reached
    assert not Verdict(target, 1.4).reached
    assert verdicts([row("uotod")], [target]) == [Verdict(target, None)]


def test_the_documentation_names_the_machine_and_who_is_missing() -> None:
    facts = {"machine": "abacus", "cores": "2", "threads": "1", "torch": "2.13"}
    bench = {"environment": facts, "missing": ["ultralytics"], "rows": [row("uotod")]}
    text = documentation(bench, {"exponents": []}, {"D2": {"matching": 1e-3, "operations": 5}})
    assert "abacus, 2 cores, 1 thread; torch 2.13." in text
    assert "Not installed, so not measured: ultralytics." in text
    assert "not measured" in text


def contender(name: str, loss: float, rule: str = "IoU", tolerance: float = 1e-4) -> Contender:
    return Contender(name, rule, lambda: torch.tensor(loss), {}, lambda: 0.0, tolerance)


def test_contenders_of_one_rule_must_compute_the_same_loss() -> None:
    check_equal("S8", [contender("a", 1.0), contender("b", 1.00005), contender("c", 2.0, rule="other")])
    with pytest.raises(RuntimeError, match="S8: b, IoU and a, IoU differ by"):
        check_equal("S8", [contender("a", 1.0), contender("b", 1.01)])
    with pytest.raises(RuntimeError, match="differ by nan"):
        check_equal("S8", [contender("a", 1.0), contender("b", float("nan"))])
    check_equal("S8", [contender("a", 1.0), contender("b", 1.01, tolerance=0.02)])
