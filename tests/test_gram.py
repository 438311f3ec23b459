from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk import gram


@pytest.fixture
def problem(rng, dtype):
    masks, x = rng.random((11, 21)) < 0.5, rng.standard_normal((11, 3)).astype(dtype)
    return rng.random(21).astype(dtype), masks, x


def one_by_one(weights, masks1, x1, masks2, x2):
    total = np.zeros((x1.shape[0], x2.shape[0]))
    for p, weight in enumerate(np.asarray(weights, np.float64)):
        total += weight * (masks1[:, [p]] * x1.astype(np.float64)) @ (masks2[:, [p]] * x2.astype(np.float64)).T
    return total


@pytest.fixture(params=["whole", "tiled", "grouped"])
def tiling(request, monkeypatch):
    """The same in tiles of a few rows or gates as in one piece, also where rows are in groups for several devices."""
    if request.param != "whole":
        monkeypatch.setattr(gram, "TILE_BYTES", 700)
        monkeypatch.setattr(jax, "device_count", lambda: 22 if request.param == "grouped" else 1)
        jax.clear_caches()
        yield
        jax.clear_caches()
    else:
        yield


@pytest.fixture(params=["bool", "packed", "numbers"])
def encode(request):
    return {"bool": lambda masks: masks, "packed": fx.pack_masks, "numbers": lambda m: m.astype(float)}[request.param]


@pytest.mark.usefixtures("tiling")
def test_masked_gram_is_the_sum_of_the_gates_gram_matrices(problem, encode, tolerance):
    weights, masks, x = problem
    kernel = fx.masked_gram(weights, encode(masks), x)
    assert kernel.dtype == x.dtype
    np.testing.assert_allclose(kernel, one_by_one(weights, masks, x, masks, x), atol=tolerance * 10)


@pytest.mark.usefixtures("tiling")
def test_masked_gram_in_blocks_of_rows_is_the_sum_too(problem, encode, tolerance, monkeypatch):
    weights, masks, x = problem
    monkeypatch.setattr(gram, "_LEAST_HALVED_ROWS", 8)
    kernel = fx.masked_gram(weights, encode(masks), x)
    np.testing.assert_allclose(kernel, one_by_one(weights, masks, x, masks, x), atol=tolerance * 10)
    np.testing.assert_array_equal(kernel, kernel.T)


@pytest.mark.parametrize(("num_rows", "num_devices", "share"), [(512, 1, 0.625), (511, 1, 1), (512, 2, 1)])
def test_a_symmetric_kernel_takes_fewer_products(rng, num_rows, num_devices, share, monkeypatch):
    called = []
    monkeypatch.setattr(jax, "device_count", lambda: num_devices)

    def record(*operands, **options):
        called.append((operands, options))
        return jnp.zeros((num_rows, num_rows))

    monkeypatch.setattr(gram, "_symmetric_gram", record)
    counted = gram.computed_share(num_rows)
    fx.masked_gram(np.ones(64), rng.random((num_rows, 64)) < 0.5, rng.standard_normal((num_rows, 3)))
    ((weights, masks, x), options) = called[0]
    monkeypatch.undo()

    def flops(function, *operands, **static):
        return jax.jit(function, static_argnames=tuple(static)).lower(*operands, **static).cost_analysis()["flops"]

    whole = flops(gram._masked_gram, weights, masks, x, masks, x)
    assert flops(gram._symmetric_gram, weights, masks, x, **options) == pytest.approx(share * whole, rel=0.05)
    assert counted == share


@pytest.mark.usefixtures("tiling")
def test_masked_gram_between_two_sets(problem, rng, encode, tolerance):
    weights, masks, x = problem
    masks2, x2 = rng.random((4, 21)) < 0.5, rng.standard_normal((4, 3)).astype(x.dtype)
    kernel = fx.masked_gram(weights, encode(masks), x, encode(masks2), x2)
    np.testing.assert_allclose(kernel, one_by_one(weights, masks, x, masks2, x2), atol=tolerance * 10)


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("columns", [(), (1,), (4,)])
def test_operator_product_is_the_dense_product(problem, rng, encode, tolerance, columns):
    weights, masks, x = problem
    operator = fx.MaskedGram(weights, encode(masks), x)
    vectors = rng.standard_normal((11, *columns)).astype(x.dtype)
    product = operator @ vectors
    assert product.shape == vectors.shape
    np.testing.assert_allclose(product, one_by_one(weights, masks, x, masks, x) @ vectors, atol=tolerance * 50)


@pytest.mark.usefixtures("tiling")
def test_operator_parts_are_those_of_the_dense_matrix(problem, encode, tolerance):
    weights, masks, x = problem
    operator = fx.MaskedGram(weights, encode(masks), x)
    expected = one_by_one(weights, masks, x, masks, x)
    assert operator.shape == (11, 11)
    np.testing.assert_allclose(operator.to_dense(), expected, atol=tolerance * 10)
    np.testing.assert_allclose(operator.diagonal(), np.diag(expected), atol=tolerance * 10)
    tiles = list(operator.tiles(4))
    assert [rows for rows, _ in tiles] == [slice(0, 4), slice(4, 8), slice(8, 11)]
    np.testing.assert_allclose(np.vstack([block for _, block in tiles]), expected, atol=tolerance * 10)


