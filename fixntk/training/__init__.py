"""Training of gated and ReLU networks with optax, for comparison with the convex program."""

from fixntk.training.train import (
    DivergedError,
    Training,
    TrainingHistory,
    TrainingProgress,
    network_objective,
    train,
)

__all__ = ["DivergedError", "Training", "TrainingHistory", "TrainingProgress", "network_objective", "train"]
