"""Measures the memory that calls take, in a process of its own: run as a script with the names of cases.

For each case it prints a line with the library's estimate and the measured peak, both in MiB. On an accelerator that is
the peak of the device, which counts from the start of the process: run one case a process there.
"""

import os
import re
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk import _tiling
from fixntk.convex import solve_plan
from fixntk.estimators import NTKClassifier, NTKRegressor
from fixntk.ntk.layers import Activate, Conv, Dense, Flatten, GlobalAveragePool, Serial

jax.config.update("jax_enable_x64", True)
warnings.simplefilter("ignore")

_PAGE = os.sysconf("SC_PAGE_SIZE")


def normal(*shape, dtype=np.float32):
    return jax.device_put(np.random.default_rng(0).standard_normal(shape).astype(dtype))


def program(num_rows, num_gates, num_features=5):
    x = normal(num_rows, num_features)
    masks = fx.activation_masks(x, normal(num_gates, num_features))
    return fx.ConvexProgram(x, jnp.tanh(3 * x[:, 0]), masks, 0.1 * num_rows**0.5)


def network(params, x):
    for weights in params[:-1]:
        x = jax.nn.relu(x @ weights)
    return x @ params[-1]


# Functions of a size, with a small one, which compiles and loads what a first call needs, and the one measured.


def gated_relu_ntk(size):
    x = normal(size, 5)
    return lambda: fx.gated_relu_ntk(x)


def mlp_kernel(size):
    x = normal(size, 5)
    return lambda: fx.mlp_kernel(x, depth=2)


def network_kernel(size):
    x = normal(size, 8, 8, 3)
    layers = [Conv((3, 3)), Activate(), Conv((3, 3)), Activate(), GlobalAveragePool(), Dense()]
    return lambda: fx.network_kernel(Serial(*layers), x, batch_size=size)


