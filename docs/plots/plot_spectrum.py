"""
Spectra
=======

Eigenvalues of the NTK and of the optimal kernel, as shares of the trace. The optimal kernel is a mixture of
fewer masks.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import fixntk as fx
from fixntk import plots

x = jax.random.normal(jax.random.key(0), (100, 4))
y = abs(x[:, 0]) - abs(x[:, 1])
masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 50, 4))
optimum = fx.solve(fx.ConvexProgram(x, y, masks, reg=5.0))

kernels = {"NTK": fx.gated_relu_ntk(x), "optimal kernel": fx.masked_gram(optimum.kernel_weights, masks, x)}
plots.spectrum({name: kernel / jnp.trace(kernel) for name, kernel in kernels.items()})
plt.show()
