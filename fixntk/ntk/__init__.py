"""Neural tangent kernels, analytic and empirical."""

from fixntk.ntk.analytic import gated_relu_ntk
from fixntk.ntk.empirical import empirical_ntk, layerwise_ntk, ntk_vector_product

__all__ = ["empirical_ntk", "gated_relu_ntk", "layerwise_ntk", "ntk_vector_product"]
