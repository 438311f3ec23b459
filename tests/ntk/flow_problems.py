"""Random kernels, targets and initial outputs for the tests of gradient flow, and what several of them compare with."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

TIMES = np.array([0.0, 0.3, 5.0, 200.0])


RELATIVE = {"float64": 1e-10, "float32": 2e-4}


def problem(outputs=(2,), full=False, rank=None, n=6, n_test=4, dtype="float64", seed=0):
    """Kernels of one positive semidefinite matrix over training and other points; targets; outputs at t = 0."""
    rng = np.random.default_rng(seed)
    pairs = [size for size in outputs for _ in range(2)] if full else []
    c = int(np.prod(outputs)) if full else 1
    rows = rng.standard_normal(((n + n_test) * c, rank or 2 * (n + n_test) * c))
    rows = rows / np.sqrt(rows.shape[1])

    def kernel(a, b):
        matrix = (a @ b.T).reshape(-1, *outputs, len(b) // c, *outputs) if full else a @ b.T
        k = len(outputs) + 1
        return matrix.transpose([axis + j * k for axis in range(k) for j in range(2)]) if full else matrix

    train, test = rows[: n * c], rows[n * c :]
    assert kernel(test, train).shape == (n_test, n, *pairs)
    found = {
        "train": kernel(train, train),
        "test_train": kernel(test, train),
        "test": kernel(test, test),
        "y": rng.standard_normal((n, *outputs)),
        "f0": rng.standard_normal((n, *outputs)),
        "f0_test": rng.standard_normal((n_test, *outputs)),
    }
    return SimpleNamespace(**{name: jnp.asarray(value, dtype) for name, value in found.items()})


def as_matrix(kernel):
    order = [*range(0, kernel.ndim, 2), *range(1, kernel.ndim, 2)]
    kernel = np.asarray(kernel, np.float64)
    return kernel.transpose(order).reshape(np.prod(kernel.shape[::2]), -1)


def central_difference(function, point, number, step=1e-3):
    """Derivative by one argument, to fourth order in the step."""
    ahead = {k: function(*point[:number], point[number] + k * step, *point[number + 1 :]) for k in (-2, -1, 1, 2)}
    return jax.tree.map(
        lambda a, b, c, d: (8 * (b - a) - (d - c)) / (12 * step), ahead[-1], ahead[1], ahead[-2], ahead[2]
    )


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]
