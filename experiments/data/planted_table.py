"""A classification table that is made so that fixing the NTK pays."""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.data.own_tables import Table

# Its name in configs; it is not among the listed tables, which are data of others.
PLANTED = "planted"
WHY = (
    "The table `planted` is made so that fixing pays: one of its ten features decides the class, by its size and not "
    "its sign, and the other nine are noise. The NTK's weights treat all directions alike, while reweighting finds the "
    "gates that follow this one; tables whose classes depend on many features leave less to find."
)
_NUM_ROWS = 300
_NUM_FEATURES = 10


def planted_table() -> Table:
    """Rows N(0, I), of which the half with the larger ``|signal|`` is the class far."""
    x = np.random.default_rng(0).standard_normal((_NUM_ROWS, _NUM_FEATURES))
    sizes = np.abs(x[:, 0])
    names = ["signal", *(f"noise {k}" for k in range(1, _NUM_FEATURES))]
    labels = np.where(sizes > np.median(sizes), "far", "near")
    return Table(PLANTED, pd.DataFrame(x, columns=names), labels, "made by experiments/data/planted_table.py")
