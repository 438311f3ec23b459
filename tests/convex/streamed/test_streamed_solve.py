"""Programs on disk: solutions against the in-memory program's, certificates, interruption, checkpoints, peak memory."""

import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from streamed_problems import both, cut, limit_sample, problem

import fixntk as fx
from fixntk.convex.streamed import program as streamed_program
from fixntk.convex.streamed import solve as streamed_solve

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("num_outputs", "tile_rows"), [(None, None), (None, 37), (1, 64), (3, None), (3, 64), (3, 1)])
def test_the_solution_is_that_of_the_program_in_memory(num_outputs, tile_rows):
    streamed, program = both(num_outputs, tile_rows=tile_rows)
    found, expected = fx.solve(streamed, tol=1e-12), fx.solve(program, tol=1e-12)
    assert bool(found.converged)
    np.testing.assert_allclose(found.primal, expected.primal, rtol=1e-9)
    x, _, gates = problem(num_outputs)
    outputs = found.predict(x, gates)
    assert outputs.shape == program.y.shape
    np.testing.assert_allclose(outputs, expected.predict(x, gates), atol=1e-5)
    np.testing.assert_allclose(program.gap(found.weights), found.gap, rtol=1e-6, atol=1e-12)


def test_rows_have_weights():
    x, y, gates = problem()
    weights = np.random.default_rng(1).random(len(x)) * (np.arange(len(x)) % 3)
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 5.0, sample_weight=weights)
    streamed = fx.StreamedProgram(
        cut(x, 90, 333), cut(y, 90, 333), gates, 5.0, sample_weight=cut(weights, 90, 333), tile_rows=37
    )
    np.testing.assert_allclose(streamed.max_reg(), program.max_reg(), rtol=1e-12)
    found, expected = fx.solve(streamed, tol=1e-12), fx.solve(program, tol=1e-12)
    np.testing.assert_allclose(found.primal, expected.primal, rtol=1e-9)
    assert "weighted rows" in repr(streamed)


@pytest.mark.parametrize(("num_outputs", "is_weighted", "tile_rows"), [(None, False, 37), (3, True, 64)])
def test_an_intercept_is_that_of_the_program_in_memory(monkeypatch, num_outputs, is_weighted, tile_rows):
    x, y, gates = problem(num_outputs)
    y = y + 20.0
    options = {"intercept": True}
    if is_weighted:
        options["sample_weight"] = np.random.default_rng(1).random(len(x)) * (np.arange(len(x)) % 3)
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0, **options)
    program = program.with_reg(0.1 * program.max_reg())
    streamed = fx.StreamedProgram(x, y, gates, float(program.reg), tile_rows=tile_rows, **options)
    np.testing.assert_allclose(streamed.max_reg(), program.max_reg(), rtol=1e-10)
    assert "intercept" in repr(streamed)
    expected = fx.solve(program, tol=1e-12)
    for num_rows in (len(x), 100):
        limit_sample(monkeypatch, num_rows)
        found = fx.solve(streamed, tol=1e-11)
        assert bool(found.converged)
        # The model is exact with all rows.
        assert num_rows < len(x) or int(found.iterations) <= 3
        np.testing.assert_allclose(found.primal, expected.primal, rtol=1e-9)
        np.testing.assert_allclose(found.intercept, expected.intercept, rtol=1e-5)
        np.testing.assert_allclose(found.predict(x, gates), expected.predict(x, gates), atol=1e-4)
        np.testing.assert_allclose(program.gap(found.weights), found.gap, rtol=1e-6, atol=1e-9)


def test_targets_far_from_zero_keep_their_digits_in_single_precision():
    x, y, gates = (array.astype(np.float32) for array in problem())
    near, far = (fx.StreamedProgram(x, y + shift, gates, 5.0, intercept=True) for shift in (0, np.float32(2**12)))
    near, far = fx.solve(near, tol=1e-4), fx.solve(far, tol=1e-4)
    assert bool(far.converged)
    np.testing.assert_allclose(far.primal, near.primal, rtol=2e-3)
    np.testing.assert_allclose(far.intercept - 2**12, near.intercept, atol=0.05)


@pytest.mark.parametrize("num_rows", [200, 40, 20])
def test_a_sample_of_few_rows_takes_more_passes_to_the_same_optimum(monkeypatch, num_rows):
    streamed, program = both(tile_rows=50)
    limit_sample(monkeypatch, num_rows)
    found = fx.solve(streamed, tol=1e-10)
    assert bool(found.converged)
    assert int(found.iterations) > 2
    np.testing.assert_allclose(found.primal, fx.solve(program, tol=1e-12).primal, rtol=1e-9)
    # The history has the certificate of the best weights so far.
    assert np.all(np.diff(found.history.gap) <= 0)
    np.testing.assert_array_equal(found.history.gap[-1], found.gap)


