"""Comparison of analytic kernels with those of neural-tangents' stax."""

import numpy as np


def assert_same_kernels(kernel, theirs, pairs, *, tolerance=1e-10, on_diagonal=1e-6):
    """NNGP and NTK of each pair (x1, x2) agree, as a share of the largest entry; x2 is None for x1 with itself.

    Theirs takes arccos near 1 on the diagonal, which leaves half of the digits there.
    """
    for x1, x2 in pairs:
        actual, expected = kernel(x1, x2), theirs[2](x1, x2, ("nngp", "ntk"))
        for name in ("nngp", "ntk"):
            a, b = np.asarray(getattr(actual, name)), np.asarray(getattr(expected, name))
            difference = np.abs(a - b) / np.max(np.abs(b))
            if x2 is None:
                assert np.max(np.diag(difference)) < on_diagonal, name
                np.fill_diagonal(difference, 0)
            assert np.max(difference) < tolerance, name


def with_own(inputs):
    """The pairs of inputs x1 and x2: one with the other, and x1 with itself."""
    return inputs, (inputs[0], None)
