"""
Kernel weights
==============

The optimal kernel needs few gates; the NTK has the same weight for each.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import fixntk as fx
from fixntk import plots

x = jax.random.normal(jax.random.key(0), (100, 4))
y = abs(x[:, 0]) - abs(x[:, 1])
masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 100, 4))
program = fx.ConvexProgram(x, y, masks, reg=2.0)
ntk = jnp.full(100, 1 / 100)

plots.kernel_weights(fx.solve(program), ntk_weights=program.best_scale(ntk).scale * ntk)
plt.show()