def network_kernel_in_tiles(size):
    x = normal(size, 64, 3)
    layers = [Conv((3,)), Activate("gelu"), Conv((3,)), Activate(), Flatten(), Dense()]
    return lambda: fx.network_kernel(Serial(*layers), x, batch_size=size // 2)


def masked_gram(size):
    x = normal(size, 5)
    masks = fx.activation_masks(x, normal(200, 5))
    return lambda: fx.masked_gram(jnp.ones(200), masks, x)


def activation_masks(size):
    x, gates = normal(size, 5), normal(5000, 5)
    return lambda: fx.activation_masks(x, gates)


def empirical_ntk(size):
    params = [normal(20, 64), normal(64, 64), normal(64, 4)]
    x = normal(size, 20)
    return lambda: fx.empirical_ntk(network, params, x)


def empirical_ntk_of_jacobians(size):
    params = [normal(200, 256), normal(256, 256), normal(256, 1)]
    x = normal(size, 200)
    return lambda: fx.empirical_ntk(network, params, x, method="jacobian")


def irls(size):
    given = program(size, 100)
    return lambda: fx.solve(given, method="irls", max_iter=2).weights


def fista(size):
    given = program(200, size, 100)
    return lambda: fx.solve(given, method="fista", max_iter=20).weights


def newton(size):
    given = program(size, 100)
    return lambda: fx.solve(given, method="newton", max_iter=2).weights


def anderson(size):
    given = program(size, 100)
    return lambda: fx.solve(given, method="anderson", max_iter=2).weights


def solve_relu(size):
    x = normal(size, 10)
    gates = normal(100, 10)
    given = fx.ConvexProgram(x, jnp.tanh(3 * x[:, 0]), fx.activation_masks(x, gates), 0.1 * size**0.5)
    return lambda: fx.solve_relu(given, gates, max_iter=2).positive


def discover(size):
    given, gates, key = program(size, 20, 10), normal(20, 10), jax.random.key(0)
    return lambda: fx.discover(given, gates, key=key, max_rounds=2).solution.weights


def enumerate_arrangements(size):
    x = normal(size, 2)
    return lambda: fx.enumerate_arrangements(x).masks


def layerwise(size):
    params = [normal(64, 64), normal(64, 64), normal(64, 1)]
    x = normal(size, 64)
    return lambda: fx.layerwise_ntk(network, params, x)


def sample_network(size):
    return lambda: fx.ReLUNetwork.sample(jax.random.key(0), size, 100)


def network_outputs(size):
    x, relu = normal(size, 10), fx.ReLUNetwork.sample(jax.random.key(0), 5000, 10)
    return lambda: relu(x)


def dense_spectrum(size):
    x = normal(size, 5)
    return lambda: fx.ntk_spectrum(network, [normal(5, 8), normal(8, 1)], x, num=size).eigenvalues


def solve_kernels(size):
    x = normal(size, 10)
    kernels = jnp.stack([x[:, k : k + 1] * x[:, k] for k in range(10)])
    return lambda: fx.solve_kernels(kernels, x[:, 0], 1.0, max_iter=3).kernel_weights


def ntk_regressor(size):
    x = np.random.default_rng(0).standard_normal((size, 5))
    return lambda: NTKRegressor().fit(x, x[:, 0])


def ntk_classifier(size):
    x = np.random.default_rng(0).standard_normal((size, 5))
    return lambda: NTKClassifier().fit(x, x[:, 0] > 0)


SIZES = {
    gated_relu_ntk: (1100, 9001),
    mlp_kernel: (1100, 7001),
    network_kernel: (2, 30),
    network_kernel_in_tiles: (2, 600),
    masked_gram: (100, 9000),
    activation_masks: (100, 80_000),
    empirical_ntk: (50, 2600),
    empirical_ntk_of_jacobians: (50, 4000),
    irls: (50, 5000),
    fista: (50, 30_000),
    newton: (50, 20_000),
    anderson: (50, 4000),
    solve_relu: (50, 3000),
    discover: (30_000, 30_000),
    enumerate_arrangements: (50, 8000),
    layerwise: (50, 6000),
    sample_network: (50, 200_000),
    network_outputs: (50, 5000),
    dense_spectrum: (50, 2500),
    solve_kernels: (50, 1500),
    ntk_regressor: (50, 4000),
    ntk_classifier: (50, 4000),
}


def planned_solve(method, size):
    """The plan's MiB for a solve with its data, and the solve."""
    plan = solve_plan(size, 20, 500, dtype="float32")
    (each,) = (each for each in plan.methods if each.name == method)
    given = program(size, 500, 20)
    return (plan.data_bytes + each.num_bytes) / 2**20, lambda: fx.solve(given, method=method, max_iter=20).weights


# Numbers of rows of solves whose peak is compared with their plan, as `plan_of_METHOD`; a small one first, as above.
PLANNED = {"fista": (600, 150_000), "newton": (600, 100_000), "irls": (50, 5000), "anderson": (50, 5000)}


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 2**20


def peak_of(call):
    """MiB that a call adds to this process, or to the device's memory, at its peak."""
    (device,) = jnp.zeros(()).devices()
    stats = device.memory_stats()
    if not stats or "peak_bytes_in_use" not in stats:
        return peak_of_process(call)
    jax.block_until_ready(call())
    return (device.memory_stats()["peak_bytes_in_use"] - stats["bytes_in_use"]) / 2**20


def peak_of_process(call):
    """MiB that a call adds to this process at its peak."""
    before = highest = resident()
    is_done = threading.Event()

    def watch():
        nonlocal highest
        while not is_done.is_set():
            highest = max(highest, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    jax.block_until_ready(call())
    is_done.set()
    watcher.join()
    return highest - before


def estimate_of(call):
    """MiB that the library says a call needs, from what it raises where there is no memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tiling, "_free_of_machine", lambda: 0)
        patch.setattr(_tiling, "_free_of_device", lambda _: None)
        with pytest.raises(fx.OutOfMemoryError) as error:
            call()
    number, unit = re.search(r"needs ([0-9.]+) (.)iB", str(error.value)).groups()
    return float(number) * {"M": 1, "G": 1024}[unit]


def main(names):
    for make, (small, large) in SIZES.items():
        if make.__name__ in names:
            jax.block_until_ready(make(small)())
            call = make(large)
            print(make.__name__, estimate_of(call), peak_of(call), flush=True)
    for method, (small, large) in PLANNED.items():
        if (name := f"plan_of_{method}") in names:
            jax.block_until_ready(planned_solve(method, small)[1]())
            planned, call = planned_solve(method, large)
            # The data are there before.
            data = (large * (20 * 4 + 4 + 500)) / 2**20
            print(name, planned, data + peak_of(call), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