def test_the_scale_of_the_data_does_not_matter(monkeypatch):
    limit_sample(monkeypatch, 100)
    x, y, gates = (array.astype(np.float32) for array in problem())
    relative = []
    # Powers of two, by which single precision multiplies without rounding.
    for x_scale, y_scale in ((1.0, 1.0), (2.0**-20, 2.0**45)):
        program = fx.StreamedProgram(np.float32(x_scale) * x, np.float32(y_scale) * y, gates, 5.0 * x_scale * y_scale)
        found = fx.solve(program, tol=1e-5)
        assert bool(found.converged)
        relative.append(np.asarray(found.weights, np.float64) * x_scale / y_scale)
    np.testing.assert_allclose(relative[1], relative[0], rtol=1e-6)


def test_few_long_rows_with_most_of_the_second_moments_are_in_the_sample(monkeypatch):
    x, y, gates = problem(num_rows=2000)
    x[::40] *= 300.0
    y[::40] *= 300.0
    limit_sample(monkeypatch, 400)
    program = fx.StreamedProgram(x, y, gates, 1.0, tile_rows=170)
    found = fx.solve(program.with_reg(0.1 * program.max_reg()), tol=1e-6)
    # Random rows alone take 33.
    assert int(found.iterations) <= 12


def test_the_objective_of_a_solve_never_rises_whatever_the_sample_is(monkeypatch):
    streamed, program = both()
    limit_sample(monkeypatch, 3)
    with pytest.warns(fx.ConvergenceWarning, match="streamed stopped early"):
        found = fx.solve(streamed, tol=1e-12, max_iter=12)
    objective = np.asarray(found.history.objective)
    assert np.all(np.diff(objective) < 0)
    assert objective[-1] >= float(fx.solve(program, tol=1e-12).dual)


def test_the_certificate_is_that_of_the_weights(monkeypatch):
    streamed, program = both(3, tile_rows=64)
    limit_sample(monkeypatch, 20)
    with pytest.warns(fx.ConvergenceWarning):
        found = fx.solve(streamed, tol=1e-12, max_iter=3)
    expected = program.evaluate(found.weights)
    np.testing.assert_allclose(found.primal, expected.primal, rtol=1e-12)
    np.testing.assert_allclose(found.gap, expected.gap, rtol=1e-9)
    np.testing.assert_allclose(found.dual, program.dual(program.dual_point(found.weights)), rtol=1e-9)
    np.testing.assert_allclose(found.relative_gap, expected.gap / program.primal_at_zero(), rtol=1e-9)
    assert found.history.gap.shape == (4,)


def test_from_max_reg_on_zero_is_the_solution_after_one_pass():
    streamed, _ = both(share=1 + 1e-9)
    found = fx.solve(streamed)
    assert int(found.iterations) == 0
    assert "reg is at or above max_reg" in found.message
    assert not np.any(found.weights)


def test_a_solve_from_its_solution_is_over_at_once():
    streamed, _ = both()
    found = fx.solve(streamed, tol=1e-8)
    again = fx.solve(streamed, tol=1e-8, init=found)
    assert int(again.iterations) == 0
    np.testing.assert_array_equal(again.weights, found.weights)
    near = fx.solve(streamed.with_reg(0.9 * streamed.reg), tol=1e-8, init=found.weights[:, :, 0])
    assert bool(near.converged)
    with pytest.raises(ValueError, match=r"init must have shape \(30, 4, 1\), got \(30, 4, 2\)"):
        fx.solve(streamed, init=np.ones((30, 4, 2)))


def test_single_precision_reaches_its_default_tolerance():
    x, y, gates = (array.astype(np.float32) for array in problem())
    streamed = fx.StreamedProgram(cut(x, 90), cut(y, 90), gates, 1.0, tile_rows=50)
    found = fx.solve(streamed.with_reg(0.1 * streamed.max_reg()))
    assert found.weights.dtype == found.gap.dtype == jnp.float32
    assert found.tol == 1e-4
    assert bool(found.converged)


def test_a_solve_ends_after_four_passes_in_vain(monkeypatch):
    streamed, _ = both()
    # As if rounding hid every improvement.
    monkeypatch.setattr(streamed_solve, "minimise_model", lambda program, *_: np.zeros(program.group_shape))
    with pytest.warns(fx.ConvergenceWarning, match="limited by float64 rounding error"):
        found = fx.solve(streamed)
    assert bool(found.failed)
    assert int(found.iterations) == 4


def test_options_of_other_methods_are_refused():
    streamed, _ = both()
    with pytest.raises(ValueError, match=r"method must be 'auto' for a StreamedProgram, .* got 'newton'"):
        fx.solve(streamed, method="newton")
    with pytest.raises(ValueError, match="epsilon belongs to reweighting"):
        fx.solve(streamed, epsilon=1e-3)
    with pytest.raises(ValueError, match="below what float64 can reach"):
        fx.solve(streamed, tol=1e-20)
    with pytest.raises(ValueError, match="max_iter must not be negative"):
        fx.solve(streamed, max_iter=-1)


def test_the_network_has_the_solutions_outputs_and_checks_the_gates():
    streamed, _ = both(3)
    x, _, gates = problem(3)
    found = fx.solve(streamed, tol=1e-6)
    network = found.to_network(gates, streamed)
    np.testing.assert_allclose(network(x), found.predict(x, gates), atol=1e-10)
    np.testing.assert_array_equal(found.kernel_weights, np.sqrt(np.sum(found.weights**2, axis=(1, 2))))
    with pytest.raises(ValueError, match="gates must be those of the StreamedProgram, in the same order"):
        found.to_network(gates[::-1], streamed)


