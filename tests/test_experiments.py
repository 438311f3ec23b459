"""The experiments on networks, at a size of seconds: rows, summary and report."""

import json

import jax
import numpy as np
import pytest

from experiments import convex_vs_sgd, feature_learning, lazy_training, planted
from fixntk import report
from fixntk.configs import load_config
from fixntk.runs import to_json

SMALL = {
    convex_vs_sgd: {
        "problems": ("toy",),
        "optimizers": ("adam",),
        "width_shares": (0.5, 2.0),
        "learning_rates": (0.01,),
        "inits": 4,
        "num_steps": 2000,
        "irls_steps": 20,
    },
    lazy_training: {"widths": (32, 128, 512), "seeds": 8, "num_steps": 200, "num_looks": 2, "step_share": 0.1},
    feature_learning: {
        "problems": ("relu_teacher",),
        "seeds": 1,
        "irls_steps": 3,
        "width": 50,
        "num_steps": 300,
        "num_looks": 2,
    },
}


def ran(experiment):
    """Rows, summary and sections of a small run."""
    config = experiment.Config(**SMALL[experiment])
    rows = [{**task, **row} for task in experiment.tasks(config) for row in experiment.run_task(config, task)]
    rows = json.loads(json.dumps(to_json(rows)))
    summary = experiment.summarise(config, rows)
    with report.use_style():
        found = experiment.sections(config, rows, summary)
    assert all(figure.axes for section in found for _, figure, _ in section.figures)
    return rows, summary


def test_training_never_ends_below_the_bound_and_wide_networks_reach_it():
    rows, summary = ran(convex_vs_sgd)
    assert summary["trained"] == 2
    assert summary["below_the_bound"] == 0
    assert summary["largest_excess_when_wide"] < 0.01 < summary["largest_excess_when_narrow"]
    assert {row["method"] for row in rows} == {"newton", "irls", "adam"}


@pytest.mark.long
def test_wide_networks_are_nearer_to_the_closed_form():
    _, summary = ran(lazy_training)
    assert -0.8 < summary["slopes"]["test"]["slope"] < -0.25


@pytest.mark.long
def test_learnt_kernels_align_with_the_targets():
    _, summary = ran(feature_learning)
    aligned = summary["alignment"]["relu_teacher"]
    assert aligned["NTK"]["training"] < aligned["reweighted"]["training"]
    assert aligned["NTK"]["test"] < aligned["trained ReLU"]["test"]


def test_alignment_is_one_for_the_targets_and_blind_to_shifts():
    y = jax.numpy.asarray(np.random.default_rng(0).standard_normal(20))
    kernel = (y[:, None] - 1) * (y - 1)
    np.testing.assert_allclose(feature_learning.alignment(kernel, y), 1, rtol=1e-12)
    np.testing.assert_allclose(feature_learning.alignment(kernel + 5, y), 1, rtol=1e-12)


def test_planted_gates_are_those_of_the_masks():
    for problem in planted.PROBLEMS:
        data = planted.make(problem, 1)
        np.testing.assert_array_equal(data.x @ data.gates.T >= 0, data.masks)


@pytest.mark.parametrize("experiment", list(SMALL))
def test_configs_are_valid(experiment):
    name = experiment.__name__.rpartition(".")[2]
    found, _ = load_config(f"configs/{name}.yaml")
    assert found.__name__ == experiment.__name__
