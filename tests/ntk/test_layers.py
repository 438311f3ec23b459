from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stax_kernels import assert_same_kernels, with_own

import fixntk as fx
from fixntk.ntk import activations
from fixntk.ntk.activations import polynomial
from fixntk.ntk.layers import (
    Activate,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Index,
    LayerNorm,
    Residual,
    Resize,
    Serial,
)

COEFFICIENTS = [0.3, 0.5, -0.2, 0.1]


@pytest.mark.filterwarnings("ignore:Numerical Activation Layer", "ignore:Using JAX autodiff")
@pytest.mark.parametrize(("depth", "w_std", "b_std"), [(1, 1.0, 0.0), (1, 1.4, 0.3), (3, 1.4, 0.3)])
@pytest.mark.parametrize(
    ("activation", "theirs"),
    [
        ("relu", "Relu"),
        ("leaky_relu", lambda stax: stax.LeakyRelu(0.01)),
        ("abs", "Abs"),
        ("erf", "Erf"),
        ("gelu", "Gelu"),
        ("sin", "Sin"),
        ("cos", "Cos"),
        ("sign", "Sign"),
        ("gaussian", "Gaussian"),
        ("identity", "Identity"),
        (polynomial(COEFFICIENTS), lambda stax: stax.Polynomial(coef=COEFFICIENTS)),
        (activations.ab_relu(-0.2, 1.3), lambda stax: stax.ABRelu(-0.2, 1.3)),
        (activations.rbf(0.6), lambda stax: stax.Rbf(0.6)),
        (activations.exp(0.7, 0.4), lambda stax: stax.Exp(0.7, 0.4)),
        (activations.erf(0.9, 0.7, 0.2), lambda stax: stax.Erf(0.9, 0.7, 0.2)),
        (activations.sin(0.9, 0.7, 0.2), lambda stax: stax.Sin(0.9, 0.7, 0.2)),
        (activations.cos(0.9, 0.7, 0.2), lambda stax: stax.Cos(0.9, 0.7, 0.2)),
        (activations.gaussian(0.9, 0.7), lambda stax: stax.Gaussian(0.9, -0.49)),
        ("sigmoid_like", "Sigmoid_like"),
        ("gabor", "Gabor"),
        (activations.exp_normalized(0.8, -0.6), lambda stax: stax.ExpNormalized(0.8, -0.6)),
        (activations.monomial(3), lambda stax: stax.Monomial(3)),
        (jax.nn.sigmoid, lambda stax: stax.ElementwiseNumerical(jax.nn.sigmoid, deg=60)),
    ],
)
def test_mlp_is_that_of_neural_tangents(stax, rng, activation, theirs, depth, w_std, b_std):
    inputs = rng.standard_normal((9, 5)), rng.standard_normal((4, 5))
    act = theirs(stax) if callable(theirs) else getattr(stax, theirs)()
    dense = stax.Dense(1, W_std=w_std, b_std=b_std or None)
    kernel = partial(fx.mlp_kernel, depth=depth, activation=activation, w_std=w_std, b_std=b_std)
    tolerance = 1e-7 if activation is jax.nn.sigmoid else 1e-10
    # Sign takes the root of rounding at each layer there.
    on_diagonal = 2e-2 if activation == "sign" else 1e-4
    expected = stax.serial(*[dense, act] * depth, dense)
    assert_same_kernels(kernel, expected, with_own(inputs), tolerance=tolerance, on_diagonal=on_diagonal)


def test_mlp_in_float32_is_that_of_neural_tangents(stax, rng):
    x1, x2 = (rng.standard_normal((n, 50)).astype(np.float32) for n in (9, 4))
    dense = stax.Dense(1, W_std=1.4, b_std=0.1)
    expected = stax.serial(*[dense, stax.Relu()] * 3, dense)[2](x1, x2, ("nngp", "ntk"))
    actual = fx.mlp_kernel(x1, x2, depth=3, w_std=1.4, b_std=0.1)
    for name in ("nngp", "ntk"):
        assert getattr(actual, name).dtype == jnp.float32
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), rtol=1e-6)


