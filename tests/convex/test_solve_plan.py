"""The plan of a solve: what solve itself would choose, refuse and need; exchanges against XLA's."""

import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk import _tiling
from fixntk.convex import solve_plan
from fixntk.convex.rates import Rates, measure_rates
from fixntk.convex.solve import METHODS, choose_method
from fixntk.convex.work import program_of_shapes

ROOT = Path(__file__).parents[2]
RATES = Rates(1e9, 2e9, 3e9, 4e9)


def plan_of(plan, name):
    return next(each for each in plan.methods if each.name == name)


@pytest.mark.parametrize("options", [{}, {"loss": "logistic"}, {"loss": "softmax", "num_outputs": 3}])
def test_method_and_refusals_are_those_of_solve(options):
    program = random_problem(0, **options)
    plan = solve_plan(30, 4, 20, outputs=options.get("num_outputs", 1), loss=options.get("loss", "squared"))
    assert plan.method == fx.solve(program).method
    for name in METHODS:
        refusal = plan_of(plan, name).refusal
        if refusal:
            with pytest.raises(ValueError, match=re.escape(refusal)):
                fx.solve(program, method=name)
        else:
            choose_method(program, name)
    assert [each.name for each in plan.methods] == list(METHODS)


@pytest.mark.parametrize("name", ["irls", "anderson", "fista"])
def test_memory_is_what_solve_says_that_it_needs(name, monkeypatch):
    program = random_problem(0, num_rows=3000, num_features=10, num_gates=900)
    plan = solve_plan(3000, 10, 900, dtype="float64")
    assert plan.data_bytes == program.x.nbytes + program.y.nbytes + program.masks.nbytes + 8
    monkeypatch.setattr(_tiling, "_free_of_machine", lambda: 0)
    needed = _tiling.bytes_in_words(plan_of(plan, name).num_bytes)
    with pytest.raises(fx.OutOfMemoryError, match=f"needs {needed}, "):
        fx.solve(program, method=name)


def test_what_does_not_fit_is_said_with_what_does():
    plan = solve_plan(10_000, 20, 200, dtype="float64", memory=2**30)
    assert [each.name for each in plan.methods if each.fits] == ["fista", "newton"]
    assert "too much" in repr(plan).splitlines()[3]
    # A Newton step on all groups of two thousand rows makes a matrix of them.
    tight = solve_plan(2000, 20, 200, dtype="float64", memory=30e6)
    assert not plan_of(tight, "newton").fits
    # Where a method does not fit, its seconds would be those of a solve that cannot be made.
    timed = solve_plan(2000, 20, 200, dtype="float64", memory=30e6, rates=RATES)
    assert plan_of(timed, "newton").seconds is None
    assert plan_of(timed, "fista").seconds > 0
    assert plan_of(tight, "fista").fits
    assert re.search(r"It needs \d+ MiB, and the data leave 28 MiB: method='fista' fits$", tight.reason)
    nothing = solve_plan(2000, 20, 200, dtype="float64", memory=7e5)
    assert nothing.reason.endswith("the data leave 0 KiB: take fewer gates, or rows")


def test_seconds_are_operations_by_kind_over_rates():
    for each in solve_plan(3000, 10, 900, rates=RATES).methods:
        assert each.flops / 4e9 <= each.seconds <= each.flops / 1e9
    assert all(each.seconds is None for each in solve_plan(3000, 10, 900).methods)
    # At equal rates the kinds do not matter.
    for each in solve_plan(3000, 10, 900, rates=Rates(2e9, 2e9, 2e9, 2e9)).methods:
        assert each.seconds == pytest.approx(each.flops / 2e9)


def test_devices_divide_rows_and_products_and_exchange_correlations():
    alone, divided = (solve_plan(10**6, 20, 500, outputs=2, devices=k, rates=RATES) for k in (1, 7))
    assert (alone.rows_per_device, divided.rows_per_device) == (10**6, math.ceil(10**6 / 7))
    assert (alone.sum_bytes, divided.sum_bytes) == (0, 500 * 20 * 2 * 4)
    one, seven = plan_of(alone, "fista"), plan_of(divided, "fista")
    assert seven.flops == one.flops
    assert seven.seconds == pytest.approx(one.seconds / 7)
    # One sum an iteration, and those of the start and the certificate.
    assert seven.exchanged_bytes == (seven.iterations + 2) * divided.sum_bytes
    assert one.exchanged_bytes == 0
    slow = plan_of(solve_plan(10**6, 20, 500, outputs=2, devices=7, rates=RATES._replace(bandwidth=1e6)), "fista")
    assert slow.seconds == pytest.approx(seven.seconds + 2 * 6 / 7 * seven.exchanged_bytes / 1e6)
    # Kernel matrices are not divided.
    assert plan_of(divided, "irls").num_bytes == plan_of(alone, "irls").num_bytes


