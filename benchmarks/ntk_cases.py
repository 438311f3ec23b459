"""The cases of `empirical_ntk.py`: networks, inputs, and what each contestant computes.

Each case is built by a function of a contestant and of options. neural-tangents' structured code runs on an old JAX,
without fixntk, so that fixntk is imported where it is used.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STAX = ("fixntk", "structured, JAX 0.4.23", "jacobian, JAX today", "ntvp, JAX today")
JACOBIANS = ("fixntk", "vmapped jacrev, contracted")


class Work(NamedTuple):
    """What a contestant computes.

    ``flops`` are the operations that fixntk counts. ``share`` is the part of the rows that is computed. ``are_equal``
    says that the results of all contestants are the same numbers.
    """

    function: Callable[[], Any]
    flops: float | None = None
    share: float = 1.0
    are_equal: bool = False


class Case(NamedTuple):
    """A case: what builds the work of a contestant, who takes part, and the options; ``small`` ones are for a trial."""

    build: Callable[..., Work]
    contestants: tuple[str, ...]
    options: dict[str, Any]
    small: dict[str, Any]


def import_stax(contestant: str) -> Any:
    if "0.4.23" in contestant:
        # The only part of neural-tangents that needs TensorFlow.
        sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")
        import neural_tangents

        return neural_tangents
    from fixntk.ntk.neural_tangents_compat import import_neural_tangents

    return import_neural_tangents()


def draw(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


# Networks of neural-tangents' stax.


def stax_case(contestant: str, network: str, shape: tuple[int, ...], n: int, outputs: str) -> Work:
    nt = import_stax(contestant)
    initialise, apply, _ = {"mlp": stax_mlp, "cnn": stax_cnn}[network](nt.stax)
    _, params = initialise(jax.random.PRNGKey(0), (n, *shape))
    arguments = draw(1, n, *shape), draw(2, n, *shape), params
    if contestant == "fixntk":
        import fixntk as fx

        kernel = jax.jit(lambda a, b, p: fx.empirical_ntk(apply, p, a, b, outputs=outputs))
        flops = fx.ntk_plan(apply, params, *arguments[:2], outputs=outputs).flops
        return Work(partial(kernel, *arguments), flops)
    implementation = {"structured": 3, "jacobian": 1, "ntvp": 2}[contestant.split(",")[0]]
    traced = (-1,) if outputs == "trace" else ()
    kernel = nt.empirical_ntk_fn(apply, trace_axes=traced, vmap_axes=0, implementation=implementation)
    return Work(partial(jax.jit(kernel), *arguments))


def stax_mlp(stax: Any) -> Any:
    hidden = [layer for _ in range(3) for layer in (stax.Dense(512, b_std=0.1), stax.Relu())]
    return stax.serial(*hidden, stax.Dense(10, b_std=0.1))


def stax_cnn(stax: Any) -> Any:
    hidden = [layer for _ in range(3) for layer in (stax.Conv(32, (3, 3), padding="SAME", b_std=0.1), stax.Relu())]
    return stax.serial(*hidden, stax.GlobalAvgPool(), stax.Dense(10, b_std=0.1))


# Networks against contracted Jacobians.


def jacobian_case(contestant: str, f: Callable[..., Any], params: Any, x: Any, outputs: str) -> Work:
    if contestant == "fixntk":
        import fixntk as fx

        flops = fx.ntk_plan(f, params, x, outputs=outputs).flops
        return Work(lambda: fx.empirical_ntk(f, params, x, outputs=outputs), flops, are_equal=True)
    return Work(lambda: contracted_jacobians(f, params, x, outputs), are_equal=True)


@partial(jax.jit, static_argnums=(0, 3))
def contracted_jacobians(f: Callable[..., Any], params: Any, x: Any, outputs: str) -> Any:
    jacobians = jax.vmap(lambda row: jax.jacrev(lambda p: f(p, row[None])[0])(params))(x)
    rows = [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jacobians)]
    subscripts, scale = ("iop,jqp->ijoq", 1) if outputs == "full" else ("iop,jop->ij", rows[0].shape[1])
    precision = jax.lax.Precision.HIGHEST
    return sum(jnp.einsum(subscripts, row, row, precision=precision) for row in rows) / scale


# Sizes of the transformer: numbers of features, of heads of attention, of layers and of outputs.
WIDTH = 64
HEADS = 4
LAYERS = 3
LOGITS = 8


def transformer_case(contestant: str, kind: str, num_tokens: int, length: int, n: int, outputs: str) -> Work:
    """Kinds: plain, scaled (w/√n and one weight for queries, keys and values), tied (also scaled), scan."""
    keys = iter(jax.random.split(jax.random.PRNGKey(0), 40))

    def weight(rows: int, columns: int) -> Any:
        drawn = jax.random.normal(next(keys), (rows, columns))
        return drawn if kind in ("scaled", "tied") else drawn / rows**0.5

    def layer() -> dict[str, Any]:
        sizes = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
        drawn = {name: weight(*size) for name, size in sizes.items()}
        if kind not in ("scaled", "tied"):
            drawn |= {name: weight(WIDTH, WIDTH) for name in ("query", "key", "value")}
            del drawn["qkv"]
        return drawn

    layers: Any = [layer() for _ in range(LAYERS)]
    if kind == "scan":
        layers = jax.tree.map(lambda *each: jnp.stack(each), *layers)
    params = {"table": jax.random.normal(next(keys), (num_tokens, WIDTH)), "layers": layers}
    params["positions"] = jax.random.normal(next(keys), (length, WIDTH))
    if kind != "tied":
        params["readout"] = weight(WIDTH, LOGITS)
    x = jax.random.randint(next(keys), (n, length), 0, num_tokens)
    return jacobian_case(contestant, partial(transformer, kind), params, x, outputs)


def transformer(kind: str, params: Any, tokens: Any) -> Any:
    """Logits (n, LOGITS) of the last of (n, length) tokens."""
    h, scaled = params["table"][tokens] + params["positions"], kind in ("scaled", "tied")

    def block(h: Any, layer: Any) -> tuple[Any, None]:
        weights = {name: weight / weight.shape[0] ** 0.5 if scaled else weight for name, weight in layer.items()}
        parts = jnp.split(weights["qkv"], 3, axis=1) if scaled else [weights[k] for k in ("query", "key", "value")]
        normal = jax.nn.standardize(h)
        query, key, value = ((normal @ part).reshape(*h.shape[:2], HEADS, -1) for part in parts)
        scores = jnp.einsum("nthd,nshd->nhts", query, key) / query.shape[-1] ** 0.5
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        attention = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        h = h + jnp.einsum("nhts,nshd->nthd", attention, value).reshape(h.shape) @ weights["out"]
        return h + jax.nn.gelu(jax.nn.standardize(h) @ weights["up"]) @ weights["down"], None

    if kind == "scan":
        h, _ = jax.lax.scan(block, h, params["layers"])
    else:
        for layer in params["layers"]:
            h, _ = block(h, layer)
    last = jax.nn.standardize(h[:, -1])
    return (last @ params["table"].T)[:, :LOGITS] / WIDTH**0.5 if kind == "tied" else last @ params["readout"]


def resnet_case(contestant: str, width: int, size: int, n: int) -> Work:
    """The shape of ResNet-18: a first convolution and four stages of two blocks, without normalisation."""
    keys = iter(jax.random.split(jax.random.PRNGKey(0), 40))

    def filters(window: int, before: int, after: int) -> Any:
        return jax.random.normal(next(keys), (window, window, before, after)) * (2 / (window**2 * before)) ** 0.5

    params: dict[str, Any] = {"first": filters(3, 3, width), "blocks": []}
    before = width
    for stage in range(4):
        after = width * 2**stage
        for number in range(2):
            block = {"one": filters(3, before, after), "two": filters(3, after, after)}
            if number == 0 and stage:
                block["shortcut"] = filters(1, before, after)
            params["blocks"].append(block)
            before = after
    params["readout"] = jax.random.normal(next(keys), (before, 10)) / before**0.5
    return jacobian_case(contestant, resnet, params, draw(1, n, size, size, 3), "trace")


def resnet(params: Any, images: Any) -> Any:
    def convolve(h: Any, filters: Any, stride: int = 1) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(h, filters, (stride, stride), "SAME", dimension_numbers=numbers)

    h = jax.nn.relu(convolve(images, params["first"]))
    for block in params["blocks"]:
        stride = 2 if "shortcut" in block else 1
        inner = convolve(jax.nn.relu(convolve(h, block["one"], stride)), block["two"])
        h = jax.nn.relu((convolve(h, block["shortcut"], stride) if stride == 2 else h) + inner)
    return h.mean(axis=(1, 2)) @ params["readout"]


# Without the kernel matrix.


def mlp(params: Any, x: Any) -> Any:
    for weight in params[:-1]:
        x = jax.nn.relu(x @ weight)
    return x @ params[-1]


def mlp_params(*sizes: int) -> list[Any]:
    keys = jax.random.split(jax.random.PRNGKey(0), len(sizes) - 1)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [jax.random.normal(key, (before, after)) * (2 / before) ** 0.5 for key, before, after in pairs]


def projection_case(contestant: str, sizes: tuple[int, ...], n: int, dim: int, n_dense: int) -> Work:
    """Projected gradients; the dense product is measured on ``n_dense`` rows, its time counts in proportion."""
    params, x = mlp_params(*sizes), draw(1, n, sizes[0])
    if contestant == "fixntk":
        import fixntk as fx

        key = jax.random.key(0)
        return Work(lambda: fx.projected_gradients(mlp, params, x, dim=dim, key=key))
    # One block of the matrix serves for all parameters: the whole matrix may not fit, and drawing it is not counted.
    rows = 4096
    block = draw(2, rows, dim)

    @jax.jit
    def project(params: Any, x: Any) -> Any:
        gradients = jax.vmap(lambda row: jax.grad(lambda p: mlp(p, row[None])[0, 0])(params))(x)
        flat = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in gradients], axis=1)
        flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % rows))).reshape(len(x), -1, rows)
        start, parts = jnp.zeros((len(x), dim)), flat.swapaxes(0, 1)
        return jax.lax.scan(lambda total, part: (total + part @ block, None), start, parts)[0]

    return Work(lambda: project(params, x[:n_dense]), share=n_dense / n)


def spectrum_case(contestant: str, sizes: tuple[int, ...], n: int, num: int) -> Work:
    """The leading eigenvalues, which are the result, to a relative error of 1e-4."""
    import fixntk as fx

    params, x = mlp_params(*sizes), draw(1, n, sizes[0])
    if contestant == "fixntk":
        return Work(lambda: fx.ntk_spectrum(mlp, params, x, num=num, tol=1e-5).eigenvalues, are_equal=True)

    def dense() -> Any:
        kernel = fx.empirical_ntk(mlp, params, x)
        matrix = np.asarray(kernel).transpose(0, 2, 1, 3).reshape(n * sizes[-1], -1)
        return jnp.asarray(np.linalg.eigvalsh(matrix)[::-1][:num].copy())

    return Work(dense, are_equal=True)


# Infinitely wide networks.


def analytic_case(contestant: str, n: int) -> Work:
    x = draw(1, n, 784)
    if contestant == "matrix product":
        return Work(partial(jax.jit(lambda a: a @ a.T), x))
    if contestant == "fixntk":
        import fixntk as fx

        return Work(lambda: fx.mlp_kernel(x, depth=3, w_std=2**0.5))
    stax = import_stax(contestant).stax
    hidden = [layer for _ in range(3) for layer in (stax.Dense(1, 2**0.5), stax.Relu())]
    kernel = stax.serial(*hidden, stax.Dense(1, 2**0.5))[2]
    return Work(partial(jax.jit(lambda a: tuple(kernel(a, None, ("nngp", "ntk")))), x))


def pooling_case(contestant: str, size: int, n: int, batch_size: int) -> Work:
    """Myrtle's network of five layers: convolutions of 3×3 with ReLU, and three times average pooling of 2×2."""
    images = draw(1, n, size, size, 3)
    if contestant == "fixntk":
        import fixntk as fx
        from fixntk.ntk.layers import Activate, AveragePool, Conv, Dense, Flatten, Serial

        layers: list[Any] = []
        for pooled in (False, True, True, True):
            layers += [Conv((3, 3), w_std=2**0.5), Activate("relu")] + [AveragePool((2, 2), (2, 2))] * pooled
        network = Serial(*layers, Flatten(), Dense())
        return Work(lambda: fx.network_kernel(network, images), are_equal=True)
    nt = import_stax(contestant)
    stax, theirs = nt.stax, []
    for pooled in (False, True, True, True):
        theirs += [stax.Conv(1, (3, 3), padding="SAME", W_std=2**0.5), stax.Relu()]
        theirs += [stax.AvgPool((2, 2), (2, 2))] * pooled
    kernel = stax.serial(*theirs, stax.Flatten(), stax.Dense(1))[2]
    batched = nt.batch(jax.jit(kernel, static_argnums=2), batch_size=math.gcd(n, batch_size))
    return Work(lambda: tuple(batched(images, None, ("nngp", "ntk"))), are_equal=True)


