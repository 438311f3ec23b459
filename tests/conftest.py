"""Fixtures shared by all tests; float64 is on, and tests of float32 ask for it."""

import itertools
import os
import re
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

# Most of the tests' time goes into compiling XLA programs that run for milliseconds, so XLA's optimisations are
# switched off. A value of XLA_FLAGS in the environment, even an empty one, is kept. XLA fails on unknown flags, and the
# second flag is internal to its version.
_FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)

# Tests in several processes share an accelerator, of whose memory JAX would give three quarters to the first.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# The command keeps no compiled programs outside of the test's folders.
os.environ.setdefault("FIXNTK_COMPILATION_CACHE", "off")

# The same examples in every run; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A value in the environment is kept, for `make test-strict`.
if "JAX_ENABLE_X64" not in os.environ:
    jax.config.update("jax_enable_x64", True)

# Tolerance for rounding errors in identities between arrays of a few hundred entries, by dtype.
TOLERANCE = {jnp.dtype("float64"): 1e-10, jnp.dtype("float32"): 2e-5}


def pytest_addoption(parser):
    parser.addoption("--need-all", action="store_true", help="fail where a package that tests need is not installed")
    help_on_cpu = "run the tests marked `gpu` where there is no accelerator, with TF32 imitated"
    parser.addoption("--gpu-tests-on-cpu", action="store_true", help=help_on_cpu)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Skip the files of tests that need a package that is not installed, such as a solver to compare with."""
    report = yield
    missing = re.search(r"ModuleNotFoundError: .*", str(report.longrepr)) if report.failed else None
    if missing and not collector.config.getoption("need_all"):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {missing.group()}")
    return report


# Each program that XLA compiles for a CPU takes a few of the 65,530 memory maps that Linux allows a process. It
# crashes when there are none left.

# Number of memory maps above which compiled programs are dropped.
_MAX_MAPS = 25_000
# Number of tests between two counts of the memory maps.
_TESTS_PER_COUNT = 20
# File with a line for each memory map of this process, on Linux.
_MAPS = Path("/proc/self/maps")
_count = itertools.count(1)


@pytest.fixture(autouse=True)
def _room_for_compiled_programs():
    yield
    if next(_count) % _TESTS_PER_COUNT == 0 and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MAX_MAPS:
        jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def stax():
    """The layers of neural-tangents."""
    # Imported here, so that tests of one part of the library need no other.
    from fixntk.ntk.neural_tangents_compat import import_neural_tangents

    return import_neural_tangents().stax


@pytest.fixture
def images(rng):
    """Two sets of images (n, height, width, channels)."""
    return rng.standard_normal((3, 6, 5, 2)), rng.standard_normal((2, 6, 5, 2))


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return jnp.dtype(request.param)


@pytest.fixture
def tolerance(dtype):
    return TOLERANCE[dtype]
