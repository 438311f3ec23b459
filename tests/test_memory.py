"""Memory: estimates before allocations, against measured peaks, and errors that say what is missing."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fixntk as fx
from fixntk import _tiling as tiling
from fixntk._tiling import FreeMemory, OutOfMemoryError, memory_for
from fixntk.ntk.layers import Activate, Conv, Dense, GlobalAveragePool, Serial

ROOT = Path(__file__).parents[1]

CONVOLUTIONS = Serial(Conv((3, 3)), Activate(), GlobalAveragePool(), Dense())


def test_what_needs_more_than_is_free_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(tiling, "_free_of_machine", lambda: 2**30)
    message = r"the kernel needs 2\.0 GiB, this machine leaves 1\.0 GiB: use tiles"
    with pytest.raises(OutOfMemoryError, match=message), memory_for("the kernel", 2**31, "use tiles"):
        pytest.fail("the block must not run")
    with memory_for("the kernel", 2**29, "use tiles"):
        pass


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fx.ReLUNetwork.sample(jax.random.key(0), 10**9, 10**4), "a network of 1000000000 neurons needs"),
        (lambda: fx.ReLUNetwork.sample(jax.random.key(0), 10**5, 2)(np.ones((300, 2))), "100000 neurons on 300 rows"),
        (lambda: fx.enumerate_arrangements(np.random.default_rng(0).normal(size=(3000, 2))), "3000×6000 masks"),
        (lambda: fx.gradient_descent(jnp.eye(9), np.ones(9)).predict(np.ones(10**6)), "outputs at 1000000 times"),
        (lambda: fx.ntk_spectrum(lambda w, x: x @ w, np.ones(9), np.ones((900, 9)), num=900), "900×900 kernel"),
        (lambda: fx.network_kernel(CONVOLUTIONS, np.ones((9, 16, 16, 3))), "9×9 pair of kernel matrices"),
        (lambda: Dense().init(jax.random.key(0), (10**4,), 10**4), "Dense with parameters of 10000×10000 needs"),
        (lambda: fx.ntk_spectrum(lambda w, x: x @ w, np.ones(9), np.ones((3000, 9)), num=600), "600 eigenvectors of a"),
        (lambda: _enumerate(900, max_cells=10**6), "the points of 809102 cells"),
        (lambda: _train(20_000), "training needs"),
        (lambda: _solve_relu(2000), "solve_relu on 2000 rows and 100 gates"),
    ],
    ids=[
        "sample",
        "network",
        "arrangements",
        "descent",
        "spectrum",
        "convolutions",
        "init",
        "lanczos",
        "cells",
        "train",
        "relu",
    ],
)
def test_entries_whose_work_outgrows_their_inputs_refuse_it_by_name(call, message, monkeypatch):
    monkeypatch.setattr(tiling, "_free_of_machine", lambda: 2**24)
    with pytest.raises(OutOfMemoryError, match=f"{message}.*this machine leaves 16 MiB: "):
        call()


def _enumerate(num_rows, **options):
    return fx.enumerate_arrangements(np.random.default_rng(0).normal(size=(num_rows, 3)), **options)


def _train(num_rows):
    x = np.random.default_rng(0).standard_normal((num_rows, 4))
    return fx.train(fx.ReLUNetwork.sample(jax.random.key(0), 500, 4), x, x[:, 0], optax.sgd(1e-3))


def _solve_relu(num_rows):
    rng = np.random.default_rng(0)
    x, gates = rng.standard_normal((num_rows, 10)), rng.standard_normal((100, 10))
    return fx.solve_relu(fx.ConvexProgram(x, np.tanh(x[:, 0]), fx.activation_masks(x, gates), 1.0), gates)


def test_the_error_is_both_a_memory_error_and_a_value_error():
    assert issubclass(OutOfMemoryError, MemoryError)
    assert issubclass(OutOfMemoryError, ValueError)


def test_nothing_is_estimated_under_a_transformation(monkeypatch):
    monkeypatch.setattr(tiling, "_free_of_machine", lambda: 0)
    x = jax.ShapeDtypeStruct((5000, 3), jnp.float32)
    assert jax.eval_shape(fx.gated_relu_ntk, x).shape == (5000, 5000)
    assert jax.eval_shape(jax.vmap(fx.gated_relu_ntk), jax.ShapeDtypeStruct((2, 5000, 3), jnp.float32)).ndim == 3


@pytest.mark.parametrize(
    "raw",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."),
        ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."),
        MemoryError("no room"),
    ],
)
def test_an_allocation_that_fails_nonetheless_is_the_same_clear_error(raw, monkeypatch):
    monkeypatch.setattr(tiling, "_free_of_machine", lambda: 2**20)
    message = "the kernel needs 1 MiB, and an allocation failed where this machine leaves 1 MiB: use tiles"
    with pytest.raises(OutOfMemoryError, match=message) as caught, memory_for("the kernel", 2**20, "use tiles"):
        raise raw
    assert caught.value.__suppress_context__


def test_other_errors_pass_and_an_explained_one_is_not_explained_again():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_for("the kernel", 1, "use tiles"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
    with pytest.raises(ValueError, match="reg must"), memory_for("the kernel", 1, "use tiles"):
        raise ValueError("reg must be positive")
    inner = OutOfMemoryError("the inner kernel needs more")
    with pytest.raises(OutOfMemoryError) as caught, memory_for("the kernel", 1, "use tiles"):
        raise inner
    assert caught.value is inner


def test_cgroups_with_a_limit_count_and_their_cached_files_are_free(tmp_path):
    for name, text in (("max", "1000"), ("current", "900"), ("stat", "anon 1\ninactive_file 30\nactive_file 20\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert list(tiling._free_of_cgroup(tmp_path, "memory.max", "memory.current")) == [
        FreeMemory(150, "the memory limit of the cgroup")
    ]
    (tmp_path / "memory.max").write_text("max\n")
    assert list(tiling._free_of_cgroup(tmp_path, "memory.max", "memory.current")) == []
    assert list(tiling._free_of_cgroup(tmp_path / "none", "memory.max", "memory.current")) == []


def test_the_least_of_all_limits_counts(monkeypatch):
    monkeypatch.setattr(tiling, "_free_of_machine", lambda: 3)
    monkeypatch.setattr(tiling, "_free_of_cgroups", lambda: iter([FreeMemory(5, "a"), FreeMemory(2, "the cgroup")]))
    assert tiling.free_on_host() == FreeMemory(2, "the cgroup")


# Each function is called before the limit is set: all it needs is loaded and compiled. LLVM ends the process
# where it finds no memory.
_LIMITED = """
import resource, jax, numpy as np, fixntk as fx
from fixntk import _tiling
x = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32)
masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(0), 50, 3))
calls = [
    lambda k: fx.gated_relu_ntk(x[:k]),
    lambda k: fx.masked_gram(np.ones(50), masks[:k], x[:k]),
    lambda k: fx.empirical_ntk(lambda w, x: x @ w, x[0], x[:k], batch_size=1000),
    lambda k: fx.solve(fx.ConvexProgram(x[:k], abs(x[:k, 0]), masks[:k], 1.0), method="irls", tol=0.1),
]
free_of_limits = _tiling._free_of_limits
for call in calls:
    kept = jax.block_until_ready(call(5000))  # It would be freed at an unknown time, within the limit.
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
    # The second time as if the estimate had been too small.
    for found in (free_of_limits, lambda: [_tiling.FreeMemory(1e9, "ulimit -v")]):
        _tiling._free_of_limits = found
        try:
            jax.block_until_ready(call(5000))
        except fx.OutOfMemoryError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sets ulimit -v")
