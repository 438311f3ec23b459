"""Import neural-tangents 0.6.5, its last release, on current JAX."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax

# Command that installs neural-tangents, for error messages.
_INSTALL = "pip install --no-deps neural-tangents==0.6.5 frozendict"

# Modules in which neural-tangents looks for names that JAX has removed, the modules that have them now, and the names.
_MOVED_NAMES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("jax.core", "jax.extend.core", ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")),
    ("jax.interpreters.ad", "jax._src.ad_util", ("zeros_like_p",)),
    ("jax.util", "jax._src.util", ("safe_map", "safe_zip")),
)

# Imported by neural_tangents/__init__.py, and the only part of it that needs TensorFlow.
_NEEDS_TENSORFLOW = "neural_tangents.experimental"

_lock = threading.Lock()


def import_neural_tangents() -> ModuleType:
    """Import neural-tangents, with the names that JAX has removed since its last release restored for the import.

    Afterwards JAX's modules are unchanged, because neural-tangents binds the names during its import and does not look
    them up later. A plain ``import neural_tangents`` then finds the module as well. A second call
    returns the same module. Calls from several threads wait for each other; a thread that looks up one of the names in
    JAX's modules during the import sees it.

    Works: ``stax`` kernels, ``predict``, ``empirical_ntk_fn`` with the implementations ``JACOBIAN_CONTRACTION`` (1)
    and ``NTK_VECTOR_PRODUCTS`` (2). Does not work: ``STRUCTURED_DERIVATIVES`` (3) and ``AUTO`` (0), which rely on parts
    of JAX whose signatures and results have changed, and ``experimental``.

    Returns
    -------
    The module ``neural_tangents``, without its attribute ``experimental`` unless it had been imported before.

    Raises
    ------
    ImportError
        If neural-tangents or frozendict is not installed (the message has the command), if a removed name is not where
        it is expected in this JAX (the message has the name), or if the import fails for another reason.
    """
    with _lock:
        if sys.modules.get("neural_tangents") is not None:
            return importlib.import_module("neural_tangents")
        for package in ("neural_tangents", "frozendict"):
            if importlib.util.find_spec(package) is None:
                raise ImportError(f"{package} is not installed: run `{_INSTALL}`", name=package)
        with _restore_moved_names(), _add_to_sys_modules(_NEEDS_TENSORFLOW, ModuleType(_NEEDS_TENSORFLOW)):
            try:
                module = importlib.import_module("neural_tangents")
            except (ImportError, AttributeError) as error:
                raise ImportError(f"neural-tangents does not import on jax {jax.__version__}: {error}") from error
        # An empty module would only hide the reason why its contents are missing.
        vars(module).pop("experimental", None)
        return module


@contextlib.contextmanager
def _restore_moved_names() -> Iterator[None]:
    """Make each of the moved names importable from its old module, inside the block only."""
    with contextlib.ExitStack() as undo:
        for old_module_name, new_module_name, names in _MOVED_NAMES:
            try:
                old_module = importlib.import_module(old_module_name)
            except ModuleNotFoundError:
                old_module = ModuleType(old_module_name)
                undo.enter_context(_add_to_sys_modules(old_module_name, old_module))
            for name in names:
                # Not hasattr: JAX's modules answer it for a deprecated name too, with a DeprecationWarning.
                if name not in vars(old_module):
                    setattr(old_module, name, _moved_name(new_module_name, name))
                    undo.callback(delattr, old_module, name)
        yield


def _moved_name(module_name: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"neural-tangents needs {name}, which is not in {module_name} of jax {jax.__version__}: use another version"
            f" of jax, or correct _MOVED_NAMES in {__name__}",
            name=module_name,
        ) from error


@contextlib.contextmanager
def _add_to_sys_modules(name: str, module: ModuleType) -> Iterator[None]:
    """Let ``import name`` find ``module``, inside the block only."""
    previous = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        if previous is None:
            del sys.modules[name]
        else:
            sys.modules[name] = previous
