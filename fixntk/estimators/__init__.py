"""scikit-learn estimators of gated-ReLU networks and of their NTK."""

from fixntk.estimators.gated import (
    GatedReLUClassifier,
    GatedReLUClassifierCV,
    GatedReLURegressor,
    GatedReLURegressorCV,
)
from fixntk.estimators.ntk import NTKClassifier, NTKClassifierCV, NTKRegressor, NTKRegressorCV

__all__ = [
    "GatedReLUClassifier",
    "GatedReLUClassifierCV",
    "GatedReLURegressor",
    "GatedReLURegressorCV",
    "NTKClassifier",
    "NTKClassifierCV",
    "NTKRegressor",
    "NTKRegressorCV",
]
