"""Trained ReLU networks as regressors: from random weights, and from discovered gates, polished."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import optax
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import fixntk as fx
from fixntk.convex import discover_quietly

# Candidates for λ/λ_max, of which a held-out quarter of the rows chooses one.
_SHARES = (0.1, 0.03, 0.01, 0.003, 0.001)
_HELD_OUT = 0.25
# Number of gates from which the discovery starts.
_NUM_GATES = 64
# Number of its rounds.
_NUM_ROUNDS = 10
# Number of neurons that start from random weights.
_WIDTH = 100
# Number of gradient steps of both networks.
_NUM_STEPS = 4000
# Largest learning rate of Adam. It falls to zero as a cosine does.
_LEARNING_RATE = 3e-3
# Groups of a smaller share of the largest are not in use.
_ACTIVE_SHARE = 1e-6

Fit = Callable[[fx.ConvexProgram, np.ndarray, int], fx.ReLUNetwork]


def fit_from_random(program: fx.ConvexProgram, _: np.ndarray, seed: int) -> fx.ReLUNetwork:
    """A network that is trained from random weights."""
    start = fx.ReLUNetwork.sample(jax.random.key(seed), _WIDTH, program.x.shape[1], intercept=True)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, _NUM_STEPS))
    rows = program.x, program.y
    return fx.train(start, *rows, optimizer, reg=program.reg, num_steps=_NUM_STEPS, record_every=_NUM_STEPS).network


def fit_polished(program: fx.ConvexProgram, gates: np.ndarray, seed: int) -> fx.ReLUNetwork:
    """A network whose gates are discovered, then move."""
    found = discover_quietly(program, gates, key=jax.random.key(seed), max_rounds=_NUM_ROUNDS, tol=1e-4)
    norms = np.linalg.norm(np.asarray(found.solution.weights), axis=(1, 2))
    used = np.asarray(found.gates)[norms > _ACTIVE_SHARE * norms.max()]
    return fx.polish(program, used, max_rounds=1, tol=1e-4).network


class NetworkRegressor(RegressorMixin, BaseEstimator):
    """A ReLU network on standardised columns with a bias column, at the λ that is best on held-out rows."""

    def __init__(self, fit_network: Fit, seed: int) -> None:
        self.fit_network = fit_network
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> NetworkRegressor:
        """Fit to three quarters of the rows at each λ, and to all of them at the best."""
        self.columns_, self.target_ = StandardScaler().fit(X), StandardScaler().fit(y[:, None])
        x, z = self._rows(X), self.target_.transform(y[:, None])[:, 0]
        gates = np.asarray(fx.sample_gates(jax.random.key(self.seed), _NUM_GATES, x.shape[1]))
        kept, held_out = train_test_split(np.arange(len(x)), test_size=_HELD_OUT, random_state=self.seed)
        errors = []
        for share in _SHARES:
            network = self.fit_network(_program(x[kept], z[kept], gates, share), gates, self.seed)
            errors.append(float(np.mean((np.asarray(network(x[held_out])) - z[held_out]) ** 2)))
        self.share_ = _SHARES[int(np.argmin(errors))]
        self.network_ = self.fit_network(_program(x, z, gates, self.share_), gates, self.seed)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict."""
        outputs = np.asarray(self.network_(self._rows(X)))
        return self.target_.inverse_transform(outputs[:, None])[:, 0]

    def _rows(self, X: np.ndarray) -> np.ndarray:
        return np.column_stack([self.columns_.transform(X), np.ones(len(X))])


def _program(x: np.ndarray, y: np.ndarray, gates: np.ndarray, share: float) -> fx.ConvexProgram:
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0, intercept=True)
    return program.with_reg(share * program.max_reg())
