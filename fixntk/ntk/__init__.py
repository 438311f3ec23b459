"""Neural tangent kernels, analytic and empirical."""

from fixntk.ntk.analytic import gated_relu_ntk

__all__ = ["gated_relu_ntk"]
