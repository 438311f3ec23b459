"""Neural tangent kernels, analytic and empirical."""
