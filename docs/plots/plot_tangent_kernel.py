"""
Tangent kernels in training
===========================

How much the tangent kernel of a network changes as it learns, for three widths. Wide networks keep theirs.
"""

import jax
import matplotlib.pyplot as plt
import optax

import fixntk as fx
from fixntk import plots

x = jax.random.normal(jax.random.key(0), (60, 4))
y = abs(x[:, 0]) - abs(x[:, 1])

plt.style.use(plots.STYLE)
_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
for width in (10, 100, 1000):
    network = fx.ReLUNetwork.sample(jax.random.key(1), width, 4)
    tracker = fx.track(fx.ReLUNetwork.__call__, x, y)
    fx.train(network, x, y, optax.adam(0.01 / width**0.5), num_steps=1000, record_every=50, callback=tracker)
    plots.history(tracker.history, left, label=f"width {width}")
    plots.history(tracker.history, right, show="alignment", label=f"width {width}")
plt.show()
