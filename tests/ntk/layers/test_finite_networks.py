"""One description gives the kernel and the network: kernels are means over random networks of finite width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fixntk as fx
from fixntk.ntk.activations import exp_normalized
from fixntk.ntk.layers import (
    Activate,
    AveragePool,
    Concatenate,
    Conv,
    ConvLocal,
    ConvTranspose,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    GlobalSumPool,
    Index,
    LayerNorm,
    Product,
    Residual,
    Resize,
    SelfAttention,
    Serial,
    Sum,
)

FIRST = Conv((2,), w_std=1.3, b_std=0.2)
LAST = [Conv((2,), w_std=1.2, b_std=0.1), Activate("relu")]
SUM = [GlobalSumPool(), Dense(0.5)]
MEAN = [GlobalAveragePool(), Dense(1.5)]
FEATURES = [Flatten(), Dense(1.2, 0.3)]
STANDARD = {"parameterization": "standard"}

NETWORKS = {
    "dense": Serial(
        Flatten(), Dense(1.2, 0.3), LayerNorm(), Activate("relu"), Dense(1.2, 0.3), Activate("sin"), Dense()
    ),
    "average": Serial(
        FIRST, Activate("relu"), AveragePool((2,), padding="SAME", count_include_pad=False), *LAST, *MEAN
    ),
    "circular": Serial(Conv((3,), (2,), "CIRCULAR"), Activate("erf"), *LAST, *SUM),
    "transposed same": Serial(
        FIRST, Activate("relu"), ConvTranspose((3,), (2,), "SAME", 1.2, 0.2), Activate("erf"), *MEAN
    ),
    "transposed circular": Serial(FIRST, ConvTranspose((3,), (2,), "CIRCULAR", 1.2), *MEAN),
    "local": Serial(FIRST, Activate("relu"), ConvLocal((3,), (2,), "SAME", 1.2, 0.3), Activate("relu"), *MEAN),
    "index": Serial(FIRST, Activate("relu"), Index((slice(None, None, 2),)), *LAST, *MEAN),
    "one position": Serial(FIRST, Activate("relu"), Index((-1,)), Dense(1.2, 0.1)),
    "resize": Serial(FIRST, Activate("relu"), Resize((3,), "cubic"), *LAST, *MEAN),
    "residual": Serial(FIRST, Residual(Serial(Activate("relu"), FIRST)), Activate("relu"), *FEATURES),
    "sum": Serial(Sum(FIRST, Conv((1,), padding="VALID")), Activate("relu"), *FEATURES),
    "product": Serial(FIRST, Product(FIRST, Serial(Activate("erf"), FIRST), Serial()), FIRST, Activate("erf"), *MEAN),
    "concatenation": Serial(Concatenate(FIRST, Serial(FIRST, Activate("relu")), shares=(2, 1)), *LAST, *FEATURES),
    "attention": Serial(FIRST, SelfAttention(1.2, 0.3, 0.8, position_std=0.7, num_heads=32), Activate("relu"), *MEAN),
    "attention of values with positions": Serial(
        FIRST,
        SelfAttention(
            1.2,
            0.3,
            0.8,
            # Without normalisation, as with "relu", the bias of finite width is ten times as large.
            "softmax",
            0.7,
            position_decay=lambda squares: jnp.exp(-squares / 4),
            values_with_positions=True,
            num_heads=32,
        ),
        *MEAN,
    ),
    "standard": Serial(
        Conv((2,), None, "SAME", 1.3, 0.2, 64, **STANDARD),
        Activate("relu"),
        ConvLocal((2,), None, "VALID", 1.2, 0.3, 64, **STANDARD),
        Activate("erf"),
        Flatten(),
        Dense(1.2, 0.3, **STANDARD),
    ),
    "dropout": Serial(FIRST, Activate("relu"), Dropout(0.6), *LAST, *MEAN),
}

# Number of random networks.
NUM_DRAWS = 80
# Width of the hidden layers.
WIDTH = 32


def sampled_kernels(network, x):
    """Kernels (draws, n, n) of one output of random networks."""

    def kernels(key):
        keys = jax.random.split(key)
        params = network.init(keys[0], x.shape[1:], WIDTH)

        def output(params):
            # One output stands for all: they are exchangeable, and independent given the hidden layers.
            return network.apply(params, x, key=keys[1])

        everything, pull = jax.vjp(output, params)
        first_output = jnp.eye(x.shape[0])[..., None] * jnp.eye(1, everything.shape[1])
        rows = jax.vmap(lambda row: ravel_pytree(pull(row)[0])[0])(first_output)
        return everything @ everything.T / everything.shape[1], rows @ rows.T

    keys = jax.random.split(jax.random.key(1), NUM_DRAWS)
    return jax.jit(lambda keys: jax.lax.map(kernels, keys, batch_size=16))(keys)


# Networks that are sampled in every run of the tests.
QUICK = ("one position", "standard")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in NETWORKS]
)
def test_kernels_are_means_over_finite_networks(rng, name):
    network, x = NETWORKS[name], jnp.asarray(rng.standard_normal((3, 4, 2)))
    analytic = fx.network_kernel(network, x)
    for expected, sample in zip(analytic, sampled_kernels(network, x), strict=True):
        error = np.std(sample, axis=0) / np.sqrt(NUM_DRAWS)
        # Finite width adds a bias of order 1 / WIDTH.
        scale = np.sqrt(np.outer(*[np.diag(expected)] * 2))
        assert np.max(np.abs(np.mean(sample, axis=0) - expected) / (error + 0.04 * scale)) < 3.5


def test_nothing_is_dropped_without_a_key(rng, key):
    x = jnp.asarray(rng.standard_normal((3, 4)))
    network = Serial(Dense(width=5), Dropout(0.5))
    params = network.init(key, (4,))
    np.testing.assert_array_equal(network.apply(params, x), network[0].apply(params[0], x))
    dropped = network.apply(params, x, key=key)
    assert np.any(dropped == 0)


def test_widths_are_those_of_the_layers(key):
    network = Serial(Dense(b_std=0.1, width=7), Activate("relu"), Dense(), Activate("relu"), Dense(width=1))
    params = network.init(key, (3,), 11)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == (
        {"weights": (3, 7), "biases": (7,)},
        (),
        {"weights": (7, 11)},
        (),
        {"weights": (11, 1)},
    )


def test_the_empirical_kernel_of_the_described_network(rng, key):
    """The same object goes to fx.network_kernel and, by its apply, to fx.empirical_ntk."""
    x = rng.standard_normal((4, 3))
    network = Serial(Dense(), Activate("relu"), Dense(width=1))
    params = network.init(key, (3,), 4096)
    np.testing.assert_allclose(
        fx.empirical_ntk(network.apply, params, x, outputs="trace"), fx.network_kernel(network, x).ntk, rtol=0.15
    )


def test_an_activation_without_a_function_is_named(key):
    network = Serial(Dense(), Activate(exp_normalized()))
    with pytest.raises(ValueError, match="has no function, only a kernel"):
        network.init(key, (3,))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Dense(np.ones(2)), r"w_std must be a single number, got an array of shape \(2,\)"),
        (Dense(1.0, jnp.ones(3)), r"b_std must be a single number, got an array of shape \(3,\)"),
        (Conv((2,), w_std=np.ones(2)), "w_std must be a single number"),
        (SelfAttention(score_std=np.ones(2)), "score_std must be a single number"),
        (Serial(Dense(), LayerNorm(np.ones(2))), "eps must be a single number"),
        (Conv((2, 2)), r"filter_shape \(2, 2\) does not fit inputs with 1 axes of positions"),
        (ConvLocal((2, 2)), r"filter_shape \(2, 2\) does not fit inputs with 1 axes of positions"),
        (ConvTranspose((2, 2)), r"filter_shape \(2, 2\) does not fit inputs with 1 axes of positions"),
    ],
)
def test_layers_that_have_no_network_are_named(key, layer, message):
    with pytest.raises(ValueError, match=message):
        layer.init(key, (6, 3), 8)
