"""
Kernel matrices
===============

The NTK and the optimal kernel for targets that jump twice. Rows are ordered by target; both kernels have trace n.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import fixntk as fx
from fixntk import plots

position = jax.random.uniform(jax.random.key(0), (120,), minval=-1.0)
x = jnp.stack([position, jnp.ones(120)], axis=1)
y = position / 10 + (position > -0.4) + (position > 0.3)
masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 100, 2))
optimum = fx.solve(fx.ConvexProgram(x, y, masks, reg=0.3)).kernel_weights

plt.style.use(plots.STYLE)
figure, panels = plt.subplots(1, 2, figsize=(9, 3.8))
for ax, name, weights in zip(panels, ("NTK", "optimal kernel"), (jnp.ones(100), optimum), strict=True):
    gram = fx.masked_gram(weights, masks, x)
    plots.kernel(gram * len(x) / jnp.trace(gram), ax, y=y, vmin=0.0, vmax=2.5).set_title(name)
plt.show()
