"""Fix the neural tangent kernel: exact convex programs for gated-ReLU networks, in JAX."""
