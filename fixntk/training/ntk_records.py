"""The tangent kernel of a network at a moment of its training: its spectrum, its alignment, its change.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from fixntk._numerics import full_precision
from fixntk.ntk.empirical import empirical_ntk
from fixntk.ntk.kernel_matrices import flatten_kernel
from fixntk.ntk.modules import is_model
from fixntk.ntk.selection import Select, selected_leaves
from fixntk.ntk.signatures import canonical, with_one_output
from fixntk.ntk.spectrum import condition_number, ntk_spectrum
from fixntk.ntk.vector_product import product

# Product of a kernel with each row of a matrix.
_Multiply = Callable[[np.ndarray], np.ndarray]


class NTKHistory(NamedTuple):
    """A network's tangent kernel at each record of its training; a single record has no first axis.

    The kernel Θ is a matrix with N rows, one for each example and output. C is Θ, centred unless that was switched off.

    Attributes
    ----------
    steps
        (k,) steps made.
    eigenvalues
        (k, m) the largest eigenvalues of Θ, descending; NaN where Lanczos's method did not converge.
    trace
        (k,) trace of Θ.
    smallest
        (k,) smallest eigenvalue of Θ; None if it was not asked for.
    norm
        (k,) Frobenius norm ‖C‖.
    norm_error
        (k,) its standard error, as random vectors estimate it; zero where the kernel was made.
    similarity
        (k,) ⟨C, C₀⟩ / (‖C‖ ‖C₀‖) with the kernel C₀ of the first record: 1 as long as only the scale changes.
    alignment
        (k,) kernel–target alignment yᵀCy / (‖y‖² ‖C‖), between 0 and 1; None without targets.

    See docs/mathematics.md, M14.
    """

    steps: Int[np.ndarray, "*k"]
    eigenvalues: Float[np.ndarray, "*k m"]
    trace: Float[np.ndarray, "*k"]
    smallest: Float[np.ndarray, "*k"] | None
    norm: Float[np.ndarray, "*k"]
    norm_error: Float[np.ndarray, "*k"]
    similarity: Float[np.ndarray, "*k"]
    alignment: Float[np.ndarray, "*k"] | None

    def __repr__(self) -> str:
        shown = {"trace": self.trace, "similarity": self.similarity, "alignment": self.alignment}
        ends = [f"{name} {_ends(values, '.3g')}" for name, values in shown.items() if values is not None]
        steps = _ends(self.steps, "d")
        return f"NTKHistory({self.steps.size} records: {', '.join([f'step {steps}', *ends])})"

    @property
    def effective_rank(self) -> Float[np.ndarray, "*k"]:
        """(k,) trace / largest eigenvalue, as :attr:`NTKSpectrum.effective_rank`."""
        return np.asarray(self.trace / self.eigenvalues[..., 0])

    @property
    def condition_number(self) -> Float[np.ndarray, "*k"]:
        """(k,) largest by smallest eigenvalue, infinite where the smallest is zero or negative by rounding.

        Raises
        ------
        ValueError
            If the smallest eigenvalue was not asked for.
        """
        return condition_number(self.eigenvalues[..., 0], self.smallest)


def _ends(values: np.ndarray, form: str) -> str:
    first, last = values.reshape(-1)[[0, -1]]
    return f"{first:{form}}" if values.size == 1 else f"{first:{form}} to {last:{form}}"


class Probes(NamedTuple):
    """Vectors whose images tell a kernel's norm and its inner product with the first kernel.

    With orthonormal vectors q and random vectors z orthogonal to them, ⟨A, B⟩ is the sum of ⟨Aq, Bq⟩ and the mean of
    ⟨Az, Bz⟩. A basis of the whole space makes it exact.

    Attributes
    ----------
    vectors
        (v, N) the vectors.
    num_fixed
        The number of those that are orthonormal, which come first.
    first
        (v, N) their products with the first kernel.
    """

    vectors: Float[np.ndarray, "v N"]
    num_fixed: int
    first: Float[np.ndarray, "v N"]


class Options(NamedTuple):
    """The options of :func:`fixntk.track`."""

    num: int
    smallest: bool
    centred: bool
    every: int
    num_probes: int
    dense_rows: int
    tol: float
    select: Select | None
    batch_size: int | None
    batch_axes: tuple[int, int]
    kwargs: Mapping[str, Any] | None


@full_precision()
def measure(
    f: Callable[..., Any],
    params: Any,
    x: Any,
    y: Array | None,
    options: Options,
    step: int,
    probes: Probes | None,
) -> tuple[NTKHistory, Probes]:
    """The record of a kernel, and the probes, which are made at the first one."""
    # A module holds its parameters: the one that is measured takes the place of the one that was to be followed.
    given: tuple[Any, Any, Any] = (params, x, None) if is_model(f) else (f, params, x)
    f, params, x, _ = canonical(*given[:2], {"x": given[2]}, options.batch_axes, options.kwargs, "track")
    f = with_one_output(f, params, x)
    output = jax.eval_shape(f, params, x)
    centre = _centring(output.shape) if options.centred else lambda rows: rows
    targets = None if y is None else _as_targets(y, output.shape, centre)
    spectral = _dense_spectrum if output.size <= options.dense_rows else _lanczos_spectrum
    eigenvalues, trace, smallest, basis, multiply = spectral(f, params, x, options)

    def apply(rows: np.ndarray) -> np.ndarray:
        return centre(multiply(centre(rows)))

    if probes is None:
        vectors, num_fixed = _probe_vectors(centre(basis), options.num_probes)
        probes = Probes(vectors, num_fixed, apply(vectors))
        images = probes.first
    else:
        images = apply(probes.vectors)
    square, error = _inner_product(images, images, probes.num_fixed)
    first, _ = _inner_product(probes.first, probes.first, probes.num_fixed)
    shared, _ = _inner_product(images, probes.first, probes.num_fixed)
    norm = np.sqrt(square)
    alignment = None
    if targets is not None:
        aligned = float(targets @ apply(targets[None])[0])
        alignment = _ratio(aligned, float(targets @ targets) * norm)
    # The derivative of a root carries the error of the square over.
    numbers = (trace, smallest, norm, _ratio(error, 2 * norm), _ratio(shared, norm * np.sqrt(first)), alignment)
    arrays = [None if number is None else np.asarray(number, np.float64) for number in numbers]
    return NTKHistory(np.asarray(step), eigenvalues, *arrays), probes  # type: ignore[arg-type]


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else np.nan


def _centring(shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Subtract the mean over the examples, for each output, from vectors (v, N) of outputs of a shape (n, …)."""

    def centre(rows: np.ndarray) -> np.ndarray:
        by_example = rows.reshape(len(rows), shape[0], -1)
        return (by_example - by_example.mean(axis=1, keepdims=True)).reshape(rows.shape)

    return centre


