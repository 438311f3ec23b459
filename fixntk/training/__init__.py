"""Training of gated and ReLU networks with optax, for comparison with the convex program."""

from fixntk.training.objective import network_objective
from fixntk.training.results import DivergedError, Training, TrainingHistory, TrainingProgress
from fixntk.training.train import train

__all__ = ["DivergedError", "Training", "TrainingHistory", "TrainingProgress", "network_objective", "train"]
