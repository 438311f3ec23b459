"""Calls with rows on eight devices beside the same on one, in a process that has eight: run with the name of a group.

For each case it prints a line of JSON; tests/test_sharded_rows.py says what must be in it.
"""

import json
import re
import sys
import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fixntk as fx
from fixntk import gram
from fixntk.convex import driver
from fixntk.convex import path as convex_path
from fixntk.convex.program import group_shape_of
from fixntk.convex.solve import METHODS, _certify, choose_method
from fixntk.convex.solvers import fista
from fixntk.estimators import GatedReLURegressor, NTKRegressor
from fixntk.gates import masks as gate_masks

jax.config.update("jax_enable_x64", True)
warnings.simplefilter("ignore")

BY_ROWS = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
NUM_ROWS, NUM_FEATURES, NUM_GATES = 80, 3, 40
LOSSES = ("squared", "huber", "logistic", "squared_hinge", "softmax")
# Reweighting comes near the optimum slowly; Anderson's extrapolation makes more of rounding in each step.
MOST_ITERATIONS = {"irls": 50, "anderson": 4}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")

divide = partial(jax.device_put, device=BY_ROWS)


def report(case, **found):
    print(json.dumps({"case": case, **found}), flush=True)


def data(num_rows=NUM_ROWS):
    rng = np.random.default_rng(0)
    x, gates = rng.standard_normal((num_rows, NUM_FEATURES)), rng.standard_normal((NUM_GATES, NUM_FEATURES))
    return x, gates, x @ gates.T >= 0, np.abs(x[:, 0]) + 0.1 * rng.standard_normal(num_rows)


def program(loss="squared", place=lambda rows: rows, **options):
    x, _, masks, y = data()
    y = {"logistic": np.sign(y - 1), "squared_hinge": np.sign(y - 1), "softmax": np.digitize(y, [0.5, 1])}.get(loss, y)
    given = fx.ConvexProgram(place(x), place(y), place(masks), 1.0, loss, **options)
    return given.with_reg(0.1 * given.max_reg())


def largest_difference(one, other):
    one, other = np.asarray(one), np.asarray(other)
    return float(np.max(np.abs(one - other)) / np.max(np.abs(other)))


def rows_on_a_device(tree):
    """The largest number of rows of an array's part on a device."""
    return max(shard.data.shape[0] for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)


def solutions(name):
    """Every loss and option by a method."""
    options = {"intercept": True, "sample_weight": np.linspace(0.5, 1.5, NUM_ROWS)}
    for loss, more in [*((loss, {}) for loss in LOSSES), ("squared", options)]:
        here, there = program(loss, **more), program(loss, divide, **more)
        try:
            choose_method(here, name)
        except ValueError:
            continue
        limits = {"tol": 1e-12, "max_iter": MOST_ITERATIONS.get(name)}
        one, eight = (fx.solve(each, method=name, **limits) for each in (here, there))
        prepared, _ = METHODS[name].prepare(there)
        rows = (prepared.x, prepared.y, prepared.masks, prepared.sample_weight, prepared.column)
        report(
            f"{loss}{' with options' if more else ''}",
            primal=largest_difference(eight.primal, one.primal),
            weights=largest_difference(eight.weights, one.weights),
            gap=float(eight.relative_gap),
            rows=rows_on_a_device(rows),
        )


