"""Peaks of an accelerator's memory are within what the library estimates before it allocates anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from fixntk._checks import default_platform

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.gpu,
    # A CPU has no count of its peak.
    pytest.mark.skipif(default_platform() == "cpu", reason="JAX has no accelerator"),
]

# Memory beyond an estimate, as a share: workspace of the vendor's libraries, and blocks of the allocator.
_SLACK = 0.25
# For each entry, the calls whose estimates tests/test_memory.py compares with peaks on the host; plans of solves.
CASES = [
    "gated_relu_ntk",
    "mlp_kernel",
    "network_kernel",
    "masked_gram",
    "activation_masks",
    "empirical_ntk",
    "empirical_ntk_of_jacobians",
    "irls",
    "fista",
    "newton",
    "plan_of_fista",
    "plan_of_newton",
    "plan_of_irls",
    "plan_of_anderson",
]


@pytest.mark.parametrize("name", CASES)
def test_peaks_of_the_device_are_within_their_estimates(name):
    # A peak counts from the start of a process.
    done = subprocess.run(
        [sys.executable, "tests/peaks.py", name], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    _, estimate, peak = line.split()
    assert 0 < float(peak) <= (1 + _SLACK) * float(estimate), line