def _as_targets(y: Array, shape: tuple[int, ...], centre: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    if y.shape != shape:
        raise ValueError(f"y must have the outputs' shape {shape}, got {y.shape}")
    targets = centre(np.asarray(y, np.float64).reshape(1, -1))[0]
    if not np.any(np.abs(targets) > 0):
        raise ValueError("y must not be zero everywhere, nor constant where the kernel is centred")
    return targets


def _probe_vectors(basis: np.ndarray, num_probes: int) -> tuple[np.ndarray, int]:
    """Orthonormal vectors that span a basis, then random ones orthogonal to these, and the number of the first kind."""
    fixed = np.linalg.qr(basis.T)[0].T
    if len(fixed) == basis.shape[1]:
        return fixed, len(fixed)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (num_probes, basis.shape[1]))
    return np.concatenate([fixed, signs - signs @ fixed.T @ fixed]), len(fixed)


def _inner_product(one: np.ndarray, other: np.ndarray, num_fixed: int) -> tuple[float, float]:
    """⟨A, B⟩ from the images of the probes under A and B, and its standard error."""
    shares = np.sum(one * other, axis=1)
    random = shares[num_fixed:]
    if not random.size:
        return float(np.sum(shares)), 0.0
    return float(np.sum(shares[:num_fixed]) + np.mean(random)), float(np.std(random, ddof=1) / np.sqrt(random.size))


# The leading eigenvalues, the trace, the smallest eigenvalue, a basis of the space or of what the leading eigenvectors
# span, and the kernel's products.
_Spectral = tuple[np.ndarray, float, float | None, np.ndarray, _Multiply]


def _dense_spectrum(f: Callable[[Any, Any], Array], params: Any, x: Any, options: Options) -> _Spectral:
    kernel = empirical_ntk(f, params, x, select=options.select, batch_size=options.batch_size)
    matrix = np.asarray(flatten_kernel(kernel), np.float64)
    values = np.linalg.eigvalsh(matrix)
    smallest = float(values[0]) if options.smallest else None
    return (
        values[::-1][: options.num],
        float(np.trace(matrix)),
        smallest,
        np.eye(len(matrix)),
        lambda rows: rows @ matrix,
    )


def _lanczos_spectrum(f: Callable[[Any, Any], Array], params: Any, x: Any, options: Options) -> _Spectral:
    found = ntk_spectrum(
        f,
        params,
        x,
        num=options.num,
        smallest=options.smallest,
        tol=options.tol,
        select=options.select,
        batch_size=options.batch_size,
    )
    output = jax.eval_shape(f, params, x)
    # There may be fewer eigenvalues than were asked for: the rest of the record is NaN.
    num = min(options.num, output.size)
    values = np.full(num, np.nan)
    values[: found.eigenvalues.size] = found.eigenvalues
    multiply_one = product(f, selected_leaves(params, options.select), options.batch_size, is_concrete=True)

    def multiply(rows: np.ndarray) -> np.ndarray:
        columns = [jnp.asarray(row.reshape(output.shape), output.dtype) for row in rows]
        products = [multiply_one(params, column, x, x) for column in columns]
        return np.stack([np.asarray(each, np.float64).reshape(-1) for each in products])

    basis = np.asarray(found.eigenvectors, np.float64).reshape(found.eigenvalues.size, -1)
    smallest = None if found.smallest is None else float(found.smallest)
    return values, float(found.trace), smallest, basis, multiply
