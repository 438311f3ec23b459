"""Training of gated and ReLU networks with optax, for comparison with the convex program."""

from fixntk.training.ntk_records import NTKHistory
from fixntk.training.objective import network_objective
from fixntk.training.polish import Polished, polish
from fixntk.training.results import DivergedError, Training, TrainingHistory, TrainingProgress
from fixntk.training.tracking import NTKTracker, track
from fixntk.training.train import train

__all__ = [
    "DivergedError",
    "NTKHistory",
    "NTKTracker",
    "Polished",
    "Training",
    "TrainingHistory",
    "TrainingProgress",
    "network_objective",
    "polish",
    "track",
    "train",
]