@pytest.mark.usefixtures("tiling")
def test_apply_and_adjoint_are_adjoint_and_as_defined(problem, rng, tolerance):
    _, masks, x = problem
    weights, residual = rng.standard_normal((21, 3, 2)).astype(x.dtype), rng.standard_normal((11, 2)).astype(x.dtype)
    outputs = gram.masked_apply(jnp.asarray(masks), jnp.asarray(x), jnp.asarray(weights))
    expected = sum((masks[:, [p]] * x) @ weights[p] for p in range(21))
    np.testing.assert_allclose(outputs, expected, atol=tolerance * 20)
    adjoint = gram.masked_adjoint(jnp.asarray(masks), jnp.asarray(x), jnp.asarray(residual), 21)
    np.testing.assert_allclose(jnp.vdot(adjoint, weights), jnp.vdot(residual, outputs), rtol=tolerance * 10)


def test_operator_goes_through_jit_vmap_and_grad(rng):
    masks, x, vector = rng.random((6, 5)) < 0.5, rng.standard_normal((6, 2)), rng.standard_normal(6)
    stacked = rng.random((3, 5))
    operators = jax.vmap(lambda w: fx.MaskedGram(w, masks, x))(stacked)
    products = jax.jit(jax.vmap(lambda operator: operator @ vector))(operators)
    np.testing.assert_allclose(products[2], fx.masked_gram(stacked[2], masks, x) @ vector, rtol=1e-12)
    gradient = jax.grad(lambda w: vector @ (fx.MaskedGram(w, masks, x) @ vector))(jnp.asarray(stacked[0]))
    np.testing.assert_allclose(gradient, np.sum((masks.T @ (x * vector[:, None])) ** 2, axis=1), rtol=1e-12)


