"""Results of a training, and the progress that its callback receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from fixntk.networks.models import Network


class TrainingHistory(NamedTuple):
    """One entry for the start and one for each record, with one more axis for a stack of networks.

    Attributes
    ----------
    steps
        (k,) steps made.
    objective
        (k, ...) objective on all the data, the penalty included.
    validation
        (k, ...) mean loss on the validation data; None without validation data.
    seconds
        (k,) seconds since the start, compilation included; a resumed training adds the seconds of its earlier parts.

    See docs/mathematics.md, M10.
    """

    steps: Int[np.ndarray, " k"]
    objective: Float[np.ndarray, "k ..."]
    validation: Float[np.ndarray, "k ..."] | None
    seconds: Float[np.ndarray, " k"]


class TrainingProgress(NamedTuple):
    """Argument of the callback of :func:`train`.

    Attributes
    ----------
    step, num_steps
        Numbers of steps made and requested.
    objective, validation
        As in the history.
    seconds
        Seconds since the start.
    network
        The network after these steps, or the stack of them.

    See docs/mathematics.md, M10.
    """

    step: int
    num_steps: int
    objective: Float[np.ndarray, " ..."]
    validation: Float[np.ndarray, " ..."] | None
    seconds: float
    network: Any


@dataclass(frozen=True, eq=False)
class Training(Generic[Network]):
    """A trained network, or a stack of them.

    Attributes
    ----------
    network
        The network at the last record with a finite objective.
    best
        The network at the record with the lowest validation loss; without validation data, with the lowest objective.
    history
        Objective, validation loss and seconds at each record.
    diverged
        Whether the objective became infinite or NaN; (S,) for a stack.

    See docs/mathematics.md, M10.
    """

    network: Network
    best: Network
    history: TrainingHistory
    diverged: np.bool_ | Bool[np.ndarray, " S"]

    def __repr__(self) -> str:
        return f"Training({self.network!r}, {len(self.history.objective)} records)"

    def lowest(self) -> Network:
        """The network with the lowest validation loss, or objective, among a stack's best networks."""
        monitored = self.history.objective if self.history.validation is None else self.history.validation
        if monitored.ndim == 1:
            return self.best
        # A network that diverged before its first record has the lowest value infinity.
        chosen = int(np.argmin(np.min(np.where(np.isfinite(monitored), monitored, np.inf), axis=0)))
        return jax.tree.map(lambda leaf: leaf[chosen], self.best)


class DivergedError(FloatingPointError):
    """The objective of every network became infinite or NaN.

    Attributes
    ----------
    training
        The results up to that point.

    See docs/mathematics.md, M10.
    """

    def __init__(self, message: str, training: Training[Any]) -> None:
        super().__init__(message)
        self.training = training
