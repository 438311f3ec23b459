"""
Importance of features
======================

How much worse the predictions become when a column is shuffled, by scikit-learn.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_diabetes
from sklearn.inspection import permutation_importance
from sklearn.model_selection import train_test_split

from fixntk import plots
from fixntk.estimators import NTKRegressor

data = load_diabetes()
x, x_test, y, y_test = train_test_split(data.data, data.target, random_state=0)
model = NTKRegressor(reg=0.1).fit(x, y)
found = permutation_importance(model, x_test, y_test, n_repeats=10, random_state=0)

ax = plots.importance(found.importances, data.feature_names)
ax.set_xlabel("decrease of R² when the column is shuffled")
plt.show()
