"""Plots of kernel matrices and their eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from fixntk import NTKSpectrum
from fixntk.plots._axes import COLOUR_MAP, add_legend, as_column, as_numbers, next_line_style, open_axes

# What has eigenvalues: a matrix, the eigenvalues themselves, or a spectrum of an empirical NTK.
Spectrum = ArrayLike | NTKSpectrum

# Largest number of distinct whole numbers that are taken as classes.
_MAX_CLASSES = 20
# Relative asymmetry, in units of the dtype's resolution, above which a matrix is refused.
_MAX_ASYMMETRY = 1e3


def kernel(matrix: ArrayLike, ax: Axes | None = None, *, y: ArrayLike | None = None, **image: Any) -> Axes:
    """Draw a kernel matrix, with its rows and columns ordered by class or by target.

    For two kernels side by side on one scale pass the same ``vmin`` and ``vmax`` to both calls.

    Parameters
    ----------
    matrix
        (n, n) kernel matrix; (n1, n2) without ``y``.
    ax
        Axes to draw on; a new figure when None.
    y
        (n,) classes or targets. Text, booleans, and up to 20 distinct whole numbers are classes.
    **image
        For ``Axes.imshow``, such as ``vmin``, ``vmax`` and ``cmap``.

    Raises
    ------
    TypeError
        If the matrix is not numeric.
    ValueError
        If it is not a matrix, is not finite, or does not fit y.

    See docs/mathematics.md, M2.
    """
    values = as_numbers("matrix", matrix, (2,))
    what, blocks = "row", None
    if y is not None:
        if values.shape[0] != values.shape[1]:
            raise ValueError(f"matrix must be square to be ordered by y, got shape {values.shape}")
        labels = as_column("y", y, values.shape[0])
        order = np.argsort(labels, kind="stable")
        values = values[np.ix_(order, order)]
        what = "row, by class" if _are_classes(labels) else "row, by increasing target"
        blocks = np.unique(labels, return_counts=True) if _are_classes(labels) else None
    with open_axes(ax, 4.6, 3.8) as axes:
        shown = axes.imshow(values, **{"cmap": COLOUR_MAP, "interpolation": "nearest", **image})
        axes.grid(False)
        axes.set(xlabel=what.replace("row", "column") if y is None else what, ylabel=what)
        if blocks is not None:
            _mark_classes(axes, *blocks)
        axes.figure.colorbar(shown, ax=axes, label="kernel value")
    return axes


def _are_classes(labels: np.ndarray) -> bool:
    if labels.dtype.kind not in "iuf":
        return True
    return bool(np.all(labels == np.round(labels))) and np.unique(labels).size <= _MAX_CLASSES


def _mark_classes(axes: Axes, classes: np.ndarray, counts: np.ndarray) -> None:
    """Lines between the blocks of the classes, and their names at the middles."""
    ends = np.cumsum(counts)
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="white", linewidth=0.8)
        axes.axvline(end - 0.5, color="white", linewidth=0.8)
    names = [f"{name:g}" if isinstance(name, np.floating) else str(name) for name in classes]
    middles = ends - counts / 2 - 0.5
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)
    axes.tick_params(length=0)


def spectrum(kernels: Spectrum | Mapping[str, Spectrum], ax: Axes | None = None, **line: Any) -> Axes:
    """Draw the eigenvalues of one or several kernels, from the largest to the smallest, on logarithmic axes.

    Eigenvalues within rounding error of zero (n ε times the largest) are left out.

    Parameters
    ----------
    kernels
        (n, n) symmetric matrix, (k,) eigenvalues, a result of :func:`fixntk.ntk_spectrum`, or a mapping from names to
        one of these. Divide kernels by their traces to compare their shapes.
    ax
        Axes to draw on; a new figure when None.
    **line
        For ``Axes.plot``.

    Raises
    ------
    TypeError
        If a kernel is not numeric.
    ValueError
        If a matrix is not square, symmetric and finite, there is no kernel, or one has no positive eigenvalue.

    See docs/mathematics.md, M15.
    """
    named = kernels if isinstance(kernels, Mapping) else {"": kernels}
    if not named:
        raise ValueError("kernels is empty")
    spectra = {name: _eigenvalues(f"kernels[{name!r}]" if name else "kernels", value) for name, value in named.items()}
    with open_axes(ax) as axes:
        for name, values in spectra.items():
            label = {"label": name} if name else {}
            axes.loglog(np.arange(1, values.size + 1), values, **{**next_line_style(axes), **label, **line})
        axes.set(xlabel="index", ylabel="eigenvalue")
        add_legend(axes)
    return axes


def _eigenvalues(name: str, kernel: Spectrum) -> Float[np.ndarray, " k"]:
    """Eigenvalues in decreasing order, those that count as zero left out."""
    kernel = kernel.eigenvalues if isinstance(kernel, NTKSpectrum) else kernel
    values, dtype = as_numbers(name, kernel, (1, 2)), np.asarray(kernel).dtype
    resolution = float(jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64).eps)
    if values.ndim == 2:
        if values.shape[0] != values.shape[1]:
            raise ValueError(f"{name} must be a square matrix, got shape {values.shape}")
        asymmetry = np.abs(values - values.T).max()
        if asymmetry > _MAX_ASYMMETRY * resolution * np.abs(values).max():
            raise ValueError(f"{name} must be symmetric, but differs from its transpose by up to {asymmetry:.1e}")
        values = np.linalg.eigvalsh(values)
    values = np.sort(values)[::-1]
    values = values[values > values.size * resolution * max(values[0], 0.0)]
    if not values.size:
        raise ValueError(f"{name} has no positive eigenvalue")
    return values
