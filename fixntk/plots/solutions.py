"""Plots of solutions of the convex program and of trainings: history, kernel weights, path over λ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from fixntk import History, KernelSolution, NTKHistory, Path, ReLUSolution, Solution, Training, TrainingHistory
from fixntk.plots._axes import (
    COLOUR_MAP,
    NTK_COLOUR,
    SOLUTION_COLOUR,
    add_legend,
    as_numbers,
    next_line_style,
    open_axes,
)

# Share of the largest kernel weight above which a kernel counts as active, where the result does not tell.
_ACTIVE_SHARE = 1e-4
# Part of the colour map that is used for curves: its lightest colours have too little contrast on white.
_DARK_PART = 0.85
# Quantities that are drawn on a logarithmic axis.
_LOGARITHMIC = ("gap", "eigenvalues", "condition_number")
# Opacity of curves that are many.
_OPACITY_OF_MANY = 0.6


@dataclass(frozen=True)
class _Trace:
    """What a history has to draw.

    Attributes
    ----------
    label
        The label of its curves in the legend.
    times
        For each of "iterations" and "seconds", the label of the axis and the (k,) places of the records.
    curves
        For each quantity, the label of the axis and the (k, S) values of S curves.
    lower_bound
        (k,) certified lower bounds on the objective; None for a training.
    """

    label: str
    times: dict[str, tuple[str, Num[np.ndarray, " k"]]]
    curves: dict[str, tuple[str, Float[np.ndarray, "k S"]]]
    lower_bound: Float[np.ndarray, " k"] | None = None


def history(
    result: Solution | ReLUSolution | History | Training[Any] | TrainingHistory | NTKHistory,
    ax: Axes | None = None,
    *,
    show: str | None = None,
    over: str = "iterations",
    **line: Any,
) -> Axes:
    """Draw the duality gap, the objective or the validation loss of a solver or a training, or its tangent kernel.

    Call it again with the same Axes to compare several results; each has its own colour and line style.

    Parameters
    ----------
    result
        A solution, a training, the history of either, or that of a network's tangent kernel (:func:`fixntk.track`).
    ax
        Axes to draw on; a new figure when None.
    show
        ``"gap"``: the duality gap, on a logarithmic axis. ``"objective"``: the objective, for a solution with the
        certified lower bound on the optimum below it. ``"validation"``: the validation loss of a training. Of a tangent
        kernel ``"similarity"``, ``"alignment"``, ``"eigenvalues"``, ``"trace"``, ``"effective_rank"`` and
        ``"condition_number"``. When None, the first that the result has.
    over
        ``"iterations"`` or ``"seconds"``.
    **line
        For ``Axes.plot``, such as ``label``, which is the solver's name by default.

    Raises
    ------
    TypeError
        If the result has no history.
    ValueError
        If it has no such quantity or no seconds, or is a batch of solutions of ``jax.vmap``.

    See docs/mathematics.md, M7.
    """
    trace = _trace_of(result)
    show = next(iter(trace.curves)) if show is None else show
    if show not in trace.curves:
        raise ValueError(f"show must be one of {list(trace.curves)} for a {type(result).__name__}, got {show!r}")
    if over not in trace.times:
        raise ValueError(f'over must be "iterations" or "seconds", got {over!r}')
    (time_label, times), (curve_label, curves) = trace.times[over], trace.curves[show]
    if not np.any(np.isfinite(times)):
        raise ValueError(
            'over="seconds" needs a history with seconds, which jit, vmap, screened paths and tangent kernels leave out'
        )
    with open_axes(ax) as axes:
        style = {**next_line_style(axes), "label": trace.label, **line}
        if curves.shape[1] > 1:
            style = {"alpha": _OPACITY_OF_MANY, "linewidth": 1.0, **style}
        label = style.pop("label")
        # One entry in the legend for all curves of a stack of networks.
        labels = [label, *[f"_{label}"] * (curves.shape[1] - 1)]
        for curve, its_label in zip(curves.T, labels, strict=True):
            axes.plot(times, curve, label=its_label, **style)
        if show in _LOGARITHMIC:
            axes.set_yscale("log", nonpositive="mask")
        elif show == "objective" and trace.lower_bound is not None:
            _draw_certificate(axes, times, curves[:, 0], trace.lower_bound, f"{label}: lower bound")
        axes.set(xlabel=time_label, ylabel=curve_label)
        if over == "iterations" and axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend(axes)
    return axes


def _draw_certificate(axes: Axes, times: np.ndarray, objective: np.ndarray, bound: np.ndarray, label: str) -> None:
    """The lower bound in the colour of the objective, and the gap between them as an area."""
    colour = axes.lines[-1].get_color()
    axes.plot(times, bound, color=colour, linestyle=":", linewidth=1.2, label=label)
    axes.fill_between(times, bound, objective, color=colour, alpha=0.12, linewidth=0)


def _trace_of(result: Any) -> _Trace:
    if isinstance(result, Solution):
        return _solver_trace(result.history, result.method)
    if isinstance(result, History):
        return _solver_trace(result, "solver")
    if isinstance(result, ReLUSolution):
        seconds, primal, gap = np.asarray(result.history, float).T
        return _certified_trace("ReLU program", seconds, primal, gap)
    if isinstance(result, Training):
        return _training_trace(result.history)
    if isinstance(result, TrainingHistory):
        return _training_trace(result)
    if isinstance(result, NTKHistory):
        return _kernel_trace(result)
    raise TypeError(
        "result must be a Solution, ReLUSolution or Training, or the history of one or of a tangent kernel, got"
        f" {type(result).__name__}"
    )


def _solver_trace(history: History, label: str) -> _Trace:
    primal = np.asarray(history.primal, float)
    if primal.ndim != 1:
        raise ValueError(
            f"result must be one solution, got a batch of shape {primal.shape[:-1]}: "
            "take one with jax.tree.map(lambda leaf: leaf[i], result)"
        )
    # Under jit the history is padded with NaN.
    made = ~np.isnan(primal)
    seconds, gap = np.asarray(history.seconds, float)[made], np.asarray(history.gap, float)[made]
    return _certified_trace(label, seconds, primal[made], gap)


def _certified_trace(label: str, seconds: np.ndarray, primal: np.ndarray, gap: np.ndarray) -> _Trace:
    return _Trace(
        label=label,
        times={"iterations": ("iteration", np.arange(primal.size)), "seconds": ("time (s)", seconds)},
        curves={"gap": ("duality gap", gap[:, None]), "objective": ("objective", primal[:, None])},
        lower_bound=primal - gap,
    )


def _training_trace(history: TrainingHistory) -> _Trace:
    steps, objective = np.asarray(history.steps), np.asarray(history.objective, float)
    curves = {"objective": ("objective", objective.reshape(steps.size, -1))}
    if history.validation is not None:
        validation = np.asarray(history.validation, float)
        curves["validation"] = ("mean validation loss", validation.reshape(steps.size, -1))
    num_networks = curves["objective"][1].shape[1]
    return _Trace(
        label="training" if num_networks == 1 else f"training ({num_networks} networks)",
        times={"iterations": ("step", steps), "seconds": ("time (s)", np.asarray(history.seconds, float))},
        curves=curves,
    )


def _kernel_trace(history: NTKHistory) -> _Trace:
    # A single record is drawn as a history of one.
    steps = np.atleast_1d(history.steps)
    shown = {
        "similarity": ("similarity with the first kernel", history.similarity),
        "alignment": ("alignment with the targets", history.alignment),
        "eigenvalues": ("eigenvalue", history.eigenvalues),
        "trace": ("trace", history.trace),
        "effective_rank": ("effective rank", history.effective_rank),
        "condition_number": ("condition number", None if history.smallest is None else history.condition_number),
    }
    return _Trace(
        label="tangent kernel",
        times={"iterations": ("step", steps), "seconds": ("time (s)", np.full(steps.shape, np.nan))},
        curves={
            name: (text, values.reshape(steps.size, -1)) for name, (text, values) in shown.items() if values is not None
        },
    )


def kernel_weights(
    result: Solution | KernelSolution | ArrayLike,
    ax: Axes | None = None,
    *,
    ntk_weights: ArrayLike | None = None,
    **stairs: Any,
) -> Axes:
    """Draw the kernel weights η of a solution, from the largest to the smallest, against those of the NTK.

    Parameters
    ----------
    result
        A solution, or (P,) kernel weights.
    ax
        Axes to draw on; a new figure when None.
    ntk_weights
        (P,) weights of the NTK for the same gates, such as ``program.best_scale(weights).scale * weights``; drawn in
        the order of the solution's.
    **stairs
        For ``Axes.stairs``, which draws the solution's weights.

    Raises
    ------
    TypeError
        If weights are not numeric.
    ValueError
        If the result is a batch of solutions, or the numbers of weights differ.

    See docs/mathematics.md, M5.
    """
    is_solution = isinstance(result, Solution | KernelSolution)
    weights = as_numbers("result", result.kernel_weights if is_solution else result, (1,))  # type: ignore[union-attr, arg-type]
    active = np.asarray(result.active) if isinstance(result, Solution) else weights > _ACTIVE_SHARE * weights.max()
    order = np.argsort(-weights, kind="stable")
    what = "kernels" if isinstance(result, KernelSolution) else "gates"
    ntk = None if ntk_weights is None else as_numbers("ntk_weights", ntk_weights, (1,))
    if ntk is not None and ntk.shape != weights.shape:
        raise ValueError(f"ntk_weights must have shape {weights.shape}, one weight a gate, got {ntk.shape}")
    # Step k is centred at k.
    edges = np.arange(weights.size + 1) + 0.5
    with open_axes(ax) as axes:
        label = f"solution: {int(active.sum())} of {weights.size} {what} active"
        axes.stairs(weights[order], edges, **{"fill": True, "color": SOLUTION_COLOUR, "label": label, **stairs})
        if ntk is not None:
            axes.stairs(ntk[order], edges, baseline=None, color=NTK_COLOUR, linestyle="--", linewidth=1.6, label="NTK")
        axes.set(xlabel=f"{what}, by decreasing weight", ylabel="kernel weight η", xlim=(edges[0], edges[-1]))
        axes.set_ylim(bottom=0)
        add_legend(axes)
    return axes


def path(result: Path, ax: Axes | None = None, **line: Any) -> Axes:
    """Draw the norms of the groups of a path over λ, which falls from left to right.

    A curve for each group that is active for some λ; groups that become active at larger λ are darker.

    Parameters
    ----------
    result
        A path of at least two solutions.
    ax
        Axes to draw on; a new figure when None.
    **line
        For ``Axes.plot``.

    Raises
    ------
    TypeError
        If it is not a Path.
    ValueError
        If it has fewer than two solutions.

    See docs/mathematics.md, M9.
    """
    if not isinstance(result, Path):
        raise TypeError(f"result must be a Path, got {type(result).__name__}")
    if len(result) < 2:
        raise ValueError(f"result must have at least two solutions, got {len(result)}")
    order = np.argsort(-result.regs, kind="stable").tolist()
    regs = result.regs[order]
    norms = np.stack([np.linalg.norm(np.asarray(result[k].weights, float), axis=(1, 2)) for k in order])
    is_active = np.stack([np.asarray(result[k].active) for k in order])
    # Groups in the order in which they become active.
    entered = np.where(is_active.any(axis=0), is_active.argmax(axis=0), len(regs))
    shown = [int(group) for group in np.argsort(entered, kind="stable") if entered[group] < len(regs)]
    colours = mpl.colormaps[COLOUR_MAP](np.linspace(0, _DARK_PART, max(len(shown), 1)))
    with open_axes(ax) as axes:
        for group, colour in zip(shown, colours[: len(shown)], strict=True):
            axes.plot(regs, norms[:, group], **{"color": colour, "linewidth": 1.2, **line})
        axes.set_xscale("log")
        axes.set(xlabel="regularisation λ", ylabel="group norm ‖Wₚ‖", xlim=(regs[0], regs[-1]))
        axes.set_ylim(bottom=0)
    return axes