_GPT = {"num_tokens": 512, "length": 32, "n": 64, "outputs": "trace"}
_SMALL_GPT = {"num_tokens": 16, "length": 4, "n": 3}
_TODAY = ("fixntk", "neural-tangents, JAX today")
_EIGH = ("fixntk", "kernel and eigvalsh")
_MLP_CASE = {"network": "mlp", "shape": (784,)}
_CNN_CASE = {"network": "cnn", "shape": (32, 32, 3)}

CASES = {
    "MLP 784-512x3-10, 64x64, full": Case(stax_case, STAX, {**_MLP_CASE, "n": 64, "outputs": "full"}, {"n": 2}),
    "MLP 784-512x3-10, 256x256, trace": Case(stax_case, STAX, {**_MLP_CASE, "n": 256, "outputs": "trace"}, {"n": 2}),
    "CNN 3x(3x3x32 SAME)+GAP-10, 16 of 32x32x3, trace": Case(
        stax_case, STAX, {**_CNN_CASE, "n": 16, "outputs": "trace"}, {"n": 2, "shape": (6, 6, 3)}
    ),
    "transformer 184k, 64 of 32 tokens, trace": Case(
        transformer_case, JACOBIANS, {**_GPT, "kind": "plain"}, _SMALL_GPT
    ),
    "transformer, w/sqrt(n) and split QKV, trace": Case(
        transformer_case, JACOBIANS, {**_GPT, "kind": "scaled"}, _SMALL_GPT
    ),
    "transformer, tied and scaled, trace": Case(transformer_case, JACOBIANS, {**_GPT, "kind": "tied"}, _SMALL_GPT),
    "transformer, tied and scaled, 8192 tokens, trace": Case(
        transformer_case, JACOBIANS, {**_GPT, "kind": "tied", "num_tokens": 8192, "n": 16}, _SMALL_GPT
    ),
    "transformer, layers by scan, trace": Case(transformer_case, JACOBIANS, {**_GPT, "kind": "scan"}, _SMALL_GPT),
    "ResNet-18 shape, width 8, 24 of 16x16, trace": Case(
        resnet_case, JACOBIANS, {"width": 8, "size": 16, "n": 24}, {"width": 2, "size": 8, "n": 2}
    ),
    "ResNet-18 shape, width 16, 64 of 32x32, trace": Case(
        resnet_case, JACOBIANS, {"width": 16, "size": 32, "n": 64}, {"width": 2, "size": 8, "n": 2}
    ),
    "projections to 4096, 1.2 M parameters, 10,000 rows": Case(
        projection_case,
        ("fixntk", "gradients and a dense product"),
        {"sizes": (784, 768, 768, 1), "n": 10_000, "dim": 4096, "n_dense": 100},
        {"sizes": (9, 80, 80, 1), "n": 20, "dim": 256, "n_dense": 10},
    ),
    "20 leading eigenvalues, 2,000 rows of 10 outputs": Case(
        spectrum_case,
        _EIGH,
        {"sizes": (784, 512, 512, 512, 10), "n": 2000, "num": 20},
        {"sizes": (9, 20, 10), "n": 40, "num": 3},
    ),
    "analytic MLP 784, depth 3, 256 points": Case(analytic_case, (*_TODAY, "matrix product"), {"n": 256}, {"n": 9}),
    "analytic MLP 784, depth 3, 4000 points": Case(analytic_case, (*_TODAY, "matrix product"), {"n": 4000}, {"n": 9}),
    "analytic, pooling (Myrtle), 64 of 32x32": Case(
        pooling_case, _TODAY, {"size": 32, "n": 64, "batch_size": 4}, {"size": 8, "n": 4}
    ),
}
