"""The exact convex program of the gated-ReLU network and its solvers."""

from fixntk._numerics import ConvergenceWarning
from fixntk.convex.discovery import discover, discover_path, discover_quietly
from fixntk.convex.discovery_results import Discovery, DiscoveryPath
from fixntk.convex.distributed import DistributedRows, distribute_rows
from fixntk.convex.fixed_ntk import FixedNTK, fix_ntk
from fixntk.convex.implicit import optimal_weights
from fixntk.convex.kernel_criteria import kernel_alignment_risk, leave_one_out_error
from fixntk.convex.kernel_mixture import KernelMixture, mix_kernels
from fixntk.convex.multiple_kernels import KernelSolution, solve_kernels
from fixntk.convex.path import Path, solve_path
from fixntk.convex.program import ConvexProgram
from fixntk.convex.progress import Interrupted, Progress
from fixntk.convex.relaxation import relaxed_program
from fixntk.convex.relu import ReLUSolution, solve_relu
from fixntk.convex.screening import gap_safe
from fixntk.convex.solution import History, Solution
from fixntk.convex.solve import solve, solve_quietly
from fixntk.convex.solve_plan import MethodPlan, SolvePlan, solve_plan
from fixntk.convex.streamed.program import StreamedProgram

__all__ = [
    "ConvergenceWarning",
    "ConvexProgram",
    "Discovery",
    "DiscoveryPath",
    "DistributedRows",
    "FixedNTK",
    "History",
    "Interrupted",
    "KernelMixture",
    "KernelSolution",
    "MethodPlan",
    "Path",
    "Progress",
    "ReLUSolution",
    "Solution",
    "SolvePlan",
    "StreamedProgram",
    "discover",
    "discover_path",
    "discover_quietly",
    "distribute_rows",
    "fix_ntk",
    "gap_safe",
    "kernel_alignment_risk",
    "leave_one_out_error",
    "mix_kernels",
    "optimal_weights",
    "relaxed_program",
    "solve",
    "solve_kernels",
    "solve_path",
    "solve_plan",
    "solve_quietly",
    "solve_relu",
]
