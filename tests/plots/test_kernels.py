"""Kernel matrices in the order of their targets, and eigenvalues."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import fixntk as fx
from fixntk import plots

mpl.use("agg")


@pytest.fixture
def axes():
    return Figure().add_subplot()


def kernel_of(rng, num_rows=6, num_features=6):
    x = rng.standard_normal((num_rows, num_features))
    return x @ x.T


def image_of(axes):
    return np.asarray(axes.images[0].get_array())


def test_kernel_without_targets_is_shown_as_it_is(axes, rng):
    matrix = rng.standard_normal((3, 5))
    plots.kernel(matrix, axes, vmin=-1, vmax=2)
    assert np.array_equal(image_of(axes), matrix)
    assert axes.images[0].get_clim() == (-1, 2)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("column", "row")


@pytest.mark.parametrize(
    "y", [["b", "a", "b", "c", "a", "b"], [1, -1, 1, 2, -1, 1], [1.0, -1.0, 1.0, 2.0, -1.0, 1.0]], ids=str
)
def test_rows_are_ordered_by_class(axes, rng, y):
    matrix = kernel_of(rng)
    plots.kernel(matrix, axes, y=np.array(y))
    order = [1, 4, 0, 2, 5, 3]
    assert np.array_equal(image_of(axes), [[matrix[i, j] for j in order] for i in order])
    names = [f"{name:g}" if isinstance(name, float) else str(name) for name in sorted(set(y))]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    assert axes.get_yticks().tolist() == [0.5, 3, 5]
    assert sorted(line.get_ydata()[0] for line in axes.lines if line.get_ydata()[0] > 0)[-2:] == [1.5, 4.5]


def test_rows_are_ordered_by_target(axes, rng):
    matrix, y = kernel_of(rng), np.array([0.5, 0.1, -3, 2, 0.2, 0.3])
    plots.kernel(matrix, axes, y=y[:, None])
    order = [2, 1, 4, 5, 0, 3]
    assert np.array_equal(image_of(axes), [[matrix[i, j] for j in order] for i in order])
    assert axes.get_ylabel() == "row, by increasing target"
    assert not axes.lines


def test_kernels_that_do_not_fit_are_refused(axes, rng):
    with pytest.raises(ValueError, match=r"matrix must be square to be ordered by y, got shape \(3, 5\)"):
        plots.kernel(rng.standard_normal((3, 5)), axes, y=[1, 2, 3])
    with pytest.raises(ValueError, match=r"y must have shape \(6,\), got \(3,\)"):
        plots.kernel(kernel_of(rng), axes, y=[1, 2, 3])
    with pytest.raises(ValueError, match="matrix must have 2 dimensions"):
        plots.kernel(np.ones(3), axes)


def test_spectrum_is_that_of_the_singular_values(axes, rng):
    x = rng.standard_normal((6, 4))
    squares = np.linalg.svd(x, compute_uv=False) ** 2
    plots.spectrum({"kernel": x @ x.T, "given": squares[::-1]}, axes)
    for line in axes.lines:
        # The two eigenvalues that are zero up to rounding are left out.
        assert line.get_xdata().tolist() == [1, 2, 3, 4]
        assert line.get_ydata() == pytest.approx(squares, rel=1e-12)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["kernel", "given"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_the_spectrum_of_an_empirical_ntk_is_drawn(axes, rng):
    x = rng.standard_normal((6, 4))
    plots.spectrum(fx.ntk_spectrum(lambda w, x: x @ w, np.zeros(4), x, num=3), axes)
    assert axes.lines[0].get_ydata() == pytest.approx(np.linalg.svd(x, compute_uv=False)[:3] ** 2, rel=1e-10)


def test_what_counts_as_zero_depends_on_the_dtype(axes):
    values = np.array([1.0, 1e-3, 1e-9])
    plots.spectrum({"64": values, "32": values.astype(np.float32)}, axes)
    assert [line.get_ydata().size for line in axes.lines] == [3, 2]


def test_one_kernel_needs_no_legend(axes, rng):
    plots.spectrum(kernel_of(rng), axes)
    assert axes.get_legend() is None


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ({}, "kernels is empty"),
        ({"a": np.ones((2, 3))}, r"kernels\['a'\] must be a square matrix, got shape \(2, 3\)"),
        (np.array([[1.0, 2.0], [0.0, 1.0]]), "kernels must be symmetric, but differs from its transpose by up to 2.0e"),
        (-np.eye(2), "kernels has no positive eigenvalue"),
        (np.zeros((2, 2)), "kernels has no positive eigenvalue"),
    ],
)
def test_spectra_that_do_not_exist_are_refused(axes, kernels, message):
    with pytest.raises(ValueError, match=message):
        plots.spectrum(kernels, axes)