@pytest.mark.parametrize(
    ("padding", "strides", "activation", "pool"),
    [
        ("SAME", None, "relu", "flatten"),
        ("SAME", (2, 1), "erf", "flatten"),
        ("VALID", None, "erf", "flatten"),
        ("CIRCULAR", (2, 1), "relu", "pool"),
    ],
)
def test_convolutional_kernel_is_that_of_neural_tangents(stax, images, padding, strides, activation, pool):
    ours, theirs = {
        "flatten": (Flatten(), stax.Flatten()),
        "pool": (GlobalAveragePool(), stax.GlobalAvgPool()),
    }[pool]
    act = {"relu": stax.Relu, "erf": stax.Erf}[activation]()
    network = Serial(
        Conv((3, 3), strides, padding, w_std=1.3, b_std=0.2),
        Activate(activation),
        Conv((3, 2), padding=padding, w_std=1.1),
        Activate(activation),
        ours,
        Dense(1.2, 0.1),
    )
    expected = stax.serial(
        stax.Conv(1, (3, 3), strides, padding, 1.3, 0.2),
        act,
        stax.Conv(1, (3, 2), None, padding, 1.1, None),
        act,
        theirs,
        stax.Dense(1, 1.2, 0.1),
    )
    assert_same_kernels(partial(fx.network_kernel, network), expected, with_own(images), on_diagonal=1e-7)


def test_a_single_position(stax, rng):
    inputs = rng.standard_normal((3, 1, 4)), rng.standard_normal((2, 1, 4))
    network = Serial(Conv((3,)), Activate("relu"), GlobalAveragePool(), Dense())
    conv = stax.Conv(1, (3,), padding="SAME", dimension_numbers=("NHC", "HIO", "NHC"))
    expected = stax.serial(conv, stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1))
    assert_same_kernels(partial(fx.network_kernel, network), expected, with_own(inputs), on_diagonal=1e-7)


@pytest.mark.filterwarnings("ignore:`FanIn` layers assume")
def test_residual_and_layer_norm_are_those_of_neural_tangents(stax, images):
    network = Serial(
        Conv((3, 3), w_std=1.3, b_std=0.2),
        Residual(Serial(Activate("relu"), Conv((3, 3), w_std=1.3, b_std=0.1))),
        LayerNorm(),
        Activate("gelu"),
        Dense(),
        GlobalAveragePool(),
        Activate("relu"),
        Residual(Dense(1.1, 0.2), Dense(0.7)),
        Activate("relu"),
        Dense(1.5),
    )
    expected = stax.serial(
        stax.Conv(1, (3, 3), padding="SAME", W_std=1.3, b_std=0.2),
        stax.FanOut(2),
        stax.parallel(
            stax.Identity(), stax.serial(stax.Relu(), stax.Conv(1, (3, 3), padding="SAME", W_std=1.3, b_std=0.1))
        ),
        stax.FanInSum(),
        stax.LayerNorm(),
        stax.Gelu(),
        stax.Dense(1),
        stax.GlobalAvgPool(),
        stax.Relu(),
        stax.FanOut(2),
        stax.parallel(stax.Dense(1, 1.1, 0.2), stax.Dense(1, 0.7)),
        stax.FanInSum(),
        stax.Relu(),
        stax.Dense(1, 1.5),
    )
    assert_same_kernels(partial(fx.network_kernel, network), expected, with_own(images), on_diagonal=1e-7)


def test_tiles_change_nothing(images):
    network = Serial(Conv((3, 3)), GlobalAveragePool(), Activate("relu"), Dense(1.0, 0.1))
    for inputs in with_own(images):
        for whole, tiled in zip(
            fx.network_kernel(network, *inputs), fx.network_kernel(network, *inputs, batch_size=2), strict=True
        ):
            np.testing.assert_allclose(tiled, whole, rtol=1e-12)