def test_zero_rows_and_columns_change_nothing(rng):
    weights, masks, x = rng.random(5), rng.random((6, 5)) < 0.5, rng.standard_normal((6, 2))
    padded = fx.masked_gram(weights, np.vstack([masks, np.ones((2, 5), bool)]), np.pad(x, ((0, 2), (0, 3))))
    np.testing.assert_allclose(padded, np.pad(fx.masked_gram(weights, masks, x), (0, 2)), atol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks1": np.ones((3, 4), bool)}, r"masks1 must have 2 columns, one for each gate, got shape \(3, 4\)"),
        ({"masks1": np.ones((5, 2), bool)}, r"masks1 and x1 must have the same number of rows"),
        ({"masks1": np.zeros((3, 0), bool), "weights": np.ones(1)}, "masks1 holds no masks"),
        ({"masks1": np.full((3, 2), 2.0)}, "masks1 must be bool or 0/1"),
        ({"masks1": np.ones((3, 2), np.uint8)}, "masks1 of dtype uint8 are taken as packed"),
        ({"x1": np.full((3, 2), np.inf)}, "x1 holds 6 NaN or infinite"),
        ({"weights": np.ones((2, 1))}, r"weights must have 1 dimensions"),
        ({"x2": np.ones((3, 2))}, "masks2 and x2 must be given together"),
        ({"masks2": np.ones((3, 2), bool), "x2": np.ones((3, 4))}, "x1 and x2 must have the same number of columns"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {"weights": np.ones(2), "masks1": np.ones((3, 2), bool), "x1": np.ones((3, 2))}
    with pytest.raises(ValueError, match=message):
        fx.masked_gram(**{**good, **change})


def test_results_over_memory_say_what_to_use_instead():
    # Shapes alone cost nothing here: a broadcast has one row in memory.
    x = jnp.broadcast_to(jnp.ones(1), (2_000_000, 1))
    masks = jnp.broadcast_to(jnp.ones(1, bool), (2_000_000, 1))
    with pytest.raises(ValueError, match=r"2000000×2000000 kernel matrix needs 58\.2 TiB, .* leaves .*MaskedGram"):
        fx.masked_gram(jnp.ones(1), masks, x)


def test_operator_products_need_matching_rows(rng):
    operator = fx.MaskedGram(np.ones(2), np.ones((3, 2), bool), rng.standard_normal((3, 2)))
    with pytest.raises(ValueError, match="x and vectors must have the same number of rows"):
        operator @ np.ones(4)


def temporary_bytes(function, *shapes):
    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return jax.jit(function).lower(*structs).compile().memory_analysis().temp_size_in_bytes


def test_a_row_block_of_a_large_kernel_takes_bounded_memory():
    block = (1024 * 20_000) * 4
    for num_gates in (2000, 20_000):
        extra = temporary_bytes(
            gram._masked_gram,
            ((num_gates,), jnp.float32),
            ((1024, num_gates), bool),
            ((1024, 50), jnp.float32),
            ((20_000, num_gates), bool),
            ((20_000, 50), jnp.float32),
        )
        assert extra < 2 * block + 2 * gram.TILE_BYTES < 1.5e9


@pytest.mark.parametrize("num_gates", [2000, 20_000])
def test_a_symmetric_kernel_takes_memory_for_two_and_a_tile(num_gates):
    num_rows = 4096
    extra = temporary_bytes(
        partial(gram._symmetric_gram, num_halvings=2),
        ((num_gates,), jnp.float32),
        ((num_rows, num_gates), bool),
        ((num_rows, 50), jnp.float32),
    )
    # Blocks of the masks are copies.
    assert extra < 2 * num_rows**2 * 4 + 2 * gram.TILE_BYTES + num_rows * num_gates


def test_a_product_with_a_large_kernel_takes_memory_for_a_tile_alone():
    extra = temporary_bytes(
        lambda weights, masks, x, vector: fx.MaskedGram(weights, masks, x) @ vector,
        ((20_000,), jnp.float32),
        ((20_000, 20_000), bool),
        ((20_000, 50), jnp.float32),
        ((20_000,), jnp.float32),
    )
    assert extra < 3 * gram.TILE_BYTES


@pytest.mark.usefixtures("tiling")
def test_a_second_product_compiles_nothing(problem, rng, caplog):
    weights, masks, x = problem
    operator, vector = fx.MaskedGram(weights, masks, x), rng.standard_normal(11).astype(x.dtype)
    group_weights, residual = jnp.ones((21, 3, 2), x.dtype), jnp.ones((11, 2), x.dtype)

    def use():
        products = operator @ vector, operator.diagonal()
        parts = (
            gram.masked_apply(operator.masks, operator.x, group_weights),
            gram.masked_adjoint(operator.masks, operator.x, residual, 21),
        )
        return products, parts

    use()
    with jax.log_compiles():
        use()
    assert not [record.message for record in caplog.records if record.message.startswith("Compiling")]


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("vector_type", ["float64", "int32"])
def test_products_are_of_the_operators_dtype_whatever_the_vectors(rng, encode, vector_type):
    weights, masks, x = rng.random(21), rng.random((11, 21)) < 0.5, rng.standard_normal((11, 3)).astype(np.float32)
    vector = (10 * rng.standard_normal(11)).astype(vector_type)
    product = fx.MaskedGram(weights, encode(masks), x) @ vector
    assert product.dtype == np.float32
    np.testing.assert_allclose(product, one_by_one(weights, masks, x, masks, x) @ vector, atol=1e-2, rtol=1e-4)


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("num_gates", [21, 24])
def test_packed_masks_go_with_bool_ones(rng, num_gates):
    weights, masks, x = rng.random(num_gates), rng.random((11, num_gates)) < 0.5, rng.standard_normal((11, 3))
    masks2, x2 = rng.random((7, num_gates)) < 0.5, rng.standard_normal((7, 3))
    expected = one_by_one(weights, masks, x, masks2, x2)
    np.testing.assert_allclose(fx.masked_gram(weights, fx.pack_masks(masks), x, masks2, x2), expected, atol=1e-12)
    np.testing.assert_allclose(fx.masked_gram(weights, masks, x, fx.pack_masks(masks2), x2), expected, atol=1e-12)


@pytest.mark.parametrize("encode_one", [fx.pack_masks, lambda masks: masks.astype(np.uint8)])
def test_one_gate_has_the_same_masks_packed_or_as_numbers(rng, encode_one):
    masks, x = rng.random((11, 1)) < 0.5, rng.standard_normal((11, 3))
    kernel = fx.masked_gram(np.ones(1), encode_one(masks), x)
    np.testing.assert_allclose(kernel, one_by_one(np.ones(1), masks, x, masks, x), atol=1e-12)
    with pytest.raises(ValueError, match="masks1 must be bool or 0/1"):
        fx.masked_gram(np.ones(1), np.full((11, 1), 7, np.uint8), x)


@pytest.mark.parametrize(
    ("num_rows", "error"),
    [
        pytest.param(2.5, TypeError, marks=pytest.mark.wrong_types),
        pytest.param("a", TypeError, marks=pytest.mark.wrong_types),
        (0, ValueError),
    ],
)
def test_row_blocks_of_no_size_are_refused_at_once(num_rows, error):
    with pytest.raises(error, match="num_rows must be"):
        fx.MaskedGram(np.ones(2), np.ones((3, 2), bool), np.ones((3, 2))).tiles(num_rows)


@pytest.mark.wrong_types
@pytest.mark.parametrize("masks", [None, [["a", "b"]], np.ones((1, 2), complex), [[True], [True, False]]])
def test_masks_that_are_no_numbers_are_named(masks):
    with pytest.raises(TypeError, match=r"masks1 must be a (real )?numeric array, got"):
        fx.masked_gram(np.ones(2), masks, np.ones((1, 2)))