def gates_too():
    """Masks over a mesh of four by two, whose second axis has gates."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "gates"))

    def place(array):
        axes = ("rows", "gates") if array.shape == (NUM_ROWS, NUM_GATES) else ("rows",)
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    cases = [("squared", name) for name in METHODS]
    cases += [(loss, name) for loss in ("logistic", "softmax") for name in ("fista", "newton")]
    for loss, name in cases:
        here, there = program(loss), program(loss, place)
        limits = {"tol": 1e-12, "max_iter": MOST_ITERATIONS.get(name)}
        one, eight = (fx.solve(each, method=name, **limits) for each in (here, there))
        parts = [shard.data.shape for shard in there.masks.addressable_shards]
        report(
            f"{loss} by {name}",
            primal=largest_difference(eight.primal, one.primal),
            weights=largest_difference(eight.weights, one.weights),
            part_of_masks=max(parts),
            gates_of_weights=rows_on_a_device(eight.weights),
        )


def path():
    """A path, with screening and on all groups."""
    for worth in (0, 1e9):
        convex_path._WORTH_SCREENING = worth
        regs = np.array([0.5, 0.2, 0.1]) * float(program().max_reg())
        programs = program(), program("squared", divide)
        one, eight = (fx.solve_path(each, regs, tol=1e-10) for each in programs)
        pairs = list(zip(eight, one, strict=True))
        report(
            f"worth {worth:g}",
            num_active=int(pairs[-1][0].history.num_active[-1]),
            weights=max(largest_difference(a.weights, b.weights) for a, b in pairs),
        )


def network(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


class Rows(NamedTuple):
    x: np.ndarray
    masks: np.ndarray
    y: np.ndarray


def kernels(tile_bytes):
    """Kernels and other functions of rows, whose masks are converted in tiles of this number of bytes."""
    gram.TILE_BYTES = gate_masks._TILE_BYTES = tile_bytes
    x, gates, masks, y = data()
    here = Rows(x, masks, y)
    weights, few = np.linspace(0.1, 1, NUM_GATES), (masks[:9], x[:9])
    params = [np.linspace(-1, 1, 24).reshape(3, 8), np.linspace(1, -1, 16).reshape(8, 2)]
    solution = fx.solve(program(), tol=1e-6)
    project = partial(fx.projected_gradients, network, params, dim=4, key=jax.random.key(0))
    calls = {
        "activation_masks": lambda given: fx.activation_masks(given.x, gates).astype(float),
        "masked_gram": lambda given: fx.masked_gram(weights, given.masks, given.x),
        "masked_gram, masks of NumPy": lambda given: fx.masked_gram(weights, np.asarray(given.masks), given.x),
        "masked_gram between": lambda given: fx.masked_gram(weights, given.masks, given.x, *few),
        "MaskedGram @ v": lambda given: fx.MaskedGram(weights, fx.pack_masks(given.masks), given.x) @ given.y,
        "diagonal": lambda given: fx.MaskedGram(weights, given.masks, given.x).diagonal(),
        "gated_relu_ntk": lambda given: fx.gated_relu_ntk(given.x),
        "gated_relu_ntk between": lambda given: fx.gated_relu_ntk(given.x, few[1]),
        "mlp_kernel": lambda given: fx.mlp_kernel(given.x, depth=2, batch_size=7).ntk,
        "empirical_ntk": lambda given: fx.empirical_ntk(network, params, given.x),
        "empirical_ntk in tiles": lambda given: fx.empirical_ntk(network, params, given.x, batch_size=3),
        "empirical_ntk between": lambda given: fx.empirical_ntk(network, params, given.x, few[1]),
        "empirical_ntk, diagonal": lambda given: fx.empirical_ntk(network, params, given.x, diagonal_axes=0),
        "projected_gradients": lambda given: project(given.x),
        "projected_gradients in tiles": lambda given: project(given.x, batch_size=3),
        "predict": lambda given: solution.predict(given.x, gates),
    }
    for name, call in calls.items():
        one, eight = call(here), call(jax.tree.map(divide, here))
        report(name, difference=largest_difference(eight, one), rows=rows_on_a_device(eight))


def estimators():
    """Predictions of estimators, which are made on the host."""
    x, _, _, y = data()
    for estimator in (GatedReLURegressor(num_gates=20), NTKRegressor()):
        fitted = estimator.fit(x, y)
        name = type(estimator).__name__
        report(name, difference=largest_difference(fitted.predict(divide(x)), fitted.predict(x)))


def collectives_of(compiled):
    """Collective operations of a compiled program, as "name shape"."""
    text = re.sub(r"/\*.*?\*/|\{[^{}]*\}", "", compiled.as_text())
    found = []
    for shapes, name in re.findall(rf"= (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)})(?:-start)?\(", text):
        found += [f"{name} {shape}" for shape in re.findall(r"\w+\[[\d,]*\]", shapes)]
    return found


def step():
    """One step of FISTA, as XLA compiles it: what the devices exchange, and what one of them has in memory."""
    x, _, masks, y = data(num_rows=4096)
    for tile_bytes in (2**28, 2**14):
        gram.TILE_BYTES = tile_bytes
        jax.clear_caches()
        given = fx.ConvexProgram(*map(divide, (x, y, masks)), 1.0)
        state = jax.jit(fista.init)(given, jnp.zeros((NUM_GATES, NUM_FEATURES, 1)))
        compiled = jax.jit(fista.step).lower(given, state).compile()
        memory = compiled.memory_analysis()
        loop = jax.jit(partial(driver._advance, method=fista.METHOD, step=0, room=5))
        report(
            f"{tile_bytes}",
            collectives=collectives_of(compiled),
            collectives_of_loop=collectives_of(loop.lower(given, state, 0.0, 5).compile()),
            argument_bytes=memory.argument_size_in_bytes,
            temporary_bytes=memory.temp_size_in_bytes,
        )


def sums():
    """What the devices exchange in a step of FISTA and in the certificate, for losses of one and of several outputs."""
    for loss in ("squared", "logistic", "softmax"):
        given = program(loss, divide)
        weights = jnp.zeros(group_shape_of(given))
        state = jax.jit(fista.init)(given, weights)
        loop = jax.jit(partial(driver._advance, method=fista.METHOD, step=0, room=5))
        compiled = {
            "step": jax.jit(fista.step).lower(given, state),
            "loop": loop.lower(given, state, 0.0, 5),
            "evaluate": jax.jit(fx.ConvexProgram.evaluate).lower(given, weights),
            "certificate": jax.jit(_certify).lower(given, weights, jnp.ones(()), jnp.zeros((), bool), 1e-6),
        }
        found = {name: collectives_of(lowered.compile()) for name, lowered in compiled.items()}
        report(loss, width=weights[0].size, **found)


def padding():
    """Rows that the devices do not divide, filled up with rows of weight zero."""
    x, _, masks, y = data(num_rows=75)
    for loss in ("squared", "huber"):
        one = fx.solve(fx.ConvexProgram(x, y, masks, 1.0, loss, intercept=True), tol=1e-10)
        added = -len(x) % jax.device_count()
        rows = [divide(np.pad(part, [(0, added), *[(0, 0)] * (part.ndim - 1)])) for part in (x, y, masks, np.ones(75))]
        given = fx.ConvexProgram(*rows[:3], 1.0, loss, sample_weight=rows[3], intercept=True)
        report(loss, weights=largest_difference(fx.solve(given, tol=1e-10).weights, one.weights))


def explicit_mesh():
    """Rows over a mesh of jax.make_mesh, whose axes new versions of JAX want to be told of in every function."""
    by_rows = NamedSharding(jax.make_mesh((8,), ("rows",)), PartitionSpec("rows"))
    x, gates, _, _ = data()
    solved, kernels = [], []
    for place in (lambda rows: rows, partial(jax.device_put, device=by_rows)):
        rows = place(x)
        given = fx.ConvexProgram(rows, abs(rows[:, 0]), fx.activation_masks(rows, gates), 1.0)
        solved.append(fx.solve(given, tol=1e-12).weights)
        kernels.append(fx.gated_relu_ntk(rows))
    report("solve", difference=largest_difference(*solved), rows=rows_on_a_device(given.masks))
    report("gated_relu_ntk", difference=largest_difference(*kernels), rows=rows_on_a_device(kernels[1]))


GROUPS = {name: partial(solutions, name) for name in METHODS}
GROUPS |= {each.__name__: each for each in (gates_too, path, estimators, step, sums, padding, explicit_mesh)}
GROUPS |= {"kernels": partial(kernels, 2**28), "kernels in tiles": partial(kernels, 2**9)}

if __name__ == "__main__":
    GROUPS[sys.argv[1]]()