def test_callbacks_are_called_after_every_pass_and_can_end_the_solve(monkeypatch):
    streamed, _ = both()
    limit_sample(monkeypatch, 20)
    seen = []
    with pytest.warns(fx.ConvergenceWarning):
        found = fx.solve(streamed, tol=1e-10, callback=lambda progress: seen.append(progress) or len(seen) == 3)
    assert [progress.iteration for progress in seen] == [0, 1, 2]
    assert int(found.iterations) == 2
    np.testing.assert_allclose(seen[-1].relative_gap, found.relative_gap)
    assert seen[-1].num_active == int(found.active.sum())


def test_an_interrupted_solve_hands_out_what_it_reached_and_ends_its_reader(monkeypatch):
    streamed, program = both(tile_rows=20)
    limit_sample(monkeypatch, 20)
    before = threading.active_count()
    passes = []
    sum_tile = streamed_program._sum_tile

    def interrupt(*args, **options):
        passes.append(None)
        # In the fourth pass, which has 21 tiles, after three steps.
        if len(passes) == 3 * 21 + 5:
            raise KeyboardInterrupt
        return sum_tile(*args, **options)

    monkeypatch.setattr(streamed_program, "_sum_tile", interrupt)
    with pytest.raises(fx.Interrupted) as caught:
        fx.solve(streamed, tol=1e-10, callback=lambda _: False)
    reached = caught.value.result
    assert int(reached.iterations) == 2
    np.testing.assert_allclose(reached.gap, program.gap(reached.weights), rtol=1e-9)
    assert threading.active_count() == before
    passes.clear()
    with pytest.raises(KeyboardInterrupt) as plain:
        fx.solve(streamed, tol=1e-10)
    assert not isinstance(plain.value, fx.Interrupted)


def test_a_bar_shows_passes(capsys):
    streamed, _ = both()
    fx.solve(streamed, progress=True, tol=1e-6)
    shown = capsys.readouterr().err
    assert "solve (streamed)" in shown
    assert "active" in shown


def test_a_solve_goes_on_from_its_checkpoint_to_the_same_bits(monkeypatch, tmp_path):
    streamed, _ = both(tile_rows=50)
    limit_sample(monkeypatch, 30)
    whole = fx.solve(streamed, tol=1e-10)
    with pytest.warns(fx.ConvergenceWarning):
        fx.solve(streamed, tol=1e-10, max_iter=2, checkpoint=tmp_path)
    # The same rows in other shards.
    x, y, gates = problem()
    other = fx.StreamedProgram(cut(x, 200), y, gates, streamed.reg, tile_rows=50)
    seen = []
    found = fx.solve(other, tol=1e-10, checkpoint=tmp_path, callback=lambda progress: seen.append(progress.iteration))
    assert seen[0] == 2
    np.testing.assert_array_equal(found.weights, whole.weights)
    np.testing.assert_array_equal(found.history.gap, whole.history.gap)
    assert int(found.iterations) == int(whole.iterations)


@pytest.mark.parametrize("changed", ["x", "y", "gates", "reg", "init"])
def test_a_checkpoint_of_another_solve_is_refused(monkeypatch, tmp_path, changed):
    limit_sample(monkeypatch, 30)
    x, y, gates = problem()
    arguments = {"x": x, "y": y, "gates": gates, "reg": 5.0}
    with pytest.warns(fx.ConvergenceWarning):
        fx.solve(fx.StreamedProgram(**arguments), tol=1e-12, max_iter=1, checkpoint=tmp_path)
    init = None
    if changed == "init":
        init = np.ones((30, 4, 1))
    else:
        arguments[changed] = arguments[changed] * (1 + 1e-12)
    with pytest.raises(ValueError, match=f"with other {changed}: pass the same"):
        fx.solve(fx.StreamedProgram(**arguments), tol=1e-12, max_iter=1, checkpoint=tmp_path, init=init)


# Masks would take 250 MiB as bools, and 1 GiB as numbers.
_PEAK = """
import threading, time, sys
from pathlib import Path
import numpy as np, jax
import fixntk as fx

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
gates = rng.standard_normal((500, 16), dtype=np.float32)
for k in range(4):
    x = rng.standard_normal((2**17, 16), dtype=np.float32)
    np.save(folder / f"x{k}.npy", x)
    np.save(folder / f"y{k}.npy", np.maximum(x[:, 0], x[:, 1]))
del x
files = [[folder / f"{name}{k}.npy" for k in range(4)] for name in "xy"]
before = peak = anonymous()
threading.Thread(target=watch, daemon=True).start()
program = fx.StreamedProgram(*files, gates, 1.0, tile_rows=2**12)
solution = fx.solve(program.with_reg(0.3 * program.max_reg()), tol=1e-2)
print(peak - before, bool(solution.converged))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, converged = done.stdout.split()
    assert converged == "True"
    assert float(peak) < 350
