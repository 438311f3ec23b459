"""Functions that the host calls one after another, compiled in little time; what a function computes, as text.

On a CPU most of a first call is XLA compiling programs that then run for milliseconds. Two of its options shorten that:
without LLVM's optimisations a program compiles in a third of the time, and without the emitters of fused operations
that jaxlib 0.7 to 0.10 have in a half. Matrix products and factorisations come from libraries and stay as fast.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any

import jax
import jax.monitoring
from jax.extend.core import ClosedJaxpr, Jaxpr

from fixntk._checks import is_tracing

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

# Compiling for longer than this is worth telling.
_SECONDS_WORTH_TELLING = 1.0

_WITHOUT_EMITTERS = {"xla_cpu_use_fusion_emitters": False}
_WITHOUT_OPTIMISATION = {"xla_backend_optimization_level": 0}


class _Clock:
    """What a thread has compiled: number of programs, seconds of the calls that did, and since when it compiles now."""

    def __init__(self) -> None:
        self.num_programs = 0
        self.seconds = 0.0
        self.since: float | None = None


_local = threading.local()


def _clock() -> _Clock:
    """The clock of this thread."""
    if not hasattr(_local, "clock"):
        _local.clock = _Clock()
    return _local.clock


# JAX's event where a program has been lowered, which XLA compiles next.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
# The one where it has been compiled, or read from the cache.
_COMPILED = "/jax/core/compile/backend_compile_duration"


def _follow(event: str, duration_secs: float, **kwargs: Any) -> None:  # noqa: ARG001  # JAX's signature.
    if event == _LOWERED:
        _clock().since = time.perf_counter()
    elif event == _COMPILED:
        _clock().since = None
        _clock().num_programs += 1


jax.monitoring.register_event_duration_secs_listener(_follow)


def seconds_compiling() -> float:
    """Seconds that calls of functions made by :func:`jit_for_host` have taken in this thread because they compiled."""
    return _clock().seconds


def seconds_in_compiler() -> Callable[[], float]:
    """A function for other threads that tells for how long this thread has been in XLA's compiler; 0 when it is not."""
    clock = _clock()

    def seconds() -> float:
        since = clock.since
        return 0.0 if since is None else time.perf_counter() - since

    return seconds


def describe_compiling(seconds: float) -> str:
    """For how long the compiler has been at work, in words; empty where it is not worth telling."""
    return f"compiling for {seconds:.0f} s" if seconds > _SECONDS_WORTH_TELLING else ""


@contextmanager
def call_every(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Until the block ends, call a function at intervals from another thread, as this one may be in the compiler."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(seconds):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def jit_for_host(
    function: Callable[..., Any], *, static_argnames: tuple[str, ...] = (), optimised: bool = False
) -> Callable[..., Any]:
    """``jax.jit`` for a function that the host calls; under a JAX transformation it is an ordinary jitted function.

    Parameters
    ----------
    function
        Static arguments are passed by name.
    static_argnames
        As for ``jax.jit``.
    optimised
        Whether LLVM optimises the operations that are not library calls, for functions that run for longer than they
        compile.
    """
    jit = partial(jax.jit, function, static_argnames=static_argnames)
    plain = jit()

    @cache
    def on_cpu() -> Callable[..., Any]:
        options = _WITHOUT_EMITTERS if optimised else _WITHOUT_EMITTERS | _WITHOUT_OPTIMISATION
        return jit(compiler_options={name: value for name, value in options.items() if _is_known(name, value)})

    @wraps(function)
    def call(*args: Any, **static: Any) -> Any:
        # Compiler options belong to the outermost function that is compiled.
        if is_tracing(args):
            return plain(*args, **static)
        jitted = on_cpu() if jax.default_backend() == "cpu" else plain
        clock = _clock()
        began, num_programs = time.perf_counter(), clock.num_programs
        result = jitted(*args, **static)
        if clock.num_programs > num_programs:
            clock.seconds += time.perf_counter() - began
        return result

    return call


@cache
def _is_known(name: str, value: Any) -> bool:
    """Whether the compiler has an option: they come and go with versions of jaxlib."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def workspace_bytes(jitted: Any, *args: Any, **static: Any) -> int:
    """Bytes that a jitted function takes for what it keeps in between, as XLA plans it; 0 where XLA does not say.

    The function is compiled for the shapes of these arguments, and is not compiled again when it is called.
    """
    plan = jitted.lower(*args, **static).compile().memory_analysis()
    return 0 if plan is None else int(plan.temp_size_in_bytes)


def describe_computation(function: Callable[..., Any], *operands: Any) -> tuple[str, list[Any]]:
    """What a function computes of such operands: its program as text, and the constants that it closes over."""
    computation = jax.make_jaxpr(function)(*operands)
    # Line breaks depend on the terminal, and addresses of functions on the process.
    return " ".join(_ADDRESS.sub("", str(computation)).split()), _constants(computation)


def _constants(computation: ClosedJaxpr | Jaxpr) -> list[Any]:
    """Values that a computation closes over, those of the functions that it calls too."""
    found, body = [], computation
    if isinstance(computation, ClosedJaxpr):
        found, body = list(computation.consts), computation.jaxpr
    for equation in body.eqns:
        # Some primitives have their functions without constants of their own, as jax.checkpoint has, but what these
        # functions call may have some.
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_computation):
            if _is_computation(inner):
                found += _constants(inner)
    return found


def _is_computation(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)
