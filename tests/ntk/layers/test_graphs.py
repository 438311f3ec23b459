"""Graph networks, and fixed matrices on positions, against neural-tangents and networks of finite width."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stax_kernels import assert_same_kernels, with_own
from test_finite_networks import NUM_DRAWS, sampled_kernels

import fixntk as fx
from fixntk.ntk.layers import (
    Activate,
    Aggregate,
    AveragePool,
    Conv,
    Dense,
    DotGeneral,
    Flatten,
    GlobalAveragePool,
    GlobalSumPool,
    Index,
    MaskedAveragePool,
    Residual,
    SelfAttention,
    Serial,
    Sum,
)

pytestmark = pytest.mark.filterwarnings("ignore:`FanIn` layers assume")

HIDDEN = Serial(Dense(1.3, 0.2), Activate("erf"))


def their_hidden(stax):
    return stax.serial(stax.Dense(1, 1.3, 0.2), stax.Erf())


def random_graphs(rng, inputs):
    """Directed graphs with weights, half of whose edges are missing."""
    return [
        rng.standard_normal((len(x), *x.shape[1:-1] * 2)) * rng.integers(0, 2, (len(x), *x.shape[1:-1] * 2))
        for x in inputs
    ]


@pytest.mark.parametrize(("positions", "readout", "batch_size"), [((5,), "pool", 2), ((3, 2), "flatten", None)])
def test_graph_networks_are_those_of_neural_tangents(stax, rng, positions, readout, batch_size):
    inputs = [rng.standard_normal((n, *positions, 3)) for n in (4, 3)]
    patterns = random_graphs(rng, inputs)
    ends = {"flatten": (Flatten(), stax.Flatten()), "pool": (GlobalSumPool(), stax.GlobalSumPool())}[readout]
    branch = Residual(Serial(Aggregate(), Dense(0.7)))
    network = Serial(Aggregate(), HIDDEN, Dense(), branch, Activate("relu"), ends[0], Dense())

    def their_aggregation():
        return stax.Aggregate(tuple(range(1, 1 + len(positions))), 0, -1)

    _, _, their_kernel = stax.serial(
        their_aggregation(),
        their_hidden(stax),
        stax.Dense(1),
        stax.FanOut(2),
        stax.parallel(stax.serial(their_aggregation(), stax.Dense(1, 0.7)), stax.Identity()),
        stax.FanInSum(),
        stax.Relu(),
        ends[1],
        stax.Dense(1),
    )

    def theirs(x1, x2, get):
        return their_kernel(x1, x2, get, pattern=(patterns[0], patterns[0 if x2 is None else 1]))

    def ours(x1, x2):
        pattern2 = None if x2 is None else patterns[1]
        return fx.network_kernel(network, x1, x2, pattern1=patterns[0], pattern2=pattern2, batch_size=batch_size)

    assert_same_kernels(ours, (None, None, theirs), with_own(inputs))


# name: layers around one axis of two, or the only one, ours and theirs, and the shape of an example.
MATRICES = {
    "only axis": ((6, 3), 0, lambda s, a: s.DotGeneral(rhs=a, dimension_numbers=(((1,), (0,)), ((), ()))), 1),
    "last axis": ((4, 6, 3), 1, lambda s, a: s.DotGeneral(rhs=a, dimension_numbers=(((2,), (0,)), ((), ()))), 2),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_on_positions_are_those_of_neural_tangents(stax, rng, name):
    shape, axis, their_layer, channel_axis = MATRICES[name]
    inputs = [rng.standard_normal((n, *shape)) for n in (4, 3)]
    matrix = rng.standard_normal((6, 2))
    network = Serial(HIDDEN, Dense(), DotGeneral(matrix, axis), Activate("erf"), GlobalAveragePool(), Dense(1.4, 0.3))
    theirs = stax.serial(
        their_hidden(stax),
        stax.Dense(1),
        their_layer(stax, matrix),
        stax.Erf(),
        stax.GlobalAvgPool(channel_axis=channel_axis),
        stax.Dense(1, 1.4, 0.3),
    )
    assert_same_kernels(partial(fx.network_kernel, network), theirs, with_own(inputs))


def test_sums_and_means_are_matrices(rng):
    x = rng.standard_normal((4, 6, 3))
    windows = np.repeat(np.eye(3), 2, axis=0) / 2
    after = [Activate("relu"), Flatten(), Dense()]
    expected = fx.network_kernel(Serial(HIDDEN, Dense(), AveragePool((2,), (2,)), *after), x)
    found = fx.network_kernel(Serial(HIDDEN, Dense(), DotGeneral(windows), *after), x)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    # One graph for all examples is a matrix.
    graph = rng.standard_normal((6, 6))
    expected = fx.network_kernel(Serial(HIDDEN, Dense(), DotGeneral(graph), *after), x)
    patterns = np.broadcast_to(graph, (4, 6, 6))
    found = fx.network_kernel(Serial(HIDDEN, Dense(), Aggregate(), *after), x, pattern1=patterns)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_nodes_that_are_taken_out_do_not_matter(rng):
    """Inputs of different numbers of nodes: what is in the others is of no account."""
    x, present = rng.standard_normal((2, 5, 3)), np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    patterns = present[:, :, None] * present[:, None, :] / present.sum(axis=1)[:, None, None]
    # The mean over the nodes of an input is the same at all of its nodes, so that one can be taken.
    network = Serial(HIDDEN, Aggregate(), Index((0,)), Dense())
    kernel = fx.network_kernel(network, x, pattern1=patterns)
    changed = np.where(present[..., None] == 1, x, 7.0)
    for one, other in zip(fx.network_kernel(network, changed, pattern1=patterns), kernel, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    for row, length in enumerate((3, 4)):
        short = fx.network_kernel(Serial(HIDDEN, GlobalAveragePool(), Dense()), x[row : row + 1, :length])
        for one, other in zip(kernel, short, strict=True):
            np.testing.assert_allclose(one[row, row], other[0, 0], rtol=1e-12)


def test_kernels_are_means_over_finite_networks(rng):
    x, matrix = jnp.asarray(rng.standard_normal((3, 4, 2))), rng.standard_normal((4, 3)) / 2
    patterns = jnp.asarray(random_graphs(rng, [x])[0])
    network = Serial(
        Aggregate(),
        Conv((2,), w_std=1.3, b_std=0.2),
        Activate("relu"),
        Dense(),
        Sum(Serial(Aggregate(), Dense(0.8)), Residual(Serial(Activate("erf"), Dense()))),
        DotGeneral(matrix),
        Activate("relu"),
        GlobalSumPool(),
        Dense(0.5),
    )
    finite = SimpleNamespace(init=network.init, apply=partial(network.apply, pattern=patterns))
    analytic = fx.network_kernel(network, x, pattern1=patterns)
    for expected, sample in zip(analytic, sampled_kernels(finite, x), strict=True):
        error = np.std(sample, axis=0) / np.sqrt(NUM_DRAWS)
        scale = np.sqrt(np.outer(*[np.diag(expected)] * 2))
        assert np.max(np.abs(np.mean(sample, axis=0) - expected) / (error + 0.04 * scale)) < 3.5


def test_sums_over_neighbours(rng):
    x, pattern = rng.standard_normal((2, 3, 2, 4)), jnp.asarray(rng.standard_normal((2, 3, 2, 3, 2)))
    expected = np.einsum("nabc,nabde->ndec", x, pattern)
    np.testing.assert_allclose(Aggregate().apply((), jnp.asarray(x), pattern=pattern), expected, rtol=1e-12)
    expected = np.einsum("nabc,bd->nadc", x, np.ones((2, 5)))
    np.testing.assert_allclose(DotGeneral(np.ones((2, 5)), 1).apply((), jnp.asarray(x)), expected, rtol=1e-12)


def test_kernels_have_derivatives_in_graphs_and_matrices(rng):
    x, pattern, matrix = rng.standard_normal((2, 3, 2)), rng.standard_normal((2, 3, 3)), rng.standard_normal((3, 2))

    def total(pattern, matrix):
        network = Serial(Aggregate(), HIDDEN, Dense(), DotGeneral(matrix), Activate("erf"), Flatten(), Dense())
        return jnp.sum(fx.network_kernel(network, x, pattern1=pattern).ntk)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(pattern, matrix)
    for number, (gradient, value) in enumerate(zip(gradients, (pattern, matrix), strict=True)):
        step = rng.standard_normal(value.shape)
        ends = [
            total(*(each + sign * 1e-5 * step if k == number else each for k, each in enumerate((pattern, matrix))))
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(jnp.sum(gradient * step), (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("layers", "patterns", "message"),
    [
        ([Aggregate()], {}, "Aggregate needs the graphs of the inputs: pass pattern1"),
        ([Flatten(), Dense(), Aggregate()], {"pattern1": np.ones((2, 4, 4))}, "Aggregate needs inputs with positions"),
        ([Aggregate()], {"pattern1": np.ones((2, 4, 3))}, r"pattern1 must have shape .* here \(2, 4, 4\)"),
        ([Aggregate()], {"pattern1": np.ones((3, 4, 4))}, r"pattern1 must have shape .* here \(2, 4, 4\)"),
        ([Aggregate()], {"pattern1": np.ones((2, 5, 5))}, "between 5 nodes, but the inputs of Aggregate have 4"),
        ([Aggregate()], {"pattern2": np.ones((2, 4, 4))}, "pattern1 and x1 must be given together"),
        ([DotGeneral(np.ones((3, 2)))], {}, r"a row for each of the 4 positions, got shape \(3, 2\)"),
        ([DotGeneral(np.ones((4, 4)), 1)], {}, "axis 1 is none of the 1 axes of positions"),
    ],
)
def test_graphs_and_matrices_that_do_not_fit_are_named(rng, layers, patterns, message):
    with pytest.raises(ValueError, match=message):
        fx.network_kernel(Serial(Dense(), *layers, Flatten(), Dense()), rng.standard_normal((2, 4, 3)), **patterns)


def test_finite_networks_without_their_graphs_are_named(key):
    network = Serial(Dense(), Residual(Serial(Aggregate(), Dense())))
    params = network.init(key, (4, 3), 5)
    with pytest.raises(ValueError, match="pass pattern to apply"):
        network.apply(params, jnp.ones((2, 4, 3)))
    with pytest.raises(ValueError, match="between 5 nodes"):
        network.apply(params, jnp.ones((2, 4, 3)), pattern=jnp.ones((2, 5, 5)))


def test_means_over_masked_positions_are_those_of_neural_tangents(stax, rng):
    inputs = [rng.standard_normal((n, 5, 3)) for n in (4, 3)]
    masks = [rng.integers(0, 2, (len(x), 5)).astype(bool) | (np.arange(5) == 2) for x in inputs]
    marked = [np.where(mask[..., None], x, 99.0) for x, mask in zip(inputs, masks, strict=True)]
    network = Serial(HIDDEN, Dense(0.9, 0.3), Activate("relu"), MaskedAveragePool(), Dense(1.1, 0.2))
    tail = (stax.Dense(1, 0.9, 0.3), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1, 1.1, 0.2))
    _, _, theirs = stax.serial(their_hidden(stax), *tail)
    ours = fx.network_kernel(network, *inputs, pattern1=masks[0], pattern2=masks[1], batch_size=2)
    expected = theirs(*marked, ("nngp", "ntk"), mask_constant=99.0)
    np.testing.assert_allclose(ours.nngp, expected.nngp, rtol=1e-10)
    np.testing.assert_allclose(ours.ntk, expected.ntk, rtol=1e-10)


@pytest.mark.parametrize("positions", [(4,), (3, 4)])
def test_padded_inputs_have_the_kernels_of_inputs_without_padding(rng, positions):
    def network(mask, pool):
        layers = [Conv((3,) * len(positions), padding="SAME", w_std=1.3, b_std=0.2), Activate("erf")]
        return Serial(*mask, *layers, *mask, *layers, pool, Dense())

    short = [jnp.asarray(rng.standard_normal((n, *positions, 2))) for n in (3, 2)]
    expected = fx.network_kernel(network((), GlobalAveragePool()), *short)
    pads = ((0, 0), *((1, 2),) * len(positions))
    masks = [jnp.pad(jnp.ones(x.shape[:-1], bool), pads) for x in short]
    padded = [jnp.pad(x, (*pads, (0, 0)), constant_values=7.0) for x in short]
    masked = network((Aggregate(),), MaskedAveragePool())
    kernel = fx.network_kernel(masked, *padded, pattern1=masks[0], pattern2=masks[1])
    np.testing.assert_allclose(kernel.nngp, expected.nngp, rtol=1e-10)
    np.testing.assert_allclose(kernel.ntk, expected.ntk, rtol=1e-10)
    # The networks of finite width have the same parameters, but for the layers without any.
    plain = network((), GlobalAveragePool())
    params = plain.init(jax.random.key(0), short[0].shape[1:], 6)
    inserted = ((), params[0], params[1], (), *params[2:])
    outputs = masked.apply(inserted, padded[0], pattern=masks[0])
    np.testing.assert_allclose(outputs, plain.apply(params, short[0]), rtol=1e-10)
    assert jax.tree.structure(masked.init(jax.random.key(0), padded[0].shape[1:], 6)) == jax.tree.structure(inserted)


@pytest.mark.parametrize("mechanism", ["softmax", "relu"])
def test_masked_attention_is_attention_to_the_positions_that_are_there(rng, mechanism):
    """Inputs that lack positions, of any content, have the kernels and the outputs of inputs without these."""

    def network(pool, **options):
        attention = SelfAttention(1.2, 0.3, 0.8, mechanism, num_heads=2, **options)
        return Serial(Dense(1.3, 0.2), Activate("erf"), attention, Activate("relu"), attention, pool, Dense())

    plain, masked = network(GlobalAveragePool()), network(MaskedAveragePool(), masked=True)
    x = jnp.asarray(rng.standard_normal((2, 5, 3)))
    masks = np.array([[True, False, True, True, False], [False, True, True, False, True]])
    short = jnp.stack([x[i, mask] for i, mask in enumerate(masks)])
    found, expected = fx.network_kernel(masked, x, pattern1=masks), fx.network_kernel(plain, short)
    np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-10)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-10)
    params = masked.init(jax.random.key(0), x.shape[1:], 6)
    assert masked.output_shape(params, x.shape[1:]) == (6,)
    outputs = masked.apply(params, x, pattern=jnp.asarray(masks))
    # Parameters of as many positions as the inputs have; embeddings have a standard deviation of zero here.
    fewer = tuple({**p, "embeddings": p["embeddings"][:3]} if "embeddings" in p else p for p in params)
    np.testing.assert_allclose(outputs, plain.apply(fewer, short), rtol=1e-10)


def test_attention_of_an_input_without_positions_is_zero(rng):
    attention = Serial(SelfAttention(masked=True))
    x, masks = jnp.asarray(rng.standard_normal((2, 3, 2))), jnp.asarray([[True] * 3, [False] * 3])
    outputs = attention.apply(attention.init(jax.random.key(0), (3, 2), 4), x, pattern=masks)
    np.testing.assert_array_equal(outputs[1], 0)
    assert np.all(np.isfinite(outputs[0]))
    assert np.all(outputs[0] != 0)


@pytest.mark.filterwarnings("ignore:Linear scaling attention")
def test_masked_attention_is_that_of_neural_tangents(stax, rng):
    inputs = [rng.standard_normal((n, 5, 3)) for n in (4, 3)]
    masks = [rng.integers(0, 2, (len(x), 5)).astype(bool) | (np.arange(5) == 2) for x in inputs]
    marked = [np.where(mask[..., None], x, 99.0) for x, mask in zip(inputs, masks, strict=True)]
    attention = SelfAttention(1.2, 0.3, 0.8, masked=True)
    network = Serial(HIDDEN, attention, Activate("relu"), MaskedAveragePool(), Dense(1.1, 0.2))
    theirs = stax.serial(
        their_hidden(stax),
        stax.GlobalSelfAttention(1, 1, 1, 1, W_value_std=1.2, b_std=0.3, W_key_std=0.8),
        stax.Relu(),
        stax.GlobalAvgPool(),
        stax.Dense(1, 1.1, 0.2),
    )[2]
    ours = fx.network_kernel(network, *inputs, pattern1=masks[0], pattern2=masks[1], batch_size=2)
    expected = theirs(*marked, ("nngp", "ntk"), mask_constant=99.0)
    np.testing.assert_allclose(ours.nngp, expected.nngp, rtol=1e-10)
    np.testing.assert_allclose(ours.ntk, expected.ntk, rtol=1e-10)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Serial(SelfAttention(masked=True)), {}, "SelfAttention needs the masks"),
        (Serial(MaskedAveragePool()), {}, "MaskedAveragePool needs the masks"),
        (Serial(MaskedAveragePool()), {"pattern1": np.ones((2, 4), bool)}, r"a mask, must have shape \(2, 5\)"),
        (Serial(AveragePool((2,)), MaskedAveragePool()), {"pattern1": np.ones((2, 5), bool)}, "between 5 nodes"),
        (Serial(Flatten(), MaskedAveragePool()), {"pattern1": np.ones((2, 5), bool)}, "inputs with positions"),
    ],
)
def test_masks_that_do_not_fit_are_named(network, options, message):
    with pytest.raises(ValueError, match=message):
        fx.network_kernel(network, np.ones((2, 5, 3)), **options)
