"""
Functions
=========

What the NTK, the optimal gated network and the optimal ReLU network make of eight points.
"""

import jax.numpy as jnp
import matplotlib.pyplot as plt

import fixntk as fx
from fixntk import plots

points = jnp.array([-1.0, -0.8, -0.55, -0.2, 0.1, 0.35, 0.7, 1.0])
x, y = jnp.stack([points, jnp.ones(8)], axis=1), points + 0.5 * jnp.sin(5 * points)
cells = fx.enumerate_arrangements(x)
program = fx.ConvexProgram(x, y, cells.masks, reg=0.01)


def ntk(inputs):
    return fx.kernel_ridge(fx.gated_relu_ntk(x), y, fx.gated_relu_ntk(inputs, x), reg=0.01)


relu = fx.solve_relu(program, cells.gates).to_network()
plots.function({"NTK": ntk, "gated ReLU": fx.solve(program), "ReLU": relu}, x, y, gates=cells.gates)
plt.show()