def test_under_ulimit_the_error_names_it_and_what_lowers_the_need():
    done = subprocess.run([sys.executable, "-c", _LIMITED], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 8, done.stdout + done.stderr[-2000:]
    for refused, failed in zip(lines[::2], lines[1::2], strict=True):
        assert re.search(r" needs \d+ MiB, ulimit -v leaves \d+ MiB: (pass|use) ", refused)
        assert re.search(r" needs \d+ MiB, and an allocation failed where ulimit -v leaves .*: (pass|use) ", failed)
    assert "RESOURCE_EXHAUSTED" not in done.stdout + done.stderr


def peaks(*names):
    """Estimated over measured memory. Each has a process: what one has freed would serve the next without counting."""
    ratios = {}
    for name in names:
        done = subprocess.run(
            [sys.executable, "tests/peaks.py", name], cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
        )
        ((found, estimate, peak),) = (line.split() for line in done.stdout.splitlines())
        assert found == name, done.stderr
        ratios[name] = float(estimate) / float(peak)
    return ratios


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_estimates_are_within_a_quarter_of_measured_peaks():
    found = peaks("gated_relu_ntk", "masked_gram", "activation_masks")
    np.testing.assert_allclose(list(found.values()), 1.0, atol=0.25, err_msg=str(found))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_estimates_of_long_computations_are_too():
    found = peaks(
        "mlp_kernel",
        "network_kernel",
        "network_kernel_in_tiles",
        "empirical_ntk",
        "empirical_ntk_of_jacobians",
        "layerwise",
        "dense_spectrum",
        "enumerate_arrangements",
        "sample_network",
        "network_outputs",
        "irls",
        "anderson",
        "newton",
        "fista",
        "solve_relu",
        "discover",
        "solve_kernels",
        "ntk_regressor",
        "ntk_classifier",
    )
    np.testing.assert_allclose(list(found.values()), 1.0, atol=0.25, err_msg=str(found))
