"""Solvers of the convex program, each an initial state and a step."""
