"""One colour for each kind of model, the same in every figure."""

from __future__ import annotations

FIXED = "C0"
NTK = "C1"
OPTIMUM = "C2"
TRAINED_GATED = "C3"
TRAINED_RELU = "C4"
OPTIMAL_RELU = "C5"
SAMPLED_NTK = "C6"
DISCOVERED = "#882255"
