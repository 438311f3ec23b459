"""Networks as dicts, files, Flax and Equinox modules: the same outputs everywhere."""

from dataclasses import replace

import chex
import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import fixntk as fx
from fixntk._files import Format, write_arrays

X = np.random.default_rng(0).standard_normal((9, 3))
NETWORKS = pytest.mark.parametrize(
    "network",
    [
        fx.GatedReLUNetwork.sample(jax.random.key(0), 6, 3),
        fx.GatedReLUNetwork.sample(jax.random.key(1), 6, 3, num_outputs=2, intercept=True),
        fx.ReLUNetwork.sample(jax.random.key(2), 6, 3),
        fx.ReLUNetwork.sample(jax.random.key(3), 6, 3, num_outputs=1, intercept=True),
    ],
    ids=["gated", "gated-several", "relu", "relu-column"],
)


@NETWORKS
def test_files_and_dicts_give_the_network_back(tmp_path, network):
    fx.save_network(network, tmp_path / "network.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["network.safetensors"]
    for again in (
        fx.load_network(tmp_path / "network.safetensors"),
        fx.from_dict(fx.to_dict(network), squeeze=network.squeeze),
    ):
        assert type(again) is type(network)
        chex.assert_trees_all_equal(again, network)
        np.testing.assert_array_equal(again(X), network(X))


@NETWORKS
def test_flax_modules_have_the_same_outputs_and_initialise(network):
    module, variables = fx.to_flax(network)
    np.testing.assert_allclose(module.apply(variables, X), network(X), rtol=1e-14)
    fresh = module.init(jax.random.key(5), X)
    chex.assert_trees_all_equal_shapes_and_dtypes(fresh, variables)
    chex.assert_tree_all_finite(fresh)
    assert set(variables["params"]) == set(fx.to_dict(network)) - {"gates"}


@NETWORKS
def test_equinox_modules_have_the_same_outputs_and_fixed_gates(network):
    module = fx.to_equinox(network)
    np.testing.assert_allclose(jax.vmap(module)(X), network(X), rtol=1e-14)
    gradient = equinox.filter_grad(lambda m: jnp.sum(jax.vmap(m)(X) ** 2))(module)
    assert float(jnp.max(jnp.abs(gradient.hidden))) > 0
    if module.gates is not None:
        assert not np.any(gradient.gates)


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path, network = tmp_path / "network.safetensors", fx.ReLUNetwork.sample(jax.random.key(0), 6, 3)
    fx.save_network(network, path)
    before = path.read_bytes()
    for changes in ({"hidden": network.hidden.at[0, 0].set(jnp.nan)}, {"output": network.output[:5]}):
        with pytest.raises(ValueError, match=r"hidden holds 1 NaN|output \(5, 1\)"):
            fx.save_network(replace(network, **changes), path)

    def fail(part, _):
        with part.open("wb") as file:
            file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        fx.save_network(network, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def gated_arrays(**changes):
    return {**fx.to_dict(fx.GatedReLUNetwork.sample(jax.random.key(0), 6, 3)), **changes}


@pytest.mark.parametrize(
    ("fields", "arrays", "message"),
    [
        ({"type": "ReLUNetwork"}, {}, "says 'ReLUNetwork' and holds a GatedReLUNetwork"),
        ({"type": ["GatedReLUNetwork"]}, {}, r"says \['GatedReLUNetwork'\]"),
        ({"squeeze": "True"}, {}, "squeeze must be true or false, got 'True'"),
        ({}, {"gates": np.ones((2, 3))}, r"shapes hidden \(m, d\).*gates \(2, 3\)"),
        ({}, {"output": np.ones((6, 1), np.int64)}, "output must hold floating-point numbers, got int64"),
        ({}, {"output": np.ones((6, 1), bool)}, "output must hold floating-point numbers, got bool"),
        ({}, {"output": np.full((6, 1), np.inf)}, "output holds 6 NaN or infinite"),
        ({}, {"hidden": np.full((6, 3), np.nan)}, "hidden holds 18 NaN or infinite"),
        ({}, {"hidden": np.ones((0, 3)), "output": np.ones((0, 1)), "gates": np.ones((0, 3))}, "is empty"),
        ({}, {"bias\n": np.ones(1)}, r"unknown are 'bias\\n'"),
    ],
)
def test_files_of_no_network_are_one_line_that_names_the_file(tmp_path, fields, arrays, message):
    path = tmp_path / "network.safetensors"
    fields = {"type": "GatedReLUNetwork", "squeeze": True, **fields}
    write_arrays(path, Format("fixntk network", 2), fields, gated_arrays(**arrays))
    with pytest.raises(ValueError, match=message) as caught:
        fx.load_network(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_other_files_are_named(tmp_path):
    path = tmp_path / "network.safetensors"
    for missing in (path, tmp_path):
        with pytest.raises(OSError, match=missing.name):
            fx.load_network(missing)
    save_file(gated_arrays(), path)
    with pytest.raises(ValueError, match="is not the file of a fixntk network"):
        fx.load_network(path)


def test_bad_dicts_are_named():
    arrays = fx.to_dict(fx.ReLUNetwork.sample(jax.random.key(0), 6, 3))
    with pytest.raises(ValueError, match="missing are 'output'; unknown are 'bias'"):
        fx.from_dict({"hidden": arrays["hidden"], "bias": arrays["output"]})
    with pytest.raises(ValueError, match=r"output \(5, 1\)"):
        fx.from_dict({**arrays, "output": arrays["output"][:5]})
    with pytest.raises(ValueError, match="output holds 1 NaN"):
        fx.from_dict({**arrays, "output": np.append(arrays["output"][:5], [[np.nan]], 0)})


@pytest.mark.wrong_types
@pytest.mark.parametrize("export", [fx.to_dict, fx.to_flax, fx.to_equinox], ids=lambda export: export.__name__)
def test_other_objects_than_networks_are_refused_by_name(export):
    with pytest.raises(TypeError, match="network must be a GatedReLUNetwork or a ReLUNetwork, got int"):
        export(3)
