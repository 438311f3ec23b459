import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.gates import masks as gates


def test_gates_are_standard_normal(key):
    gates = fx.sample_gates(key, 20_000, 3)
    assert gates.shape == (20_000, 3)
    np.testing.assert_allclose(jnp.mean(gates, axis=0), 0, atol=4 / np.sqrt(20_000))
    np.testing.assert_allclose(jnp.cov(gates.T), np.eye(3), atol=0.05)


def test_gates_take_the_dtype_asked_for(key, dtype):
    assert fx.sample_gates(key, 4, 2, dtype=dtype).dtype == dtype


@pytest.mark.parametrize(("num_gates", "num_features", "name"), [(0, 2, "num_gates"), (3, 0, "num_features")])
def test_sampling_nothing_is_an_error(key, num_gates, num_features, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        fx.sample_gates(key, num_gates, num_features)


@pytest.mark.wrong_types
@pytest.mark.parametrize(("num_gates", "num_features", "name"), [(2.5, 2, "num_gates"), (3, "a", "num_features")])
def test_sampling_a_part_of_a_gate_is_an_error(key, num_gates, num_features, name):
    with pytest.raises(TypeError, match=f"{name} must be an integer, got"):
        fx.sample_gates(key, num_gates, num_features)


def test_masks_are_the_signs_of_inner_products(rng, dtype):
    x, gates = rng.standard_normal((7, 3)).astype(dtype), rng.standard_normal((5, 3)).astype(dtype)
    masks = fx.activation_masks(x, gates)
    assert masks.dtype == bool
    assert all(bool(masks[i, p]) == (x[i] @ gates[p] >= 0) for i in range(7) for p in range(5))


def test_zero_rows_and_boundary_rows_are_active():
    masks = fx.activation_masks(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [-1.0, 0.0]]))
    np.testing.assert_array_equal(masks, [[True, True], [True, False]])


def test_masks_under_jit_and_vmap(rng):
    x, gates = rng.standard_normal((3, 7, 2)), rng.standard_normal((5, 2))
    stacked = jax.jit(jax.vmap(fx.activation_masks, in_axes=(0, None)))(x, gates)
    np.testing.assert_array_equal(stacked[1], fx.activation_masks(x[1], gates))


@pytest.fixture
def tiled(monkeypatch):
    """Masks computed a few rows at a time, the last ones overlapping."""
    monkeypatch.setattr(gates, "_TILE_BYTES", 3 * 5 * 8)


@pytest.mark.usefixtures("tiled")
def test_masks_in_tiles_are_the_same_alone_and_under_jit_and_vmap(rng):
    x, normals = rng.standard_normal((3, 7, 2)), rng.standard_normal((5, 2))
    expected = x @ normals.T >= 0
    np.testing.assert_array_equal(fx.activation_masks(x[0], normals), expected[0])
    np.testing.assert_array_equal(jax.jit(jax.vmap(fx.activation_masks, in_axes=(0, None)))(x, normals), expected)


@pytest.mark.usefixtures("tiled")
def test_masks_in_tiles_let_gradients_through(rng):
    x, normals = jnp.asarray(rng.standard_normal((7, 2))), rng.standard_normal((5, 2))
    gradient = jax.grad(lambda x: jnp.sum(fx.activation_masks(x, normals) * (x @ normals.T)))(x)
    np.testing.assert_allclose(gradient, (np.asarray(x) @ normals.T >= 0) @ normals, rtol=1e-12)


def test_masks_take_memory_for_themselves_and_a_tile():
    structs = [jax.ShapeDtypeStruct((20_000, 5), jnp.float32)] * 2
    memory = jax.jit(fx.activation_masks).lower(*structs).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 20_000**2 + 2 * gates._TILE_BYTES


def test_masks_over_memory_say_how_much_they_need_and_what_lowers_it():
    # Shapes alone cost nothing here: a broadcast has one row in memory.
    x = jnp.broadcast_to(jnp.ones(1), (2_000_000, 1))
    with pytest.raises(ValueError, match=r"2000000×2000000 masks needs 3\.6 TiB, .* leaves .*pack_masks"):
        fx.activation_masks(x, x)


@pytest.mark.wrong_types
@pytest.mark.parametrize("value", [np.ones((1, 2), complex), jnp.ones((1, 2), complex), jax.random.key(0), None])
def test_complex_numbers_and_keys_are_a_type_error(value):
    with pytest.raises(TypeError, match="x must be a real numeric array, got dtype"):
        fx.activation_masks(value, np.ones((1, 2)))


@pytest.mark.parametrize(
    ("x", "gates", "message"),
    [
        (np.ones((3, 2)), np.ones((4, 3)), r"same number of columns, got shapes \(3, 2\) and \(4, 3\)"),
        (np.ones(3), np.ones((4, 3)), r"x must have 2 dimensions, got shape \(3,\)"),
        (np.full((3, 2), np.nan), np.ones((4, 2)), "x holds 6 NaN or infinite"),
        (np.ones((3, 2)), np.full((4, 2), np.inf), "gates holds 8 NaN or infinite"),
        (np.ones((0, 2)), np.ones((4, 2)), r"x is empty: shape \(0, 2\)"),
    ],
)
def test_masks_of_bad_input_name_the_argument(x, gates, message):
    with pytest.raises(ValueError, match=message):
        fx.activation_masks(x, gates)


@pytest.mark.wrong_types
def test_masks_of_text_are_a_type_error():
    with pytest.raises(TypeError, match="x must be a real numeric array, got dtype <U1"):
        fx.activation_masks([["a", "b"]], np.ones((1, 2)))


def test_packed_masks_unpack_to_the_same(rng):
    masks = rng.random((6, 13)) < 0.5
    packed = fx.pack_masks(masks)
    assert packed.shape == (6, 2)
    assert packed.dtype == jnp.uint8
    np.testing.assert_array_equal(np.unpackbits(np.asarray(packed), axis=1, count=13).astype(bool), masks)


def test_merging_keeps_each_mask_once_and_the_kernel_unchanged(rng):
    x = rng.standard_normal((4, 2))
    gates = rng.standard_normal((60, 2))
    masks, weights = fx.activation_masks(x, gates), rng.random(60)
    merged, summed = fx.merge_duplicate_masks(masks, gates, weights)
    columns = np.asarray(merged.masks)
    assert np.unique(columns, axis=1).shape == columns.shape
    assert columns.shape[1] < 60
    np.testing.assert_array_equal(fx.activation_masks(x, merged.gates), merged.masks)
    np.testing.assert_allclose(fx.masked_gram(summed, columns, x), fx.masked_gram(weights, masks, x), rtol=1e-12)


def test_merging_without_weights_gives_each_gate_its_share(rng):
    gates = np.repeat(rng.standard_normal((2, 2)), [3, 1], axis=0)
    masks = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], bool)
    _, summed = fx.merge_duplicate_masks(masks, gates)
    np.testing.assert_allclose(summed, [0.75, 0.25])


def test_merging_needs_one_weight_a_gate():
    with pytest.raises(ValueError, match=r"one number of gates, got shapes \(2, 3\), \(2, 2\) and \(3,\)"):
        fx.merge_duplicate_masks(np.ones((2, 3), bool), np.ones((2, 2)))