_ON_FOUR = """
import re, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from fixntk import gram
by_rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=by_rows)
operands = shape(400, 30, dtype=bool), shape(400, 7), shape(400, 2)
text = gram.masked_adjoint.lower(*operands, 30).compile().as_text()
for found in re.findall(r"= f32\\[([0-9,]+)\\]\\S* all-reduce\\(", text):
    print(np.prod([int(k) for k in found.split(",")]) * 4)
print("gathers", text.count("all-gather("))
"""


def test_the_sum_of_a_product_over_devices_is_the_one_that_xla_makes():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", _ON_FOUR], cwd=ROOT, env=flags, capture_output=True, text=True, check=False
    )
    expected = solve_plan(400, 7, 30, outputs=2, devices=4).sum_bytes
    assert done.stdout.split() == [str(expected), "gathers", "0"], done.stderr[-2000:]


def test_the_table_has_a_line_for_each_method_and_says_what_solve_takes():
    lines = repr(solve_plan(1000, 20, 300, loss="logistic", devices=2, rates=RATES)).splitlines()
    assert lines[0] == "SolvePlan(1,000 rows, 20 features, 300 gates, 1 output, logistic loss, float32)"
    assert lines[3].split()[0] == "method"
    assert lines[3].endswith("exchanged")
    assert [line.split()[0] for line in lines[4:6]] == ["fista", "newton"]
    assert [line.split(":")[0] for line in lines[6:8]] == ["irls", "anderson"]
    assert lines[8].startswith("solve takes newton: ")


def test_the_table_of_the_page_is_made_by_the_function():
    page = (ROOT / "docs/planning.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| ([0-9,]+) \| (\d+) \| (.*) \|$", page, re.MULTILINE)
    assert len(lines) == 8
    rates = Rates(5e12, 5e12, 2e13, 5e12, bandwidth=1e10)
    for rows, devices, cells in lines:
        plan = solve_plan(int(rows.replace(",", "")), 50, 1000, devices=int(devices), memory=80e9, rates=rates)
        newton, fista, irls = (plan_of(plan, name) for name in ("newton", "fista", "irls"))
        words = _tiling.bytes_in_words
        expected = [words(plan.data_bytes)]
        for each in (newton, fista):
            exchanged = words(each.exchanged_bytes) if plan.num_devices > 1 else "–"
            expected += [words(each.num_bytes), exchanged, f"{float(f'{each.seconds:.2g}'):g}"]
        assert cells.split(" | ") == [*expected, words(irls.num_bytes) + ("" if irls.fits else ", too much")]
        assert plan.method == "newton"
        assert newton.fits


def test_rates_are_measured_for_any_shape_and_change_no_setting():
    before = jax.config.jax_enable_x64
    for shape in ((1, 1, 1, 1), (300, 4, 50, 2)):
        rates = measure_rates(program_of_shapes(*shape, "squared", "float64"))
        assert all(np.isfinite(rate) and rate > 0 for rate in rates[:4])
        assert rates.bandwidth == math.inf
    assert jax.config.jax_enable_x64 == before


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 2, 3), {}, "num_rows must be at least 1, got 0"),
        ((9, 2, -3), {}, "num_gates must be at least 1, got -3"),
        ((9, 2, 3), {"devices": 10}, "devices must not be more than the rows, got 10 for 9 rows"),
        ((9, 2, 3), {"dtype": "float16"}, "dtype must be float32 or float64, got 'float16'"),
        ((9, 2, 3), {"dtype": "number"}, "dtype must be float32 or float64, got 'number'"),
        ((9, 2, 3), {"memory": 0.0}, "memory must be positive, got 0"),
        ((9, 2, 3), {"memory": math.nan}, "memory must be positive, got nan"),
        ((9, 2, 3), {"loss": "softmax"}, "at least two outputs"),
    ],
)
def test_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        solve_plan(*arguments, **options)


@pytest.mark.wrong_types
def test_numbers_that_are_not_whole_are_named():
    with pytest.raises(TypeError, match=r"num_features must be an integer, got 2\.5"):
        solve_plan(9, 2.5, 3)
