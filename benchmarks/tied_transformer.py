"""The empirical NTK of a transformer with tied embeddings, by `empirical_ntk` and by contracted Jacobians.

Three layers of width 64 and four heads, weights divided by the square root of their number of inputs, one weight for
queries, keys and values, 16 sequences of 32 tokens, eight logits of the last token, float32. Both take turns; the best
of the rounds counts, without compilation.

Run with `python benchmarks/tied_transformer.py [--rounds N] [--tokens V ...]`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import fixntk as fx

WIDTH, HEADS, LAYERS, POSITIONS, OUTPUTS, EXAMPLES = 64, 4, 3, 32, 8, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 8192], help="sizes of the vocabulary")
    arguments = parser.parse_args()
    for num_tokens in arguments.tokens:
        params = draw_parameters(jax.random.key(0), num_tokens)
        x = jax.random.randint(jax.random.key(1), (EXAMPLES, POSITIONS), 0, num_tokens)
        for outputs in ("full", "trace"):
            seconds, difference = measure(params, x, outputs, arguments.rounds)
            ratio = seconds["jacobians"] / seconds["empirical_ntk"]
            times = ", ".join(f"{name} {each:.3f} s" for name, each in seconds.items())
            print(f"{num_tokens} tokens, {outputs}: {times}, ratio {ratio:.2f}, relative difference {difference:.1e}")


def measure(params: Any, x: Array, outputs: Any, rounds: int) -> tuple[dict[str, float], float]:
    """Seconds of the best round of each contestant, and the largest difference of their kernels."""
    contestants: dict[str, Callable[[], Array]] = {
        "empirical_ntk": lambda: fx.empirical_ntk(transformer, params, x, outputs=outputs),
        "jacobians": lambda: contracted_jacobians(params, x, outputs),
    }
    # The first calls compile.
    one, two = (contestant() for contestant in contestants.values())
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, contestant in contestants.items():
            began = time.perf_counter()
            jax.block_until_ready(contestant())
            best[name] = min(best[name], time.perf_counter() - began)
    return best, float(jnp.max(jnp.abs(one - two)) / jnp.max(jnp.abs(two)))


def contracted_jacobians(params: Any, x: Array, outputs: str) -> Array:
    """The kernel by its definition."""
    return _contracted(params, x, "ijoq" if outputs == "full" else "ij")


@jax.jit(static_argnums=2)
def _contracted(params: Any, x: Array, axes: str) -> Array:
    jacobians = jax.vmap(lambda tokens: jax.jacrev(lambda p: transformer(p, tokens[None])[0])(params))(x)
    rows = [leaf.reshape(EXAMPLES, OUTPUTS, -1) for leaf in jax.tree.leaves(jacobians)]
    other, scale = ("q", 1) if axes == "ijoq" else ("o", OUTPUTS)
    precision = jax.lax.Precision.HIGHEST
    return sum(jnp.einsum(f"iop,j{other}p->{axes}", row, row, precision=precision) for row in rows) / scale


def draw_parameters(key: Array, num_tokens: int) -> Any:
    """Standard normal weights."""
    shapes = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    keys = jax.random.split(key, LAYERS + 2)
    layers = [
        {name: jax.random.normal(jax.random.fold_in(each, k), shape) for k, (name, shape) in enumerate(shapes.items())}
        for each in keys[2:]
    ]
    table = jax.random.normal(keys[0], (num_tokens, WIDTH))
    return {"table": table, "positions": jax.random.normal(keys[1], (POSITIONS, WIDTH)), "layers": layers}


def transformer(params: Any, tokens: Array) -> Array:
    """Logits (n, OUTPUTS) of the last of (n, POSITIONS) tokens."""
    h = params["table"][tokens] + params["positions"]
    seen = jnp.tril(jnp.ones((POSITIONS, POSITIONS), bool))
    for layer in params["layers"]:
        weights = {name: weight / weight.shape[0] ** 0.5 for name, weight in layer.items()}
        normal = jax.nn.standardize(h)
        query, key, value = (
            (normal @ part).reshape(*h.shape[:2], HEADS, -1) for part in jnp.split(weights["qkv"], 3, axis=1)
        )
        scores = jnp.einsum("nthd,nshd->nhts", query, key) / query.shape[-1] ** 0.5
        attention = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        h = h + jnp.einsum("nhts,nshd->nthd", attention, value).reshape(h.shape) @ weights["out"]
        h = h + jax.nn.gelu(jax.nn.standardize(h) @ weights["up"]) @ weights["down"]
    return (jax.nn.standardize(h[:, -1]) @ params["table"].T)[:, :OUTPUTS] / WIDTH**0.5


if __name__ == "__main__":
    main()
