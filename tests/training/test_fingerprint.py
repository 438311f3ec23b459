"""Fingerprints: the same of the same values, wherever they were made, and others of anything else."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fixntk._compilation import describe_computation
from fixntk.training.fingerprint import fingerprint

TRAINED = {"w": jnp.arange(6.0).reshape(2, 3)}


def of(optimizer, **arguments):
    return fingerprint(optimizer.update, TRAINED, optimizer.init(TRAINED), **arguments)


def changed(one, other):
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


def test_objects_made_anew_have_the_same_fingerprint():
    def made():
        noisy = optax.add_noise(0.1, 0.5, jax.random.key(3))
        # Functions of the host are shown with their addresses.
        rate = lambda step: jax.pure_callback(lambda s: 1 / (1.0 + s), jax.ShapeDtypeStruct((), jnp.float64), step)  # noqa: E731
        optimizer = optax.chain(noisy, optax.adam(rate))
        return optimizer, of(optimizer, x=np.arange(4.0), key=jax.random.key(1), names=("a", None), reg=0.1)

    (_kept, one), (_kept_too, other) = made(), made()
    assert one == other


SCRIPT = """
import jax.numpy as jnp, optax
from fixntk.training.fingerprint import fingerprint
optimizer, trained = optax.adam(1e-2), {"w": jnp.ones(3)}
print(fingerprint(optimizer.update, trained, optimizer.init(trained), x=jnp.ones(2), loss="squared"))
"""


def test_another_process_with_another_terminal_has_the_same_fingerprint(monkeypatch):
    shown = []
    for seed, columns in (("1", "40"), ("2", "200")):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        monkeypatch.setenv("COLUMNS", columns)
        shown.append(subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout)
    assert shown[0] == shown[1] != ""


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (np.zeros(4), np.array([0, 0, 0, 5e-324])),
        (np.zeros(4), np.zeros(4, np.float32)),
        (np.zeros(4), np.zeros(4, np.int64)),
        (np.zeros(4), np.zeros((2, 2))),
        (np.zeros(4), [0.0] * 4),
        ({"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 1.0}),
        ({"a": 1.0}, {"b": 1.0}),
        (None, ()),
        (1, 1.0),
        ("squared", "huber"),
        (jax.random.key(1), jax.random.key(2)),
        (jax.random.key(1), jax.random.key(1, impl="rbg")),
        (jax.random.key(1), jax.random.key_data(jax.random.key(1))),
        (jnp.ones(2, jnp.bfloat16), jnp.array([1.0, 1.0078125], jnp.bfloat16)),
    ],
)
def test_other_values_change_the_text_of_their_argument_alone(value, other):
    optimizer = optax.sgd(0.1)
    assert changed(of(optimizer, x=value, y=1), of(optimizer, x=other, y=1)) == {"x"}
    assert not changed(of(optimizer, x=value, y=1), of(optimizer, x=value, y=1))


def test_arrays_of_numpy_and_jax_have_the_same_text():
    values, optimizer = np.linspace(0, 1, 5), optax.sgd(0.1)
    assert of(optimizer, x=values) == of(optimizer, x=jnp.asarray(values))


def closing_over(array, wrap):
    return optax.stateless(lambda updates, _: {"w": wrap(lambda u: u * array)(updates["w"])})


def through_cond(function):
    return lambda u: jax.lax.cond(u[0, 0] > 0, function, jnp.sin, u)


def through_scan(function):
    return lambda u: jax.lax.scan(lambda carry, _: (function(carry), None), u, None, length=2)[0]


def with_a_rule(function):
    ruled = jax.custom_jvp(function)
    ruled.defjvp(lambda primals, tangents: (function(*primals), tangents[0]))
    return ruled


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        jax.jit,
        jax.checkpoint,
        through_cond,
        through_scan,
        with_a_rule,
        lambda f: jax.jit(through_cond(jax.jit(f))),
        lambda f: jax.checkpoint(jax.jit(f)),
        lambda f: jax.checkpoint(through_scan(jax.jit(f))),
    ],
)
@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), jnp.asarray(0.5), jnp.arange(6.0).reshape(2, 3)])
def test_constants_count_however_deep_they_are(wrap, array):
    other = array + 1e-12
    assert not changed(of(closing_over(array, wrap)), of(closing_over(array + 0, wrap)))
    assert changed(of(closing_over(array, wrap)), of(closing_over(other, wrap))) == {"optimizer"}


@pytest.mark.parametrize(
    "other",
    [
        optax.sgd(0.1 + 1e-15),
        optax.sgd(0.1, momentum=0.0),
        optax.adam(0.1),
        optax.chain(optax.sgd(0.1), optax.scale(2.0)),
        optax.sgd(optax.linear_schedule(0.1, 0.2, 10)),
    ],
)
def test_optimisers_that_compute_something_else_have_another_text(other):
    assert changed(of(optax.sgd(0.1)), of(other)) == {"optimizer"}


def test_a_computation_is_described_by_what_it_does_and_not_by_its_name():
    def double(x):
        return 2 * x

    operand = jnp.ones(3)
    assert describe_computation(double, operand) == describe_computation(lambda y: 2 * y, operand)
    assert describe_computation(double, operand) != describe_computation(lambda y: 3 * y, operand)
    assert describe_computation(double, operand) != describe_computation(double, jnp.ones(4))
