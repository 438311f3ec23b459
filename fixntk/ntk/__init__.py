"""Neural tangent kernels, analytic and empirical, and gradient flow under them."""

from fixntk.ntk.analytic import Kernel, gated_relu_ntk, mlp_kernel, network_kernel
from fixntk.ntk.dynamics import gradient_flow
from fixntk.ntk.empirical import empirical_ntk, layerwise_ntk, ntk_vector_product
from fixntk.ntk.ensembles import gradient_flow_ensemble
from fixntk.ntk.kernel_regression import kernel_ridge, max_learning_rate
from fixntk.ntk.linearize import linearize

__all__ = [
    "Kernel",
    "empirical_ntk",
    "gated_relu_ntk",
    "gradient_flow",
    "gradient_flow_ensemble",
    "kernel_ridge",
    "layerwise_ntk",
    "linearize",
    "max_learning_rate",
    "mlp_kernel",
    "network_kernel",
    "ntk_vector_product",
]
