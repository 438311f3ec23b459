"""Empirical neural tangent kernels of any JAX function: Θ[i, j, o, q] = ⟨∂f_o(x_i)/∂θ, ∂f_q(x_j)/∂θ⟩.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import jax

from fixntk._checks import default_platform
from fixntk._numerics import default_precision, full_precision
from fixntk._tiling import num_rows
from fixntk.ntk.inputs import as_hashable, check_batch_size, check_rows_are_independent
from fixntk.ntk.methods import METHODS
from fixntk.ntk.plan import Request, split_request
from fixntk.ntk.plan_table import NTKPlan, plan_of
from fixntk.ntk.selection import Select, selected_leaves
from fixntk.ntk.signatures import canonical, for_each_output, split_outputs
from fixntk.ntk.tiles import compiled_kernels, traced_kernels

Method = Literal["auto", "structured", "jacobian", "ntvp"]
Outputs = Literal["full", "trace", "diagonal"]


@full_precision()
def empirical_ntk(
    f: Callable[..., Any],
    params: Any,
    x1: Any = None,
    x2: Any = None,
    *,
    outputs: Outputs | None = None,
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
    select: Select | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
    store_on_device: bool = True,
    batch_axes: tuple[int, int] = (0, 0),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    r"""Empirical NTK of a function with parameters: inner products of its Jacobians.

    .. math:: Θ[i, j, o, q] = ⟨∂f_o(x_i)/∂θ, ∂f_q(x_j)/∂θ⟩

    Matrix products and convolutions, those inside ``f`` and its derivatives too, are computed in full precision: a GPU
    would otherwise use TF32 for float32, whose errors of 1e-3 also switch units of a ReLU on or off. A precision that
    ``f`` sets for a product is kept, and so is ``jax.default_matmul_precision``: set that to ``"tensorfloat32"`` for
    speed.

    Parameters
    ----------
    f
        ``f(params, x)`` for a **batch**: x of shape (n, …) gives (n, …), one row for each example, which depends on
        that example alone. For a function of one example pass ``jax.vmap(f, in_axes=(None, 0))``. Any function that
        JAX can differentiate in ``params``. The compiled kernel is kept for the function object: pass the same one
        again, not a new lambda, to find it.
        A Flax NNX, bound Flax Linen or Equinox module takes the place of both f and params:
        ``empirical_ntk(model, x1, x2)``, see :func:`fixntk.split_model`. The function may return a pytree of arrays,
        such as a tuple or dict; the result is then a pytree of kernels, of each array with itself.
    params
        Pytree of floating-point arrays.
    x1
        (n1, …) inputs, or a pytree of them. Any number of examples.
    x2
        (n2, …); x1 when None, which then costs about half.
    outputs
        A shorthand for the two arguments below: ``"full"``, every pair of outputs; ``"trace"``, the mean over all
        outputs; ``"diagonal"``, each output with itself. With None the two arguments decide.
    trace_axes
        Axes of ``f(params, x)`` along which the kernel is averaged: only pairs of equal indices, divided by the axis's
        size. Axis 0 is the batch. As in neural-tangents.
    diagonal_axes
        Axes along which only pairs of equal indices are kept. With axis 0, x1 and x2 are paired row by row, and no
        n1×n2 array is made.
    select
        The parameters that count, all others being constants: a path such as ``"head"`` or ``"layers/2/kernel"``
        (that leaf, or all below it; wildcards as in ``"*/lora_*"``), several paths, or a predicate
        ``select(path, leaf)``. The NTK of the last layer alone, of a block, or of LoRA's matrices. None: all.
    method
        ``"structured"``: reads where parameters enter. A parameter of a matrix product, a convolution or a table
        look-up contributes through activations and back-propagated signals; one that enters otherwise through its
        Jacobian, and where f takes slices of it, only those slices that enter otherwise. ``"jacobian"``: Jacobians of
        all parameters, computed for a few leaves at a time if they are large. ``"ntvp"``: NTK-vector products.
        ``"auto"``: the method with the fewest operations by count; on an accelerator convolutions go through their
        Jacobians where these are faster there.
    batch_size
        Number of examples of x1, and of x2, in a tile; it need not divide their numbers. By default the largest
        number whose temporary arrays fit into 256 MiB.
    store_on_device
        False collects the tiles in a NumPy array on the host as they are finished, for kernels larger than the
        device's memory. Not possible under ``jax.jit``.
    batch_axes
        The axis of the examples in the arrays of x1 and x2, and in those of the outputs, where they are not the first.
        All other arguments count axes of the output with the examples moved to the front.
    kwargs
        Keyword arguments of f, the same for all examples, such as ``{"train": False}``.

    Returns
    -------
    (n1, n2, …): after the examples' axes each output axis occurs twice, (…, o, o, …), once where it is diagonal, and
    not at all where it is traced. With axis 0 diagonal the shape begins with (n,), with axis 0 traced with neither.
    The dtype is the output's, or float32 if that is wider.

    Raises
    ------
    TypeError
        If ``params`` has a leaf that is not a floating-point array (its place is named), or an output is not a
        floating-point array, or x1 is missing.
    ValueError
        If there are no parameters or examples, ``select`` selects none, x1 and x2 do not have the same shape apart
        from their number of rows, values are not finite, an axis is out of range or both traced and diagonal, the
        output does not have one row for each example, or its rows depend on other examples (batch statistics) or differ
        between calls: outputs and derivatives of a row are compared alone and among two others, but not under
        ``jax.jit``. Also if all outputs depend on ``params`` only through an operation without a derivative (argmax).
    OutOfMemoryError
        If memory does not suffice; a ValueError too.

    References
    ----------
    Novak, Sohl-Dickstein and Schoenholz, "Fast Finite Width Neural Tangent Kernel", ICML 2022, for the conventions and
    for the structure.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> x = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    >>> fx.empirical_ntk(lambda w, x: x @ w, jnp.zeros(2), x)
    Array([[5., 2.],
           [2., 1.]], dtype=float32)

    See docs/mathematics.md, M14.
    """

    def kernel(f: Callable[..., Any], request: Request, params: Any, x1: Any, x2: Any) -> Any:
        return _compute(f, request, params, x1, x2, store_on_device)[0]

    axes = {"outputs": outputs, "trace_axes": trace_axes, "diagonal_axes": diagonal_axes}
    options = {"method": method, "batch_size": batch_size}
    return of_each_output(kernel, f, params, x1, x2, select, batch_axes, kwargs, "empirical_ntk", **axes, **options)


@full_precision()
def ntk_plan(
    f: Callable[..., Any],
    params: Any,
    x1: Any = None,
    x2: Any = None,
    *,
    outputs: Outputs | None = None,
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
    select: Select | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
    batch_axes: tuple[int, int] = (0, 0),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """How :func:`empirical_ntk` would compute a kernel: for each parameter how it is treated, and what that costs.

    Nothing is computed but the shapes.

    Parameters
    ----------
    f, params, x1, x2, outputs, trace_axes, diagonal_axes, select, method, batch_size, batch_axes, kwargs
        As for :func:`empirical_ntk`, which also describes the errors.

    Returns
    -------
    An :class:`~fixntk.ntk.NTKPlan`, which is shown as a table with counts of operations and numbers in memory; a pytree
    of them where the function returns a pytree.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> params = {"scale": jnp.ones(3), "weights": jnp.ones((2, 3))}
    >>> fx.ntk_plan(lambda p, x: x @ p["weights"] * p["scale"], params, jnp.ones((4, 2)))
    NTKPlan(structured: 2.8e+03 operations, 2 KiB, tiles of 1930 examples)
    parameter  shape  how it is treated                operations  numbers an example
    scale      3      Jacobian, as it enters by 1 mul     8.6e+02                   9
    weights    2×3    matrix product                      1.2e+03                  11

    See docs/mathematics.md, M14.
    """

    def plan(_: Callable[..., Any], request: Request, params: Any, x1: Any, x2: Any) -> NTKPlan:
        return plan_of(request, params, x1, x2)

    axes = {"outputs": outputs, "trace_axes": trace_axes, "diagonal_axes": diagonal_axes}
    options = {"method": method, "batch_size": batch_size}
    return of_each_output(plan, f, params, x1, x2, select, batch_axes, kwargs, "ntk_plan", **axes, **options)


@full_precision()
def layerwise_ntk(
    f: Callable[..., Any],
    params: Any,
    x1: Any = None,
    x2: Any = None,
    *,
    groups: Any = None,
    outputs: Outputs | None = None,
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
    method: Method = "auto",
    batch_size: int | None = None,
    store_on_device: bool = True,
    batch_axes: tuple[int, int] = (0, 0),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """One empirical NTK for each parameter leaf, or group of leaves; they sum to the NTK of all parameters.

    Parameters
    ----------
    groups
        Pytree of labels, a prefix of ``params``: a label for each leaf or subtree, for instance
        ``{"backbone": "frozen", "head": "trained"}``. None makes each leaf a group of its own.
    f, params, x1, x2, outputs, trace_axes, diagonal_axes, method, batch_size, store_on_device, batch_axes, kwargs
        As for :func:`empirical_ntk`, which also describes the precision and the errors.

    Returns
    -------
    A dictionary from labels to kernels, or without ``groups`` a pytree of kernels like ``params``, of a module like
    the parameters of :func:`fixntk.split_model`. Each is what :func:`empirical_ntk` would return, a pytree of kernels
    where the function returns a pytree.

    Raises
    ------
    ValueError
        Also if ``groups`` is not a prefix of ``params``.

    See docs/mathematics.md, M14.
    """
    f, params, x1, x2 = canonical(f, params, {"x1": x1, "x2": x2}, batch_axes, kwargs, "layerwise_ntk")
    labels: list[Hashable] = list(range(len(jax.tree.leaves(params))))
    if groups is not None:
        try:
            # A label stands for all leaves below it, so that it is repeated for each of them.
            labels = jax.tree.leaves(
                jax.tree.map(lambda label, sub: [label] * len(jax.tree.leaves(sub)), groups, params)
            )
        except ValueError as error:
            raise ValueError(f"groups must be a pytree of labels that is a prefix of params: {error}") from error
    # Distinct labels in the order in which they first occur.
    names = list(dict.fromkeys(labels))
    numbers = tuple(names.index(label) for label in labels)

    def shares(f: Callable[..., Any]) -> tuple[Any, ...]:
        request = _request(f, params, x1, x2, outputs, trace_axes, diagonal_axes, numbers, method, batch_size)
        return _compute(f, request, params, x1, x2, store_on_device)

    # A share of each group for each array of the outputs becomes arrays of outputs for each group.
    kinds, functions = split_outputs(f, params, x1)
    kernels = [jax.tree.unflatten(kinds, of_group) for of_group in zip(*map(shares, functions), strict=True)]
    if groups is None:
        return jax.tree.unflatten(jax.tree.structure(params), kernels)
    return dict(zip(names, kernels, strict=True))


def of_each_output(
    compute: Callable[[Callable[..., Any], Request, Any, Any, Any], Any],
    f: Any,
    params: Any,
    x1: Any,
    x2: Any,
    select: Select | None,
    batch_axes: tuple[int, int],
    kwargs: Mapping[str, Any] | None,
    caller: str,
    **options: Any,
) -> Any:
    """``compute(f, request, params, x1, x2)`` of f, or of a function for each array of the pytree that f returns.

    All else is the user's arguments, which are checked here, and the name of the function that has them.
    """
    f, params, x1, x2 = canonical(f, params, {"x1": x1, "x2": x2}, batch_axes, kwargs, caller)
    # There is one kernel for each group of leaves: selected leaves are group 0, and group −1 counts for none.
    groups = tuple(0 if selected else -1 for selected in selected_leaves(params, select))

    def of_array(f: Callable[..., Any]) -> Any:
        return compute(f, _request(f, params, x1, x2, groups=groups, **options), params, x1, x2)

    return for_each_output(of_array, f, params, x1)


def _compute(f: Callable[..., Any], request: Request, params: Any, x1: Any, x2: Any, store_on_device: bool) -> Any:
    if not check_rows_are_independent(f, params, x1, x2):
        if not store_on_device:
            raise ValueError("store_on_device=False cannot be used under a JAX transformation: leave it True there")
        return traced_kernels(request, params, x1, x2)
    # Jacobians too large for memory are computed for some leaves at a time; the kernels of one group's parts add up.
    totals: dict[int, Any] = {}
    for part, groups in split_request(request, params, x1, x2):
        kernels = compiled_kernels(part, params, x1, x2, store_on_device)
        for group, kernel in zip(groups, kernels, strict=True):
            totals[group] = totals[group] + kernel if group in totals else kernel
    return tuple(totals[group] for group in sorted(totals))


def _request(
    f: Callable[..., Any],
    params: Any,
    x1: Any,
    x2: Any,
    outputs: str | None,
    trace_axes: int | Sequence[int],
    diagonal_axes: int | Sequence[int],
    groups: tuple[int, ...],
    method: str,
    batch_size: int | None,
) -> Request:
    if method not in ("auto", *METHODS):
        raise ValueError(f"method must be one of {', '.join(repr(m) for m in ('auto', *METHODS))}, got {method!r}")
    shape = jax.eval_shape(f, params, x1).shape
    traced, diagonal = _axes("trace_axes", trace_axes, shape), _axes("diagonal_axes", diagonal_axes, shape)
    if outputs is not None:
        if outputs not in ("full", "trace", "diagonal"):
            raise ValueError(f"outputs must be 'full', 'trace' or 'diagonal', got {outputs!r}")
        if traced or diagonal:
            raise ValueError("give either outputs or trace_axes and diagonal_axes, not both")
        every = tuple(range(1, len(shape)))
        traced, diagonal = (every if outputs == word else () for word in ("trace", "diagonal"))
    if common := set(traced) & set(diagonal):
        raise ValueError(f"axes {sorted(common)} are in both trace_axes and diagonal_axes")
    check_batch_size(batch_size)
    if 0 in (*traced, *diagonal) and x2 is not None and num_rows(x1) != num_rows(x2):
        raise ValueError(
            "with axis 0 in trace_axes or diagonal_axes x1 and x2 are paired row by row, got"
            f" {num_rows(x1)} and {num_rows(x2)} rows"
        )
    # The request is the key of the compiled programs, so that everything in it can be hashed.
    function, precision, platform = as_hashable(f), default_precision(), default_platform()
    return Request(function, traced, diagonal, groups, method, batch_size, precision, platform)


def _axes(name: str, axes: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    canonical = set()
    try:
        given = [operator.index(axes)] if hasattr(axes, "__index__") else [operator.index(k) for k in axes]
    except TypeError:
        raise TypeError(f"{name} must be an integer or integers, got {axes!r}") from None
    for axis in given:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"{name} has axis {axis}, f(params, x1) has shape {shape}: axes {-len(shape)} to {len(shape) - 1}"
            )
        canonical.add(axis % len(shape))
    return tuple(sorted(canonical))
