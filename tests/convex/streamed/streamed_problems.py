"""Programs whose rows are in shards, beside the same in memory."""

import numpy as np

import fixntk as fx
from fixntk.convex.streamed import model


def problem(num_outputs=None, num_rows=403, num_gates=30, num_features=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, num_features))
    y = np.maximum(x @ rng.standard_normal((num_features, num_outputs or 1)), 0) + 0.1 * rng.standard_normal((1, 1))
    gates = rng.standard_normal((num_gates, num_features))
    return x, y[:, 0] if num_outputs is None else y, gates


def cut(array, *ends):
    return np.split(array, ends)


def both(num_outputs=None, share=0.1, **options):
    """A streamed program of three unequal shards, and the same in memory."""
    x, y, gates = problem(num_outputs)
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0)
    program = program.with_reg(share * program.max_reg())
    streamed = fx.StreamedProgram(cut(x, 90, 333), cut(y, 90, 333), gates, float(program.reg), **options)
    return streamed, program


def limit_sample(monkeypatch, num_rows):
    monkeypatch.setattr(model, "_MAX_SAMPLE_ROWS", num_rows)
