"""scikit-learn estimators of gated-ReLU networks and of their NTK."""

from fixntk._requirements import check_versions

try:
    import sklearn as _  # noqa: F401
except ModuleNotFoundError as error:
    message = "fixntk.estimators needs scikit-learn: pip install 'fixntk[estimators]'"
    raise ModuleNotFoundError(message, name="sklearn") from error
else:
    check_versions("scikit-learn")

from fixntk.estimators.gated import GatedReLUClassifier, GatedReLURegressor
from fixntk.estimators.gated_cv import GatedReLUClassifierCV, GatedReLURegressorCV
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
