"""Plots of results with matplotlib: each function takes a result and an optional Axes, and returns the Axes.

Without an Axes a function draws on a new pyplot figure, in the look of the project's reports (:data:`STYLE`). With one
it draws there, whatever its look, and leaves pyplot alone. Colours are Okabe and Ito's, which colour-blind readers can
tell apart; line styles and lightness tell curves apart in grey. Further keyword arguments go to the matplotlib function
that draws.
"""

from fixntk._requirements import check_versions

try:
    import matplotlib as _  # noqa: F401
except ImportError as error:
    raise ImportError("fixntk.plots needs matplotlib: pip install 'fixntk[plots]'") from error
else:
    check_versions("matplotlib")

from fixntk.plots._axes import STYLE
from fixntk.plots.functions import arrangements, function
from fixntk.plots.kernels import kernel, spectrum
from fixntk.plots.predictions import importance, reliability
from fixntk.plots.solutions import history, kernel_weights, path

__all__ = [
    "STYLE",
    "arrangements",
    "function",
    "history",
    "importance",
    "kernel",
    "kernel_weights",
    "path",
    "reliability",
    "spectrum",
]
