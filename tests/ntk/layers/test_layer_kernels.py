"""Kernels of single layers and branches against neural-tangents, in networks around them."""

from functools import partial

import numpy as np
import pytest
from stax_kernels import assert_same_kernels, with_own

import fixntk as fx
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
    SumPool,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:`FanIn` layers assume", "ignore:Linear scaling attention", "ignore:Got potentially mismatching"
)


def their_conv(stax, kind="Conv", shape=(3, 3), strides=None, padding="SAME", **options):
    return getattr(stax, kind)(1, shape, strides, padding, 1.3, 0.2, **options)


CONV = Conv((3, 3), w_std=1.3, b_std=0.2)

# Layers between two convolutions with erf and a readout, ours and neural-tangents', and the readout.
BETWEEN = {
    "average": (AveragePool((2, 2)), lambda s: s.AvgPool((2, 2)), "flatten"),
    "average same": (
        AveragePool((3, 2), (2, 1), "SAME", count_include_pad=False),
        lambda s: s.AvgPool((3, 2), (2, 1), "SAME", normalize_edges=True),
        "pool",
    ),
    "average padded": (AveragePool((3, 2), None, "SAME"), lambda s: s.AvgPool((3, 2), None, "SAME"), "flatten"),
    "average circular": (
        AveragePool((2, 3), (2, 1), "CIRCULAR"),
        lambda s: s.AvgPool((2, 3), (2, 1), "CIRCULAR"),
        "pool",
    ),
    "sum": (SumPool((2, 3), (1, 2)), lambda s: s.SumPool((2, 3), (1, 2)), "flatten"),
    "local": (
        # Theirs takes the sizes of an unshared filter, and of resized images, in the wrong order after an odd number
        # of convolutions.
        Serial(CONV, ConvLocal((2, 3), w_std=1.3, b_std=0.2)),
        lambda s: s.serial(their_conv(s), their_conv(s, "ConvLocal", (2, 3))),
        "pool",
    ),
    "local strided": (
        ConvLocal((2, 3), (2, 1), "VALID", 1.3, 0.2),
        lambda s: their_conv(s, "ConvLocal", (2, 3), (2, 1), "VALID"),
        "flatten",
    ),
    "transposed same": (
        ConvTranspose((3, 2), (2, 1), "SAME", 1.3, 0.2),
        lambda s: their_conv(s, "ConvTranspose", (3, 2), (2, 1), "SAME"),
        "flatten",
    ),
    "transposed valid": (
        ConvTranspose((2, 3), (1, 2), "VALID", 1.3, 0.2),
        lambda s: their_conv(s, "ConvTranspose", (2, 3), (1, 2), "VALID"),
        "pool",
    ),
    "transposed circular": (
        ConvTranspose((3, 3), (2, 1), "CIRCULAR", 1.3, 0.2),
        lambda s: their_conv(s, "ConvTranspose", (3, 3), (2, 1), "CIRCULAR"),
        "pool",
    ),
    "index": (Index((slice(None, 5, 2), -1)), lambda s: s.Index((slice(None), slice(None, 5, 2), -1)), "rows"),
    "index flattened": (Index((2,)), lambda s: s.Index((slice(None), 2)), "rows flattened"),
    "resize": (
        Serial(CONV, Resize((4, 7))),
        lambda s: s.serial(their_conv(s), s.ImageResize((-1, 4, 7, -1), "linear")),
        "pool",
    ),
    "attention": (
        SelfAttention(1.2, 0.3, 0.8),
        lambda s: s.GlobalSelfAttention(1, 1, 1, 1, W_value_std=1.2, b_std=0.3, W_key_std=0.8),
        "pool",
    ),
    "attention with positions": (
        SelfAttention(1.2, 0.3, 0.8, "relu", 0.7, values_with_positions=True),
        lambda s: s.GlobalSelfAttention(
            1,
            1,
            1,
            1,
            W_value_std=1.2,
            b_std=0.3,
            W_key_std=0.8,
            attention_mechanism="RELU",
            pos_emb_type="SUM",
            W_pos_emb_std=0.7,
            val_pos_emb=True,
        ),
        "flatten",
    ),
    "sum of branches": (
        Sum(CONV, Serial(), Serial(LayerNorm(), Activate("erf"), CONV)),
        lambda s: s.serial(
            s.FanOut(3),
            s.parallel(their_conv(s), s.Identity(), s.serial(s.LayerNorm(), s.Erf(), their_conv(s))),
            s.FanInSum(),
        ),
        "pool",
    ),
    "product": (
        Serial(Product(CONV, Serial(Activate("erf"), CONV), Serial()), CONV),
        lambda s: s.serial(
            s.FanOut(3),
            s.parallel(their_conv(s), s.serial(s.Erf(), their_conv(s)), s.Identity()),
            s.FanInProd(),
            their_conv(s),
        ),
        "flatten",
    ),
    "concatenation": (
        Serial(Concatenate(CONV, Serial(Activate("erf"), CONV), shares=(2, 1)), CONV),
        lambda s: s.serial(
            s.FanOut(2),
            s.parallel(
                s.Conv(2, (3, 3), None, "SAME", 1.3, 0.2),
                s.serial(s.Erf(), their_conv(s)),
            ),
            s.FanInConcat(),
            their_conv(s),
        ),
        "flatten",
    ),
    "dropout": (
        Serial(Activate("erf"), Dropout(0.7), CONV),
        lambda s: s.serial(s.Erf(), s.Dropout(0.7), their_conv(s)),
        "pool",
    ),
    "dropout flattened": (
        Serial(Activate("erf"), Dropout(0.7), CONV),
        lambda s: s.serial(s.Erf(), s.Dropout(0.7), their_conv(s)),
        "flatten",
    ),
}