def test_convolution_of_the_finite_network(rng):
    """The NTK of a network of width 256, averaged over draws, by the library's empirical NTK."""
    x = rng.standard_normal((3, 5, 2))
    width = 256
    num_draws = 24

    def network(params, x):
        hidden = x
        for weights in params[:-1]:
            size, channels = weights.shape[:2]
            padded = jnp.pad(hidden, [(0, 0), (1, 1), (0, 0)])
            windows = jnp.stack([padded[:, k : k + hidden.shape[1]] for k in range(size)], 2)
            hidden = jax.nn.relu(jnp.einsum("npkc,kco->npo", windows, weights) * np.sqrt(2 / (size * channels)))
        return jnp.mean(hidden, axis=1) @ params[-1] / np.sqrt(width)

    def draw(key):
        shapes = [(3, 2, width), (3, width, width), (width, 1)]
        return [jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key, 3), shapes, strict=True)]

    kernels = [
        fx.empirical_ntk(network, draw(key), x, trace_axes=(1,))
        for key in jax.random.split(jax.random.key(0), num_draws)
        for key in jax.random.split(jax.random.key(0), num_draws)
    ]
    layers = [Conv((3,), w_std=np.sqrt(2)), Activate("relu")] * 2
    analytic = fx.network_kernel(Serial(*layers, GlobalAveragePool(), Dense()), x).ntk
    errors = np.std(kernels, axis=0) / np.sqrt(num_draws)
    assert np.max(np.abs(np.mean(kernels, axis=0) - analytic) / (errors + 0.01 * analytic)) < 4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dense(-1.0), ValueError, "w_std must be a finite number that is not negative, got -1.0"),
        (lambda: Dense(1.0, np.nan), ValueError, "b_std must be"),
        (lambda: Dense("1"), TypeError, "w_std must be a real number, got '1'"),
        (lambda: Dense(jnp.float64(-1.0)), ValueError, "w_std must be a finite number that is not negative"),
        pytest.param(
            lambda: Serial(Dense(), "relu"),
            TypeError,
            "Serial takes layers such as Dense",
            marks=pytest.mark.wrong_types,
        ),
        (lambda: Serial(Dense, Activate()), TypeError, "Serial takes layers such as Dense"),
        pytest.param(lambda: Conv(3), TypeError, "filter_shape must be a tuple", marks=pytest.mark.wrong_types),
        (lambda: Conv((3, 0)), ValueError, "filter_shape must be at least 1"),
        (lambda: Conv((3, 3), (1,)), ValueError, "filter_shape and strides must have one number"),
        (lambda: Conv((3,), padding="FULL"), ValueError, "padding must be one of SAME, VALID, CIRCULAR"),
        (lambda: Activate("tanhh"), ValueError, "activation must be one of"),
        (lambda: LayerNorm(-1.0), ValueError, "eps must be"),
        (lambda: Resize((2,), "area"), ValueError, "method must be one of nearest, linear, cubic, .*, got 'area'"),
        (lambda: Index((slice("a", 2),)), TypeError, "indices must be integers and slices of integers"),
        (lambda: Index(((2, 2), 0)), TypeError, "indices must be integers and slices of integers"),
        (lambda: Index((slice(0, 4, 0),)), ValueError, "indices must be slices with a step that is not zero"),
    ],
)
def test_bad_layers_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ([Activate(), Dense()], (2, 3), r"Activate\('relu'\) needs Gaussian inputs"),
        ([Dense(), Activate(), Activate(), Dense()], (2, 3), "needs Gaussian inputs"),
        ([Dense(), Activate(), LayerNorm(), Dense()], (2, 3), "LayerNorm needs Gaussian inputs"),
        ([Conv((3,)), Flatten(), Activate(), Dense()], (2, 4, 3), "needs Gaussian inputs"),
        ([Conv((3,)), Dense()], (2, 4, 3), "network must end without axes of positions, it has 1"),
        ([Conv((3, 3)), Flatten(), Dense()], (2, 4, 3), r"filter_shape \(3, 3\) does not fit inputs with 1 axes"),
        ([Conv((5,), padding="VALID"), Flatten(), Dense()], (2, 4, 3), r"filter_shape \(5,\) is larger than the image"),
        ([Dense(), Flatten()], (2, 3), "Flatten needs inputs with positions"),
        ([Conv((3,)), Flatten(), GlobalAveragePool()], (2, 4, 3), "GlobalAveragePool needs inputs with positions"),
        (
            [Residual(Serial(Dense(), Activate())), Dense()],
            (2, 3),
            "all branches of a Sum but one must end with",
        ),
        (
            [Residual(Conv((3,), (2,)), Conv((3,))), Flatten(), Dense()],
            (2, 4, 3),
            r"branches of a Sum differ in their positions: \(2,\) and \(4,\)",
        ),
    ],
)
def test_layers_that_do_not_fit_are_named(rng, layers, shape, message):
    with pytest.raises(ValueError, match=message):
        fx.network_kernel(Serial(*layers), rng.standard_normal(shape))
