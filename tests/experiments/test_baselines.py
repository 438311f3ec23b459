"""A grid that is searched on a sample of the rows."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

from experiments.shared.baselines import SearchedOnSample


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 5))
    return x, x @ rng.standard_normal(5) + rng.standard_normal(80)


def _search():
    return GridSearchCV(Ridge(), {"alpha": (0.01, 1.0, 100.0)}, cv=4)


def test_of_few_rows_it_is_the_search_itself(rows):
    found, expected = SearchedOnSample(_search(), 80, seed=0).fit(*rows), _search().fit(*rows)
    np.testing.assert_array_equal(found.predict(rows[0]), expected.predict(rows[0]))
    assert found.best_params_ == expected.best_params_


def test_setting_is_of_the_sample_and_the_fit_of_all_rows(rows):
    x, y = rows
    found = SearchedOnSample(_search(), 30, seed=1).fit(x, y)
    sample = np.random.default_rng(1).permutation(80)[:30]
    best = _search().fit(x[sample], y[sample]).best_params_
    assert found.best_params_ == best
    np.testing.assert_array_equal(found.predict(x), Ridge(**best).fit(x, y).predict(x))