def readouts(stax, name):
    """Layers after the one tested, which see all positions (pool) or only equal ones (flatten)."""
    rows = Conv((2,), w_std=1.1, b_std=0.1)
    their_rows = stax.Conv(1, (2,), None, "SAME", 1.1, 0.1, dimension_numbers=("NHC", "HIO", "NHC"))
    return {
        "flatten": ([CONV, Activate("erf"), Flatten()], [their_conv(stax), stax.Erf(), stax.Flatten()]),
        "pool": ([CONV, Activate("erf"), GlobalSumPool()], [their_conv(stax), stax.Erf(), stax.GlobalSumPool()]),
        "rows": ([rows, Activate("erf"), GlobalAveragePool()], [their_rows, stax.Erf(), stax.GlobalAvgPool()]),
        "rows flattened": ([rows, Activate("erf"), Flatten()], [their_rows, stax.Erf(), stax.Flatten()]),
    }[name]


@pytest.mark.parametrize("name", BETWEEN)
def test_layers_are_those_of_neural_tangents(stax, images, name):
    ours, theirs, readout = BETWEEN[name]
    after, their_after = readouts(stax, readout)
    network = Serial(Conv((2, 2), w_std=1.2, b_std=0.1), ours, *after, Dense(1.4, 0.3))
    first = stax.Conv(1, (2, 2), None, "SAME", 1.2, 0.1)
    expected = stax.serial(first, theirs(stax), *their_after, stax.Dense(1, 1.4, 0.3))
    assert_same_kernels(partial(fx.network_kernel, network), expected, with_own(images))


@pytest.mark.parametrize("biases", [None, 0.2])
def test_standard_parameterization_is_that_of_neural_tangents(stax, images, biases):
    options = {"parameterization": "standard"}
    network = Serial(
        Conv((3, 3), None, "SAME", 1.3, biases, width=7, **options),
        Activate("relu"),
        ConvLocal((2, 2), None, "VALID", 1.1, biases, width=5, **options),
        Activate("erf"),
        Flatten(),
        Dense(1.2, biases, width=11, **options),
        Activate("relu"),
        Dense(0.9, biases, **options),
    )
    expected = stax.serial(
        stax.Conv(7, (3, 3), None, "SAME", 1.3, biases, **options),
        stax.Relu(),
        stax.ConvLocal(5, (2, 2), None, "VALID", 1.1, biases, **options),
        stax.Erf(),
        stax.Flatten(),
        stax.Dense(11, 1.2, biases, **options),
        stax.Relu(),
        stax.Dense(1, 0.9, biases, **options),
    )
    assert_same_kernels(partial(fx.network_kernel, network), expected, [images])


