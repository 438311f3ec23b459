"""Trained networks as regressors: λ by held-out rows, and errors on fresh rows of a function of two directions."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from experiments import gates
from experiments.shared import networks


@pytest.mark.parametrize("fit", [networks.fit_from_random, networks.fit_polished])
def test_a_function_of_two_directions_is_learnt(monkeypatch, fit):
    monkeypatch.setattr(networks, "_SHARES", (0.9, 0.01))
    for name, value in {"_NUM_STEPS": 500, "_NUM_ROUNDS": 2, "_NUM_GATES": 8}.items():
        monkeypatch.setattr(networks, name, value)
    rng = np.random.default_rng(0)
    x, fresh = 3 + 5 * rng.standard_normal((60, 3)), 3 + 5 * rng.standard_normal((300, 3))

    def truth(rows):
        return 100 + 10 * np.maximum(rows[:, 0] - 3, 0) - 10 * np.maximum(rows[:, 1] - 3, 0)

    model = networks.NetworkRegressor(fit, 0).fit(x, truth(x))
    # The first λ is nearly λ_max, where the network is nearly constant.
    assert model.share_ == 0.01
    error, linear = (
        np.mean((m.predict(fresh) - truth(fresh)) ** 2) for m in (model, LinearRegression().fit(x, truth(x)))
    )
    assert error < 0.3 * linear
    # It does not depend on the units of columns and target, here powers of two, which round nothing.
    units = np.array([1024.0, 1.0, 0.125])
    scaled = networks.NetworkRegressor(fit, 0).fit(units * x, 8192 * truth(x))
    np.testing.assert_allclose(scaled.predict(units * fresh), 8192 * model.predict(fresh), rtol=1e-6)


def test_every_network_has_a_name_in_the_config():
    assert set(gates.NETWORKS) == set(gates.get_args(gates.NetworkName))
