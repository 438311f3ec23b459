"""Neural tangent kernels, analytic and empirical, and gradient flow under them."""

from fixntk.ntk.analytic import Kernel, gated_relu_ntk, mlp_kernel, network_kernel
from fixntk.ntk.dynamics import gradient_flow
from fixntk.ntk.empirical import empirical_ntk, layerwise_ntk, ntk_plan
from fixntk.ntk.ensembles import gp_inference, gradient_flow_ensemble
from fixntk.ntk.finite_width import MonteCarloKernel, empirical_nngp, monte_carlo_kernel
from fixntk.ntk.gradient_descent import GradientDescent, gradient_descent
from fixntk.ntk.kernel_regression import kernel_ridge, max_learning_rate
from fixntk.ntk.linearize import linearize, taylor_expand
from fixntk.ntk.modules import split_model
from fixntk.ntk.nystrom import Nystrom, nystrom
from fixntk.ntk.nystrom_ridge import NystromRidge, nystrom_ridge
from fixntk.ntk.operators import balancing_weights, operator_ntk, operator_ntk_traces
from fixntk.ntk.plan_table import NTKPlan, ParameterPlan
from fixntk.ntk.projections import projected_gradients
from fixntk.ntk.spectrum import NTKSpectrum, ntk_spectrum
from fixntk.ntk.vector_product import ntk_vector_product

__all__ = [
    "GradientDescent",
    "Kernel",
    "MonteCarloKernel",
    "NTKPlan",
    "NTKSpectrum",
    "Nystrom",
    "NystromRidge",
    "ParameterPlan",
    "balancing_weights",
    "empirical_nngp",
    "empirical_ntk",
    "gated_relu_ntk",
    "gp_inference",
    "gradient_descent",
    "gradient_flow",
    "gradient_flow_ensemble",
    "kernel_ridge",
    "layerwise_ntk",
    "linearize",
    "max_learning_rate",
    "mlp_kernel",
    "monte_carlo_kernel",
    "network_kernel",
    "ntk_plan",
    "ntk_spectrum",
    "ntk_vector_product",
    "nystrom",
    "nystrom_ridge",
    "operator_ntk",
    "operator_ntk_traces",
    "projected_gradients",
    "split_model",
    "taylor_expand",
]
