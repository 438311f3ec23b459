"""The exact convex program of the gated-ReLU network and its solvers."""
