"""Gates of trained ReLU networks, cross-validated: the networks themselves, and ridge regressions with their gates.

Each neuron of a ReLU network is its own gate, which gradient descent moves to where the targets have kinks. Written as
a gated network, it has the same outputs everywhere, and the kernel of its gates has the weights η_p = ‖w_p‖ ‖v_p‖. The
network is the ridge regression with this kernel where training has come to rest and no row lies on a boundary.

See docs/mathematics.md, M6 and M11.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from fixntk.convex.progress import progress_bar
from fixntk.estimators.candidates import Candidates, Trial, give_up
from fixntk.estimators.fitting import GatedFit, certify_fit, program_of_rows
from fixntk.estimators.folds import num_padded_rows
from fixntk.estimators.neurons import train_networks
from fixntk.estimators.ridges import RIDGE_SHARES, fit_ridges


def trained_candidates(trial: Trial) -> Candidates:
    """ReLU networks trained at each λ in the first column, and the ridge regressions with their gates in the others.

    The first fold tries every λ, and the others those that were best there: their outputs at the rest are NaN.
    """
    training, folds, gates, _, regs, judge, progress = trial
    # Rows that are not held out are not judged.
    outputs = np.zeros((len(regs), 1 + len(RIDGE_SHARES), *training.targets.shape))
    size = num_padded_rows(training, folds)
    places = np.arange(len(regs))
    with progress_bar("trained networks", total=len(folds), unit="fold", shown=progress) as show:
        for number, (kept, held_out) in enumerate(folds):
            rows = training.x[kept], training.targets[kept], training.weights[kept]
            for place, neurons in zip(places, train_networks(*rows, regs[places], size, gates.seed), strict=True):
                ridges = fit_ridges(neurons.used, *rows, regs[place] * np.array(RIDGE_SHARES))
                x = training.x[held_out]
                outputs[place][:, held_out] = np.stack([neurons.predict(x), *ridges.predict(x)])
            show(number + 1, f"{len(places)} values of λ")
            if number == 0 and len(folds) > 1:
                places = judge.of_fold(held_out).choose_regs(outputs, None)
                give_up(outputs, places, held_out)

    def fit(place: int, column: int) -> GatedFit:
        rows = training.x, training.targets, training.weights
        num_padded = len(training.padded_x)
        # Where rows are padded as in the folds, the loop for several networks is compiled already, and copies of this
        # network fill it. Otherwise it is trained alone.
        copies = len(places) if num_padded == size else 1
        neurons = train_networks(*rows, np.repeat(regs[place], copies), num_padded, gates.seed)[0]
        padded = training.padded_x, training.padded_targets, training.padded_weights
        program = program_of_rows(*padded, jnp.asarray(neurons.gates))
        weights, reg = neurons.weights, float(regs[place])
        if column > 0:
            reg *= RIDGE_SHARES[column - 1]
            ridge = fit_ridges(neurons.used, *rows, np.array([reg]))
            weights[neurons.kernel_weights > 0] = ridge.weights[0].reshape(-1, *weights.shape[1:])
        return certify_fit(program, weights, neurons.kernel_weights, neurons.gates, reg)

    return Candidates(outputs, fit)
