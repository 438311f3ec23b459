"""
Training
========

Eight networks trained by Adam, and the optimum of the convex program of their gates. None ends below it.
"""

import jax
import matplotlib.pyplot as plt
import optax

import fixntk as fx
from fixntk import plots

x = jax.random.normal(jax.random.key(0), (100, 4))
y = abs(x[:, 0]) - abs(x[:, 1])
gates = fx.sample_gates(jax.random.key(1), 50, 4)
optimum = fx.solve(fx.ConvexProgram(x, y, fx.activation_masks(x, gates), reg=0.5)).primal

keys = jax.random.split(jax.random.key(2), 8)
networks = jax.vmap(lambda key: fx.GatedReLUNetwork.sample(key, 50, 4, gates=gates))(keys)
training = fx.train(networks, x, y, optax.adam(0.01), reg=0.5, num_steps=1000, record_every=10)

plt.style.use(plots.STYLE)
ax = plots.history(training)
ax.axhline(optimum, color="black", linestyle="--", label="optimum")
ax.set_yscale("log")
ax.legend()
plt.show()
