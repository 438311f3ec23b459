"""Fix the neural tangent kernel: exact convex programs for gated-ReLU networks, in JAX.

The M-numbers at the end of docstrings are sections of docs/mathematics.md, which has the formulas and their sources.
"""

from importlib.metadata import version

from fixntk._tiling import OutOfMemoryError
from fixntk.convex import (
    ConvergenceWarning,
    ConvexProgram,
    Discovery,
    DiscoveryPath,
    History,
    Interrupted,
    KernelSolution,
    Path,
    Progress,
    ReLUSolution,
    Solution,
    discover,
    discover_path,
    gap_safe,
    optimal_weights,
    relaxed_program,
    solve,
    solve_kernels,
    solve_path,
    solve_relu,
)
from fixntk.gates.arrangements import cover_count, enumerate_arrangements
from fixntk.gates.masks import Arrangements, activation_masks, merge_duplicate_masks, pack_masks, sample_gates
from fixntk.gates.solid_angles import arrangement_weights
from fixntk.gram import MaskedGram, masked_gram
from fixntk.networks.convert import from_group_weights
from fixntk.networks.export import from_dict, load_network, save_network, to_dict, to_equinox, to_flax
from fixntk.networks.models import GatedReLUNetwork, ReLUNetwork
from fixntk.ntk import (
    Kernel,
    NTKSpectrum,
    empirical_ntk,
    gated_relu_ntk,
    gradient_descent,
    gradient_flow,
    gradient_flow_ensemble,
    kernel_ridge,
    layerwise_ntk,
    linearize,
    max_learning_rate,
    mlp_kernel,
    network_kernel,
    ntk_spectrum,
    ntk_vector_product,
    projected_gradients,
    split_model,
    taylor_expand,
)
from fixntk.training import DivergedError, Training, TrainingHistory, TrainingProgress, network_objective, train

__version__ = version("fixntk")

__all__ = [
    "Arrangements",
    "ConvergenceWarning",
    "ConvexProgram",
    "Discovery",
    "DiscoveryPath",
    "DivergedError",
    "GatedReLUNetwork",
    "History",
    "Interrupted",
    "Kernel",
    "KernelSolution",
    "MaskedGram",
    "NTKSpectrum",
    "OutOfMemoryError",
    "Path",
    "Progress",
    "ReLUNetwork",
    "ReLUSolution",
    "Solution",
    "Training",
    "TrainingHistory",
    "TrainingProgress",
    "activation_masks",
    "arrangement_weights",
    "cover_count",
    "discover",
    "discover_path",
    "empirical_ntk",
    "enumerate_arrangements",
    "from_dict",
    "from_group_weights",
    "gap_safe",
    "gated_relu_ntk",
    "gradient_descent",
    "gradient_flow",
    "gradient_flow_ensemble",
    "kernel_ridge",
    "layerwise_ntk",
    "linearize",
    "load_network",
    "masked_gram",
    "max_learning_rate",
    "merge_duplicate_masks",
    "mlp_kernel",
    "network_kernel",
    "network_objective",
    "ntk_spectrum",
    "ntk_vector_product",
    "optimal_weights",
    "pack_masks",
    "projected_gradients",
    "relaxed_program",
    "sample_gates",
    "save_network",
    "solve",
    "solve_kernels",
    "solve_path",
    "solve_relu",
    "split_model",
    "taylor_expand",
    "to_dict",
    "to_equinox",
    "to_flax",
    "train",
]
