"""Leading eigenvalues of an empirical NTK, its trace and condition number, without the n×n kernel.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from fixntk._checks import as_float_array, as_positive_int, describe_fields, is_traced
from fixntk._numerics import ConvergenceWarning, full_precision
from fixntk._tiling import free_on_host, memory_for
from fixntk.ntk.empirical import empirical_ntk
from fixntk.ntk.inputs import check_batch_size, check_rows_are_independent
from fixntk.ntk.selection import Select, selected_leaves
from fixntk.ntk.signatures import canonical, with_one_output
from fixntk.ntk.vector_product import product

# Kernels with at most this number of rows are made and decomposed.
_MAX_DENSE_ROWS = 200
# Number of matrices of the kernel's size in memory where all eigenvalues are found that way, as measured: the kernel,
# LAPACK's copy and work, the eigenvectors in several forms, and the residuals.
_NUM_DENSE_MATRICES = 11
# Largest number of restarts of Lanczos's method.
_MAX_RESTARTS = 300
# Lanczos vectors for each eigenvalue that is asked for: more than ARPACK's default of 2, as a product costs most.
_VECTORS_PER_EIGENVALUE = 3
# Smallest number of Lanczos vectors.
_MIN_VECTORS = 40


def condition_number(largest: Any, smallest: Any) -> Any:
    """Condition numbers from eigenvalues, infinite where the smallest is not positive, in NumPy for its arrays.

    Raises
    ------
    ValueError
        If the smallest eigenvalue was not asked for.
    """
    if smallest is None:
        raise ValueError("the condition number needs the smallest eigenvalue: pass smallest=True")
    # A kernel's history is in float64, which JAX may not have.
    numpy = jnp if isinstance(smallest, Array) else np
    is_positive = smallest > 0
    return numpy.where(is_positive, largest / numpy.where(is_positive, smallest, 1.0), numpy.inf)


class NTKSpectrum(NamedTuple):
    """Leading eigenpairs of an empirical NTK as a matrix with a row for each example and output.

    Attributes
    ----------
    eigenvalues
        (k,) the largest ones, descending. Unit of the kernel.
    eigenvectors
        (k, n, …) of length one, each shaped like the network's outputs; (k, n, m) for a function that returns several
        arrays, the m outputs of an example one after another in the order of ``jax.tree.leaves``.
    residuals
        (k,) ‖Θv − μv‖: an eigenvalue of Θ is within this distance of μ.
    trace
        Sum of all eigenvalues.
    smallest
        The smallest eigenvalue, to ``tol`` times the largest; None if it was not asked for.

    See docs/mathematics.md, M14.
    """

    eigenvalues: Float[Array, " k"]
    eigenvectors: Float[Array, "k n *outputs"]
    residuals: Float[Array, " k"]
    trace: Float[Array, ""]
    smallest: Float[Array, ""] | None

    def __repr__(self) -> str:
        fields = {"trace": self.trace, "smallest": self.smallest}
        return describe_fields("NTKSpectrum", eigenvalues=self.eigenvalues, **fields)

    @property
    def effective_rank(self) -> Float[Array, ""]:
        """Trace / largest eigenvalue, between 1 and the rank: the intrinsic dimension of Vershynin (2018), 7.6."""
        return self.trace / self.eigenvalues[0]

    @property
    def condition_number(self) -> Float[Array, ""]:
        """Largest by smallest eigenvalue, infinite where the smallest is zero or negative by rounding.

        Beyond 1 / ``tol`` it only says that the smallest eigenvalue cannot be distinguished from zero.

        Raises
        ------
        ValueError
            If the smallest eigenvalue was not asked for.
        """
        return jnp.asarray(condition_number(self.eigenvalues[0], self.smallest))

    def alignment(self, y: ArrayLike) -> Float[Array, " k"]:
        """Share of ‖y‖² along each eigenvector; gradient flow learns it at the rate of the eigenvalue.

        Parameters
        ----------
        y
            Targets of the shape of the outputs, (n, …); (n, m) for several arrays, as the eigenvectors.

        Raises
        ------
        ValueError
            If the shape is another or y is zero.
        """
        y = as_float_array("y", y, (self.eigenvectors.ndim - 1,))
        if y.shape != self.eigenvectors.shape[1:]:
            raise ValueError(f"y must have the outputs' shape {self.eigenvectors.shape[1:]}, got {y.shape}")
        square = jnp.sum(y**2)
        if not is_traced(y) and not float(square) > 0:
            raise ValueError("y must not be zero everywhere")
        return jnp.tensordot(self.eigenvectors, y, y.ndim) ** 2 / square


@full_precision()
def ntk_spectrum(
    f: Callable[..., Any],
    params: Any,
    x: Any = None,
    *,
    num: int = 20,
    smallest: bool = False,
    tol: float = 1e-6,
    select: Select | None = None,
    batch_size: int | None = None,
    batch_axes: tuple[int, int] = (0, 0),
    kwargs: Mapping[str, Any] | None = None,
) -> NTKSpectrum:
    """Largest eigenvalues of the empirical NTK with their eigenvectors, by Lanczos's method on its vector products.

    A product takes one backward and one forward pass over the examples, and memory of the order of the outputs. The
    trace is that of the kernel's diagonal. With outputs (n, …) the kernel has a row for each example and output, of all
    arrays that the function returns.

    Parameters
    ----------
    f, params, select, batch_axes, kwargs
        As in :func:`fixntk.empirical_ntk`: ``ntk_spectrum(model, x)`` for a module.
    batch_size
        As in :func:`fixntk.ntk_vector_product`.
    x
        (n, …) inputs, or a pytree of them.
    num
        Number k of eigenvalues; all of them where there are fewer.
    smallest
        Whether to find the smallest eigenvalue too, which takes many more products.
    tol
        Relative accuracy of an eigenvalue.

    Returns
    -------
    The spectrum, of the outputs' dtype.

    Raises
    ------
    TypeError
        As :func:`fixntk.empirical_ntk`.
    ValueError
        As :func:`fixntk.empirical_ntk`; also under a JAX transformation, as the number of products is open.

    Warns
    -----
    ConvergenceWarning
        If some eigenvalues have not converged; those that have are returned.

    References
    ----------
    Lehoucq, Sorensen and Yang, "ARPACK Users' Guide", 1998: implicitly restarted Lanczos, in SciPy.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> fx.ntk_spectrum(lambda w, x: x @ w, jnp.zeros(2), x, num=2).eigenvalues
    Array([9., 1.], dtype=float32)

    See docs/mathematics.md, M14.
    """
    f, params, x, _ = canonical(f, params, {"x": x}, batch_axes, kwargs, "ntk_spectrum")
    f = with_one_output(f, params, x)
    if not check_rows_are_independent(f, params, x):
        raise ValueError("ntk_spectrum cannot be traced by jit, vmap or grad: the number of its products is open")
    check_batch_size(batch_size)
    num, selected = as_positive_int("num", num), selected_leaves(params, select)
    if not 0 < tol < 1:
        raise ValueError(f"tol must be between 0 and 1, got {tol!r}")
    output = jax.eval_shape(f, params, x)
    multiply = product(f, selected, batch_size, is_concrete=True)

    def apply(vector: np.ndarray) -> np.ndarray:
        column = jnp.asarray(vector.reshape(output.shape), output.dtype)
        return np.asarray(multiply(params, column, x, x)).reshape(-1)

    operator = LinearOperator((output.size, output.size), matvec=apply, dtype=np.dtype(output.dtype))
    # The trace needs the kernel of each example and output with itself only, not the matrix.
    diagonal = empirical_ntk(f, params, x, diagonal_axes=range(output.ndim), select=select, batch_size=batch_size)
    values, vectors, least = _eigenpairs(operator, num, tol, smallest)
    # Computed from the pairs themselves, so that they bound the errors whatever the solver did.
    residuals = np.linalg.norm(np.stack([apply(v) for v in vectors]) - values[:, None] * vectors, axis=1)
    fields = (values, vectors.reshape(-1, *output.shape), residuals)
    pairs = [jnp.asarray(np.asarray(field, output.dtype)) for field in fields]
    last = None if least is None else jnp.asarray(least, output.dtype)
    return NTKSpectrum(pairs[0], pairs[1], pairs[2], jnp.sum(diagonal), last)


def _eigenpairs(
    operator: LinearOperator, num: int, tol: float, smallest: bool
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """The largest eigenvalues, descending, their eigenvectors as rows, and the smallest eigenvalue if asked for."""
    size = operator.shape[0]
    # ARPACK finds fewer eigenvalues than there are.
    if size <= _MAX_DENSE_ROWS or num >= size:
        needed = _NUM_DENSE_MATRICES * size**2 * operator.dtype.itemsize
        what = f"all eigenvalues of the {size}×{size} kernel"
        with memory_for(what, needed, "ask for fewer with num=", free_memory=free_on_host):
            matrix, unit = np.empty((size, size), operator.dtype), np.zeros(size, operator.dtype)
            for column in range(size):
                unit[column] = 1
                matrix[:, column] = operator.matvec(unit)
                unit[column] = 0
            # Of the matrix that is symmetric up to rounding errors LAPACK reads one half.
            values, vectors = np.linalg.eigh(matrix)
        return values[::-1][:num], vectors.T[::-1][:num], float(values[0]) if smallest else None
    values, vectors = _run_lanczos(operator, num, tol)
    order = np.argsort(-values)
    least = float(_smallest(operator, values.max(), tol)) if smallest else None
    return values[order], vectors.T[order], least


def _smallest(operator: LinearOperator, largest: float, tol: float) -> float:
    """The smallest eigenvalue as the largest one of ``largest`` I − Θ.

    ARPACK's tolerance is relative to the eigenvalue, to which one near zero never converges.
    """
    reflected = LinearOperator(operator.shape, matvec=lambda v: largest * v - operator.matvec(v), dtype=operator.dtype)
    return largest - _run_lanczos(reflected, 1, tol)[0][0]


def _run_lanczos(operator: LinearOperator, num: int, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues and their eigenvectors as columns, in no order."""
    size = operator.shape[0]
    # A fixed start makes the result the same in every call.
    start = np.random.default_rng(0).standard_normal(size).astype(operator.dtype)
    num_vectors = min(size - 1, max(_MIN_VECTORS, _VECTORS_PER_EIGENVALUE * num))
    # ARPACK's basis and projected matrix, and the eigenvectors with a copy.
    numbers = size * (num_vectors + 2 * num) + num_vectors * (num_vectors + 8)
    what = f"{num} eigenvectors of a {size}×{size} kernel"
    memory = memory_for(what, numbers * operator.dtype.itemsize, "ask for fewer with num=", free_memory=free_on_host)
    try:
        with memory:
            return eigsh(operator, num, which="LA", tol=tol, v0=start, ncv=num_vectors, maxiter=_MAX_RESTARTS)
    except ArpackNoConvergence as stopped:
        found = len(stopped.eigenvalues)
        if not found:
            raise np.linalg.LinAlgError(
                f"Lanczos's method found none of {num} eigenvalues to tol={tol:.1e}: raise tol or num"
            ) from None
        message = f"ntk_spectrum: {found} of {num} eigenvalues converged to tol={tol:.1e}; raise tol"
        warnings.warn(message, ConvergenceWarning, stacklevel=4)
        return stopped.eigenvalues, stopped.eigenvectors