def test_nested_residuals_are_those_of_neural_tangents(stax, rng):
    """A shortcut within a branch that has begun with weights of its own is independent of the outer shortcut."""
    inputs = rng.standard_normal((4, 3)), rng.standard_normal((3, 3))
    inner = Residual(Serial(Activate("relu"), Dense(1.1)))
    network = Serial(Dense(), Residual(Serial(Activate("relu"), Dense(), inner)), Activate("relu"), Dense())

    def block(branch):
        return stax.serial(stax.FanOut(2), stax.parallel(stax.Identity(), branch), stax.FanInSum())

    theirs = block(stax.serial(stax.Relu(), stax.Dense(1, 1.1)))
    expected = stax.serial(
        stax.Dense(1), block(stax.serial(stax.Relu(), stax.Dense(1), theirs)), stax.Relu(), stax.Dense(1)
    )
    assert_same_kernels(partial(fx.network_kernel, network), expected, with_own(inputs))


def test_equal_rows_have_masks_of_their_own(rng):
    """Only an input and itself share a mask, in any tile."""
    x = rng.standard_normal((5, 3))
    x[3] = x[0]
    network = Serial(Dense(), Activate("relu"), Dropout(0.5), Dense())
    plain = fx.network_kernel(Serial(Dense(), Activate("relu"), Dense()), x)
    for batch_size in (None, 2):
        kernel = fx.network_kernel(network, x, batch_size=batch_size)
        np.testing.assert_allclose(kernel.nngp, plain.nngp * (1 + np.eye(5)), rtol=1e-12)


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ([Sum(Serial(), Serial()), Dense()], (2, 3), "all branches of a Sum but one must end with Dense or Conv"),
        (
            [Dense(), Sum(Serial(), Residual(Dense())), Dense()],
            (2, 3),
            "all branches of a Sum but one must end with Dense or Conv",
        ),
        ([Product(Serial(), Serial()), Dense()], (2, 3), "all branches of a Product but one"),
        ([Dropout(0.5), Dense()], (2, 3), "Dropout of the inputs has no kernel"),
        (
            [Dense(), Dense(parameterization="standard")],
            (2, 3),
            "needs the number of channels of its inputs: give width",
        ),
        ([AveragePool((7, 2)), Flatten(), Dense()], (2, 4, 4, 3), r"window_shape \(7, 2\) is larger than the image"),
        ([AveragePool((2,)), Flatten(), Dense()], (2, 4, 4, 3), r"window_shape \(2,\) does not fit inputs with 2 axes"),
        ([Index((4,)), Flatten(), Dense()], (2, 4, 4, 3), r"indices \(4,\) select nothing from positions \(4, 4\)"),
        ([Index((0, 0, 0)), Dense()], (2, 4, 4, 3), "are 3, inputs have 2 axes of positions"),
        ([SelfAttention()], (2, 3), "SelfAttention needs inputs with positions"),
    ],
)
def test_layers_that_do_not_fit_are_named(rng, layers, shape, message):
    with pytest.raises(ValueError, match=message):
        fx.network_kernel(Serial(*layers), rng.standard_normal(shape))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dropout(0.0), ValueError, "keep must be above 0 and at most 1"),
        (lambda: Dense(parameterization="ntp"), ValueError, "parameterization must be 'ntk' or 'standard', got 'ntp'"),
        (lambda: Dense(width=0), ValueError, "width must be at least 1"),
        (lambda: SelfAttention(mechanism="max"), ValueError, "mechanism must be one of softmax, identity, abs, relu"),
        (lambda: Concatenate(Dense(), Dense(), shares=(1,)), ValueError, "one number for each of the 2 branches"),
        pytest.param(
            lambda: Index(("a",)), TypeError, "indices must be integers and slices", marks=pytest.mark.wrong_types
        ),
        (partial(AveragePool, (0,)), ValueError, "window_shape must be at least 1"),
    ],
)
def test_bad_layers_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
