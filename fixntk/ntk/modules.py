"""Flax and Equinox modules as a function of a batch and its parameters.

No module library is imported here: an object can only be one of its modules if the user has imported it.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fixntk.ntk.selection import paths_of

# Libraries with the name of their base class of modules.
_LIBRARIES = {"equinox": "Module", "flax.nnx": "Module", "flax.linen": "Module"}


def split_model(model: Any) -> tuple[Callable[..., Any], Any]:
    """Function ``f(params, x)`` of a batch, and the parameters, of a module that holds them.

    Keep both for several calls: the compiled kernels are found again by the function object.

    Parameters
    ----------
    model
        A Flax NNX module; a Flax Linen module bound to its variables, ``model.bind(variables)``; or an Equinox module
        of one example, which is mapped over the batch. Parameters are NNX's ``Param``, Linen's collection "params" and
        Equinox's floating-point arrays; everything else is a constant.

    Returns
    -------
    The function, which passes keyword arguments on, and the pytree of parameters.

    Raises
    ------
    TypeError
        If ``model`` is none of these.
    ValueError
        If a Linen module is not bound. The function raises it if the module's state changes with the call, as with
        batch normalisation or dropout in training: evaluation mode leaves the state.

    See docs/mathematics.md, M14.
    """
    library = _library_of(model)
    if library is None:
        raise TypeError(f"model must be a Flax or Equinox module that holds its parameters, got {type(model).__name__}")
    return {"equinox": _split_equinox, "flax.nnx": _split_nnx, "flax.linen": _split_linen}[library](model)


def is_model(f: Any) -> bool:
    """Whether f is a module that holds its parameters."""
    library = _library_of(f)
    return library is not None and (library != "flax.linen" or f.scope is not None)


def check_is_bound(f: Any) -> None:
    """Check that f is no Linen module without variables, which cannot be called.

    Raises
    ------
    ValueError
        If it is one.
    """
    if _library_of(f) == "flax.linen" and f.scope is None:
        raise ValueError(
            "a Flax Linen module does not hold its parameters: pass model.bind(variables) in place of f and params, or"
            " model.apply and variables"
        )


def _library_of(model: Any) -> str | None:
    for library, name in _LIBRARIES.items():
        base = getattr(sys.modules.get(library), name, None)
        if base is not None and isinstance(model, base):
            return library
    return None


def _split_equinox(model: Any) -> tuple[Callable[..., Any], Any]:
    equinox = sys.modules["equinox"]
    params, static = equinox.partition(model, equinox.is_inexact_array)

    def apply(params: Any, x: Any, **kwargs: Any) -> Any:
        whole = equinox.combine(params, static)
        try:
            return jax.vmap(lambda row: whole(row, **kwargs))(x)
        except (AttributeError, RuntimeError, TypeError) as error:
            if remedy := _remedy_for_equinox(model, error):
                raise ValueError(f"{remedy}. Equinox says: {error}") from error
            raise

    return apply, params


def _remedy_for_equinox(model: Any, error: Exception) -> str | None:
    """What to do about an error of a module that wants its state or a random key, None for other errors."""
    equinox = sys.modules["equinox"]
    if "requires a key" in str(error) or "required positional argument: 'key'" in str(error):
        return (
            "the model draws random numbers, and its NTK needs a function without them: pass"
            " eqx.nn.inference_mode(model), with kwargs={'key': None} if it must be called with a key"
        )
    leaves = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, equinox.nn.StateIndex))
    if any(isinstance(leaf, equinox.nn.StateIndex) for leaf in leaves):
        return (
            "the model has a state (batch normalisation), which it does not hold itself: write the function, with"
            " params, static = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array) and f = lambda params,"
            " x: jax.vmap(lambda row: eqx.combine(params, static)(row, state)[0])(x)"
        )
    return None


def _split_nnx(model: Any) -> tuple[Callable[..., Any], Any]:
    nnx = sys.modules["flax.nnx"]
    graph, params, random, rest = nnx.split(model, nnx.Param, nnx.RngState, ...)

    def apply(params: Any, x: Any, **kwargs: Any) -> Any:
        def call(random: Any) -> tuple[Any, Any, Any]:
            # Variables of its own, with the same arrays: a call may change them.
            whole = nnx.merge(graph, params, *jax.tree.map(lambda leaf: leaf, (random, rest)))
            outputs = whole(x, **kwargs)
            return outputs, *nnx.split(whole, nnx.Param, nnx.RngState, ...)[2:]

        outputs, random_after, rest_after = call(random)
        changed = _changed_leaves(rest, rest_after)
        # Recurrent layers draw random numbers for a carry that is zero: the numbers count only if the outputs depend on
        # them, which vmap refuses for outputs without an axis.
        if not changed and _changed_leaves(random, random_after):
            twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), random)
            try:
                jax.eval_shape(jax.vmap(lambda random: call(random)[0], out_axes=None), twice)
            except ValueError:
                changed = ["random numbers"]
        if changed:
            raise ValueError(
                f"the model's state changes with the call ({', '.join(changed)}), and its NTK needs a function of the"
                " parameters and one example: call model.eval() first (batch normalisation, dropout)"
            )
        return outputs

    return apply, nnx.to_pure_dict(params)


def _changed_leaves(before: Any, after: Any) -> list[str]:
    """Paths of the variables of a state that hold other arrays in another one; new variables do not count."""
    found = dict(zip(paths_of(after), jax.tree.leaves(after), strict=True))
    return [
        path.removesuffix("/value")
        for path, leaf in zip(paths_of(before), jax.tree.leaves(before), strict=True)
        if found.get(path, leaf) is not leaf
    ]


def _split_linen(model: Any) -> tuple[Callable[..., Any], Any]:
    check_is_bound(model)
    errors = sys.modules["flax.errors"]
    module, variables = model.unbind()
    rest = {name: collection for name, collection in variables.items() if name != "params"}

    def apply(params: Any, x: Any, **kwargs: Any) -> Any:
        # Collections are immutable in this call, so that Flax itself refuses a module that changes its state.
        try:
            return module.apply({"params": params, **rest}, x, **kwargs)
        except (errors.ModifyScopeVariableError, errors.InvalidRngError) as error:
            raise ValueError(
                "the module changes its state or draws random numbers, and its NTK needs a function of the parameters"
                " and one example: evaluate batch normalisation with use_running_average=True and dropout with"
                f" deterministic=True, such as by kwargs={{'train': False}}. Flax says: {error}"
            ) from error

    return apply, variables["params"]
