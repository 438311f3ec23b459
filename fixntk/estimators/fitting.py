"""The convex program's fit as a pure function of scaled rows, and ridge regression with the kernel that it learns."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from fixntk._numerics import allow_float64, with_dtype
from fixntk._tiling import free_on_host, memory_for
from fixntk.convex import ConvexProgram, Solution, solve_quietly
from fixntk.convex.program import replace_fields
from fixntk.estimators.gate_options import GateOptions, draw_gates
from fixntk.estimators.gaussian_process import Kernel, condition
from fixntk.estimators.predictors import NTKOutputs
from fixntk.estimators.preprocessing import Training
from fixntk.gates.masks import activation_masks
from fixntk.gram import masked_gram
from fixntk.networks.models import GatedReLUNetwork

# λ_max counts as zero below this multiple of the dtype's resolution and of the sizes of inputs and targets.
_ZERO_IN_EPS = 100.0
# Candidates for λ in classification, in units of λ_max.
DEFAULT_REG_SHARES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
# Candidates for λ in regression, in units of λ_max. Some are smaller, as targets can be almost free of noise.
DEFAULT_REGRESSION_SHARES = (*DEFAULT_REG_SHARES, 0.0003, 0.0001, 0.00001)

# Matrices of a kernel's size in memory at a time where it is factorised: two kernels in the making, and the factor.
NUM_FACTOR_MATRICES = 4
# Matrices of a kernel's size in memory at a time where its inverse is needed too.
_NUM_INVERSE_MATRICES = 5


class GatedProblem(NamedTuple):
    """A convex program on padded rows at λ = 1.

    Attributes
    ----------
    program
        The program, with weights of the rows, and an intercept.
    gates
        (P, w), zero in the columns of the padding.
    max_reg
        λ_max of the program without its intercept. Where that is zero up to rounding, ‖x‖·‖y‖ (or 1, where that is
        zero too), from which on W = 0 is the solution, so that every fit is the constant.
    """

    program: ConvexProgram
    gates: Float[Array, "P w"]
    max_reg: float


class GatedFit(NamedTuple):
    """A solved convex program, on the host.

    Attributes
    ----------
    solution
        The solution, with NumPy arrays.
    gates
        (P, w) gates.
    network
        The solution as a network, in JAX's default dtype.
    reg
        λ.
    exact_ntk
        The regression with the NTK of infinitely many gates, which the solution approximates; None for all others.
    """

    solution: Solution
    gates: Float[np.ndarray, "P w"]
    network: GatedReLUNetwork
    reg: float
    exact_ntk: NTKOutputs | None = None


@dataclass(frozen=True)
class LearntKernel:
    """The masked Gram kernel of learnt weights, as a function of rows.

    Attributes
    ----------
    kernel_weights, gates
        (P,) and (P, w).
    """

    kernel_weights: Float[np.ndarray, " P"]
    gates: Float[np.ndarray, "P w"]

    def __call__(
        self, rows: Float[Array | np.ndarray, "n w"], others: Float[Array | np.ndarray, "m w"] | None = None
    ) -> Float[Array, "n k"]:
        """Kernel matrix of rows with each other, or with others."""
        masks = activation_masks(rows, self.gates)
        other_masks = None if others is None else activation_masks(others, self.gates)
        return masked_gram(self.kernel_weights, masks, rows, other_masks, others)


def check_reg(reg: Any, largest: float) -> float:
    """Return a regularisation as a float.

    Raises
    ------
    ValueError
        If it is not a number between 0 and ``largest``, both excluded.
    """
    if not isinstance(reg, int | float | np.number) or not 0 < float(reg) < largest:
        raise ValueError(f"reg must be a number between 0 and {largest:g}, got {reg!r}")
    return float(reg)


def check_regs(regs: Any, largest: float) -> list[float]:
    """Return regularisations to choose from, each checked by :func:`check_reg`, as a list with at least one."""
    shares = [check_reg(reg, largest) for reg in regs]
    if not shares:
        raise ValueError("regs must hold at least one number")
    return shares


def gated_problem(training: Training, options: GateOptions, loss: str) -> GatedProblem:
    """State the convex program on padded rows with gates that are drawn, which do not depend on the padding."""
    gates = draw_gates(options, training.x[:, : options.num_columns], training.targets)
    targets = _program_targets(training, loss)
    program = program_of_rows(training.padded_x, targets, training.padded_weights, gates, loss)
    # λ_max is computed without an intercept, so that a class of small weight does not determine the scale.
    largest = float(replace_fields(program, column=None).max_reg())
    # Where x says nothing about the targets λ_max is a rounding error, and a fit at a share of it fits rounding errors.
    weighted = training.padded_weights[:, None] * training.padded_x
    bound = float(np.linalg.norm(weighted) * np.linalg.norm(training.padded_targets))
    if largest <= _ZERO_IN_EPS * np.finfo(float).eps * bound:
        largest = bound or 1.0
    return GatedProblem(program, gates, largest)


def program_of_rows(
    x: Float[np.ndarray, "n w"],
    targets: Float[np.ndarray, "n ..."],
    weights: Float[np.ndarray, " n"],
    gates: Float[Array, "P w"],
    loss: str = "squared",
) -> ConvexProgram:
    """The convex program of weighted rows at λ = 1, with an intercept."""
    rows = jnp.asarray(x)
    data = rows, jnp.asarray(targets), activation_masks(rows, gates), 1.0, loss
    return ConvexProgram(*data, sample_weight=weights, intercept=True)


def _program_targets(training: Training, loss: str) -> Float[np.ndarray, "m ..."]:
    """Targets as the loss takes them. Padded rows have to have labels too; their weight is zero."""
    if loss not in ("logistic", "softmax"):
        return training.padded_targets
    signs = training.padded_targets.copy()
    signs[training.num_rows :] = -1
    signs[training.num_rows :, 0] = 1
    return signs[:, 0] if loss == "logistic" else (signs + 1) / 2


def as_gated_fit(solution: Solution, gates: Float[Array, "P w"], reg: float) -> GatedFit:
    """Bring a solution to the host, with its network."""
    with allow_float64():
        network = replace(solution.to_network(gates), squeeze=solution.weights.shape[2] == 1)
    return GatedFit(
        solution=jax.tree.map(np.asarray, solution),
        gates=np.asarray(gates),
        network=with_dtype(network, jnp.result_type(float)),
        reg=reg,
    )


def certify_fit(
    program: ConvexProgram,
    weights: Float[np.ndarray, "P w c"],
    kernel_weights: Float[np.ndarray, " P"],
    gates: Float[np.ndarray, "P w"],
    reg: float,
) -> GatedFit:
    """The fit of group weights that another method found, with their kernel weights and their gap at λ.

    It needs products with the masks only, and no matrix of rows by rows.
    """
    solution = solve_quietly(program.with_reg(reg), method="fista", init=weights, max_iter=0)
    return as_gated_fit(replace(solution, kernel_weights=jnp.asarray(kernel_weights)), jnp.asarray(gates), reg)


def leave_one_out(kernel: Kernel, training: Training, reg: float) -> Float[np.ndarray, "n c"]:
    """Outputs for each row of the ridge regression with an intercept and a given kernel without that row."""
    with memory_for_kernels(training.num_rows, _NUM_INVERSE_MATRICES):
        matrix = kernel_matrix(kernel, training)
        posterior = condition(matrix, training.targets, reg, training.weights, centre=True)
        return posterior.leave_one_out(training.targets)


def memory_for_kernels(num_rows: int, num_matrices: int) -> AbstractContextManager[Any]:
    """The memory for ``num_matrices`` matrices of the size of a kernel of the training rows, in float64."""
    needed = num_matrices * num_rows**2 * np.dtype(float).itemsize
    what = f"the {num_rows}×{num_rows} kernel matrix with its factors"
    return memory_for(what, needed, "fit on fewer rows", free_memory=free_on_host)


def kernel_matrix(kernel: Kernel, training: Training) -> Float[np.ndarray, "n n"]:
    """The kernel's matrix on the training rows, computed on padded ones."""
    with allow_float64():
        matrix = np.asarray(kernel(jnp.asarray(training.padded_x)))
    return matrix[: training.num_rows, : training.num_rows]
