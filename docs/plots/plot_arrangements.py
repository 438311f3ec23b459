"""
Arrangements
============

Five points on a line, with a bias column, have ten masks. Each is a cell in the plane of the gates. The NTK's kernel
weights are the angles of the cells; the optimum needs few of them.
"""

import jax.numpy as jnp
import matplotlib.pyplot as plt

import fixntk as fx
from fixntk import plots

points = jnp.array([-1.0, -0.6, 0.1, 0.5, 1.2])
x, y = jnp.stack([points, jnp.ones(5)], axis=1), jnp.sin(3 * points)
cells = fx.enumerate_arrangements(x)
solution = fx.solve(fx.ConvexProgram(x, y, cells.masks, reg=0.05))
ntk, _ = fx.arrangement_weights(x, cells)

plt.style.use(plots.STYLE)
figure, panels = plt.subplots(1, 2, figsize=(9, 4))
plots.arrangements(cells, x, panels[0], values=ntk, value_label="weight in the NTK")
plots.arrangements(cells, x, panels[1], values=solution.kernel_weights, value_label="weight at the optimum")
plt.show()
