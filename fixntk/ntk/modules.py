"""Flax and Equinox modules as a function of a batch and its parameters.

No module library is imported here: an object can only be one of its modules if the user has imported it.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax

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
        return jax.vmap(lambda row: whole(row, **kwargs))(x)

    return apply, params


def _split_nnx(model: Any) -> tuple[Callable[..., Any], Any]:
    nnx = sys.modules["flax.nnx"]
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params: Any, x: Any, **kwargs: Any) -> Any:
        # Flax refuses to change variables that were made outside of the function that is traced.
        try:
            return nnx.merge(graph, params, rest)(x, **kwargs)
        except sys.modules["flax.errors"].TraceContextError as error:
            raise ValueError(
                "the model's state changes with the call, and its NTK needs a function of the parameters and one"
                f" example: call model.eval() first (batch normalisation, dropout). Flax says: {error}"
            ) from error

    return apply, nnx.to_pure_dict(params)


def _split_linen(model: Any) -> tuple[Callable[..., Any], Any]:
    if model.scope is None:
        raise ValueError(
            "a Flax Linen module does not hold its parameters: pass model.bind(variables), or model.apply and variables"
        )
    module, variables = model.unbind()
    rest = {name: collection for name, collection in variables.items() if name != "params"}

    def apply(params: Any, x: Any, **kwargs: Any) -> Any:
        # Collections are immutable in this call, so that Flax itself refuses a module that changes its state.
        return module.apply({"params": params, **rest}, x, **kwargs)

    return apply, variables["params"]
