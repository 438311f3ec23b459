"""
Solvers
=======

The duality gap of three methods, which bounds how far the objective is from its optimum.
"""

import jax
import matplotlib.pyplot as plt

import fixntk as fx
from fixntk import plots

x = jax.random.normal(jax.random.key(0), (100, 4))
y = abs(x[:, 0]) - abs(x[:, 1])
masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 50, 4))
program = fx.ConvexProgram(x, y, masks, reg=0.5)

ax = None
for method in ("newton", "fista", "irls"):
    ax = plots.history(fx.solve(program, method=method), ax)
ax.set_xscale("log")
plt.show()
