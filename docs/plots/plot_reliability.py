"""
Reliability
===========

Whether a classifier's probabilities can be believed, on rows that it has not seen.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split

from fixntk import plots
from fixntk.estimators import NTKClassifier

x, y = make_classification(2000, 8, n_informative=6, flip_y=0.1, class_sep=0.6, random_state=0)
x, x_test, y, y_test = train_test_split(x, y, train_size=400, random_state=0)

ax = None
for reg in (1.0, 1e-3):
    probabilities = NTKClassifier(reg=reg).fit(x, y).predict_proba(x_test)
    ax = plots.reliability(y_test, probabilities, ax, label=f"NTK, reg={reg:g}")
plt.show()
