"""
A certificate
=============

Iterative reweighting goes from the NTK's weights to the optimal ones. At each step there is a lower bound on the
optimum, which lies in the shaded gap.
"""

import jax
import matplotlib.pyplot as plt

import fixntk as fx
from fixntk import plots

x = jax.random.normal(jax.random.key(0), (100, 4))
y = abs(x[:, 0]) - abs(x[:, 1])
masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 50, 4))
solution = fx.solve(fx.ConvexProgram(x, y, masks, reg=0.5), method="irls", tol=1e-3)

plots.history(solution, show="objective", label="reweighting")
plt.show()
