"""Gates, the masks they make of data, and the arrangements of all masks."""

from fixntk.gates.arrangements import distinct_hyperplanes, enumerate_arrangements
from fixntk.gates.cover import cover_count
from fixntk.gates.masks import Arrangements, activation_masks, merge_duplicate_masks, pack_masks, sample_gates
from fixntk.gates.solid_angles import arrangement_weights

__all__ = [
    "Arrangements",
    "activation_masks",
    "arrangement_weights",
    "cover_count",
    "distinct_hyperplanes",
    "enumerate_arrangements",
    "merge_duplicate_masks",
    "pack_masks",
    "sample_gates",
]
