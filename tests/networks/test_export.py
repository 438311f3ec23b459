"""Networks as dicts, files, Flax and Equinox modules: the same outputs everywhere."""

import chex
import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import fixntk as fx

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

    def fail(_, part, metadata):
        part.write_bytes(b"half a file")
        raise OSError(f"disk full: {metadata['type']}")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        fx.save_network(network, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "network.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        fx.load_network(path)
    network = fx.GatedReLUNetwork.sample(jax.random.key(0), 6, 3)
    fx.save_network(network, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        fx.load_network(path)
    arrays = fx.to_dict(network)
    save_file(arrays, path)
    with pytest.raises(ValueError, match="is not the file of a fixntk network"):
        fx.load_network(path)
    says = {"format": "fixntk network", "version": "1", "type": "GatedReLUNetwork", "squeeze": "True"}
    save_file(arrays, path, metadata={**says, "version": "7"})
    with pytest.raises(ValueError, match="has version 7 of the format"):
        fx.load_network(path)
    save_file({**arrays, "gates": arrays["gates"][:2]}, path, metadata=says)
    with pytest.raises(ValueError, match=r"shapes hidden \(m, d\).*gates \(2, 3\)"):
        fx.load_network(path)
    save_file({k: v for k, v in arrays.items() if k != "gates"}, path, metadata=says)
    with pytest.raises(ValueError, match="says GatedReLUNetwork and holds a ReLUNetwork"):
        fx.load_network(path)


def test_bad_dicts_are_named():
    arrays = fx.to_dict(fx.ReLUNetwork.sample(jax.random.key(0), 6, 3))
    with pytest.raises(ValueError, match="missing are output; unknown are bias"):
        fx.from_dict({"hidden": arrays["hidden"], "bias": arrays["output"]})
    with pytest.raises(ValueError, match=r"output \(5, 1\)"):
        fx.from_dict({**arrays, "output": arrays["output"][:5]})
