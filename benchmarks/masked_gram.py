"""masked_gram against the two matrix products it contains, and the memory of its row blocks.

Speed: n = 2000, P = 2000, d = 50, float32. Predicted ratio: one product of 2n²P = 16 GFLOP, to which the product X Xᵀ,
the conversion of the masks and the Hadamard product add a few per cent. Memory: n = 20,000, P = 2000, d = 50.

Run with `python benchmarks/masked_gram.py`. Times are the best of several, alternating, in one process; quote ratios.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import fixntk as fx


def best_times(functions: dict[str, Callable[[], jax.Array]], repeats: int = 15) -> dict[str, float]:
    """Best warm time of each function in seconds, run in turn, so that other load on the machine affects all alike."""
    times = dict.fromkeys(functions, np.inf)
    for function in functions.values():
        function().block_until_ready()
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function().block_until_ready()
            times[name] = min(times[name], time.perf_counter() - began)
    return times


def speed(num_rows: int = 2000, num_gates: int = 2000, num_features: int = 50) -> None:
    x = jax.random.normal(jax.random.key(0), (num_rows, num_features), jnp.float32)
    masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), num_gates, num_features, dtype=jnp.float32))
    weights = jax.random.uniform(jax.random.key(2), (num_gates,), jnp.float32)
    numbers, weighted = masks.astype(jnp.float32), masks * weights
    packed = fx.pack_masks(masks)

    @jax.jit
    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)

    began = time.perf_counter()
    fx.masked_gram(weights, masks, x).block_until_ready()
    cold = time.perf_counter() - began
    times = best_times(
        {
            "X Xᵀ": lambda: product(x, x),
            "M η Mᵀ": lambda: product(weighted, numbers),
            "masked_gram": lambda: fx.masked_gram(weights, masks, x),
            "masked_gram, packed masks": lambda: fx.masked_gram(weights, packed, x),
        }
    )
    both = times["X Xᵀ"] + times["M η Mᵀ"]
    print(f"n={num_rows} P={num_gates} d={num_features} float32 on {jax.devices()[0].device_kind}; cold {cold:.2f} s")
    for name, seconds in times.items():
        print(f"  {name:<26} {1e3 * seconds:8.1f} ms   {seconds / both:5.2f} × the two products")


def memory(num_rows: int = 20_000, num_gates: int = 2000, num_features: int = 50, block: int = 1024) -> None:
    """Peak memory of the row blocks beyond the inputs and one block; run in a process of its own."""
    x = jax.random.normal(jax.random.key(0), (num_rows, num_features), jnp.float32)
    gates = fx.sample_gates(jax.random.key(1), num_gates, num_features, dtype=jnp.float32)
    masks = jnp.concatenate([fx.activation_masks(part, gates) for part in jnp.array_split(x, 20)])
    operator = jax.block_until_ready(fx.MaskedGram(jnp.ones(num_gates, jnp.float32), masks, x))
    before = _peak()
    began = time.perf_counter()
    for _, rows in operator.tiles(block):
        rows.block_until_ready()
    seconds = time.perf_counter() - began
    block_bytes = block * num_rows * 4
    extra = _peak() - before - block_bytes
    print(f"n={num_rows} P={num_gates}: blocks of {block} rows ({block_bytes / 1e9:.2f} GB) in {seconds:.1f} s, cold")
    print(f"  peak beyond inputs and one block: {extra / 1e9:.2f} GB")


def _peak() -> int:
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    if "--memory" in sys.argv:
        memory()
    else:
        speed()
        subprocess.run([sys.executable, __file__, "--memory"], check=True)
