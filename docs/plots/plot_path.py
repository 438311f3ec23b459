"""
A path over λ
=============

The norm of each gate's weights, as the regularisation falls. A gate that becomes active earlier has a darker curve.
"""

import jax
import matplotlib.pyplot as plt

import fixntk as fx
from fixntk import plots

x = jax.random.normal(jax.random.key(0), (100, 4))
y = abs(x[:, 0]) - abs(x[:, 1])
masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 50, 4))

plots.path(fx.solve_path(fx.ConvexProgram(x, y, masks, reg=1.0), num_regs=50, min_share=1e-2))
plt.show()
