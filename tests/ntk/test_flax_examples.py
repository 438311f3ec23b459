"""Small networks of the kinds that Flax has examples of: convolutions, a transformer, a VAE, LSTMs, graphs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.ntk import methods

TOKENS, LENGTH, WIDTH = 7, 5, 8


class Digits(nn.Module):
    """Two convolutions with pooling, two dense layers, log-probabilities."""

    @nn.compact
    def __call__(self, images):
        h = images
        for channels in (4, 6):
            h = nn.avg_pool(nn.relu(nn.Conv(channels, (3, 3))(h)), (2, 2), strides=(2, 2))
        h = nn.relu(nn.Dense(9)(h.reshape(len(images), -1)))
        return nn.log_softmax(nn.Dense(3)(h))


class LanguageModel(nn.Module):
    """A causal transformer whose logits are products with its embeddings; tokens of zero are padding."""

    layers: int = 2

    @nn.compact
    def __call__(self, tokens):
        embedding = nn.Embed(TOKENS, WIDTH)
        shifted = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
        h = embedding(shifted) + self.param("positions", nn.initializers.normal(), (1, 2 * LENGTH, WIDTH))[:, :LENGTH]
        seen = nn.combine_masks(nn.make_attention_mask(tokens > 0, tokens > 0), nn.make_causal_mask(tokens))
        for _ in range(self.layers):
            attend = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False, dropout_rate=0.1, deterministic=True)
            h = h + attend(nn.LayerNorm()(h), mask=seen)
            h = h + nn.Dense(WIDTH)(nn.relu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(h))))
        return embedding.attend(nn.LayerNorm()(h)) / WIDTH**0.5


class Autoencoder(nn.Module):
    """Pixels, and mean and log-variance of their code, which is sampled with a key."""

    latents: int = 2

    @nn.compact
    def __call__(self, pixels, key):
        h = nn.relu(nn.Dense(6)(pixels))
        mean, log_variance = nn.Dense(self.latents)(h), nn.Dense(self.latents)(h)
        code = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)
        return {"code": (mean, log_variance), "pixels": nn.Dense(pixels.shape[-1])(nn.relu(nn.Dense(6)(code)))}


class Translator(nn.Module):
    """An LSTM reads a sequence up to its end; another one, which starts at its state, gives logits."""

    @nn.compact
    def __call__(self, inputs):
        lengths = jnp.argmax(inputs["source"] == 1, axis=1)
        source, target = (jax.nn.one_hot(inputs[name], TOKENS, dtype=jnp.float64) for name in ("source", "target"))
        state, _ = nn.RNN(nn.LSTMCell(WIDTH, param_dtype=jnp.float64), return_carry=True)(source, seq_lengths=lengths)
        return nn.Dense(TOKENS)(
            nn.RNN(nn.OptimizedLSTMCell(WIDTH, param_dtype=jnp.float64))(target, initial_carry=state)
        )


class Molecules(nn.Module):
    """Messages along edges, added up at nodes, then the mean over the nodes of one graph."""

    @nn.compact
    def __call__(self, graph):
        nodes, edges = nn.Dense(WIDTH)(graph["nodes"]), nn.Dense(WIDTH)(graph["edges"])
        for _ in range(2):
            ends = [nodes[graph[name]] for name in ("senders", "receivers")]
            edges = edges + nn.relu(nn.Dense(WIDTH)(jnp.concatenate([edges, *ends], axis=-1)))
            messages = jax.ops.segment_sum(edges, graph["receivers"], len(nodes))
            nodes = nodes + nn.relu(nn.Dense(WIDTH)(jnp.concatenate([nodes, messages], axis=-1)))
            nodes, edges = nn.LayerNorm()(nodes), nn.LayerNorm()(edges)
        return nn.Dense(2)(nodes.mean(axis=0))


def draw(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape))


def draw_tokens(rng, *shape):
    return jnp.asarray(rng.integers(2, TOKENS, shape), jnp.int32)


def digits(rng):
    return Digits().apply, Digits().init, draw(rng, 3, 8, 8, 1)


def language_model(rng):
    tokens = draw_tokens(rng, 3, LENGTH).at[1, 3:].set(0)
    return LanguageModel().apply, LanguageModel().init, tokens


def autoencoder(rng):
    model, x = Autoencoder(), {"pixels": draw(rng, 3, 10), "key": jax.random.split(jax.random.key(1), 3)}

    def apply(params, x):
        return jax.vmap(lambda pixels, key: model.apply(params, pixels, key))(x["pixels"], x["key"])

    return apply, lambda key, x: model.init(key, x["pixels"], x["key"][0]), x


def translator(rng):
    ends = jnp.array([2, 4, 3])[:, None] == jnp.arange(LENGTH)
    source = jnp.where(ends, 1, draw_tokens(rng, 3, LENGTH))
    return Translator().apply, Translator().init, {"source": source, "target": draw_tokens(rng, 3, 3)}


def molecules(rng):
    model = Molecules()
    graphs = {"nodes": draw(rng, 3, 4, 3), "edges": draw(rng, 3, 6, 2)}
    graphs |= {name: jnp.asarray(rng.integers(0, 4, (3, 6))) for name in ("senders", "receivers")}
    apply = jax.vmap(model.apply, in_axes=(None, 0))
    return apply, lambda key, x: model.init(key, jax.tree.map(lambda each: each[0], x)), graphs


def contracted_jacobians(f, params, x):
    """The kernels (n, n), of the mean over outputs, of each array that f returns."""

    def contract(jacobians, output):
        axes = output.shape
        whole = jnp.concatenate([leaf.reshape(*axes, -1) for leaf in jax.tree.leaves(jacobians)], axis=-1)
        rows = whole.reshape(axes[0], -1, whole.shape[-1])
        return jnp.einsum("iok,jok->ij", rows, rows) / rows.shape[1]

    outputs, jacobian = jax.eval_shape(f, params, x), jax.jit(jax.jacrev(f))(params, x)
    return jax.tree.map(lambda output, of: contract(of, output), outputs, jacobian)


@pytest.mark.parametrize("example", [digits, language_model, autoencoder, translator, molecules])
def test_kernels_are_contracted_jacobians_and_weights_are_structured(monkeypatch, rng, example):
    f, init, x = example(rng)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), init(jax.random.key(0), x))
    monkeypatch.setattr(methods, "_SHARE_UNROLLED", 10.0)  # Loops of so small a network would stay as they are.
    plans = fx.ntk_plan(f, params, x, outputs="trace", method="structured")
    ways = {
        each.path: each.way
        for plan in jax.tree.leaves(plans, is_leaf=lambda plan: isinstance(plan, fx.NTKPlan))
        for each in plan.parameters
        if each.path.endswith(("kernel", "embedding"))
    }
    assert len(ways) > 3
    assert not [way for way in ways.values() if way.startswith("Jacobian")]
    kernels = fx.empirical_ntk(f, params, x, outputs="trace", method="structured")
    expected = contracted_jacobians(f, params, x)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12), kernels, expected)
