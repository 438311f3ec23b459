"""Windows that move over the positions of an input, for convolutions and pooling: checks and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from fixntk._checks import as_positive_int
from fixntk.ntk.covariances import Covariances

# Values of the argument padding.
_PADDINGS = ("SAME", "VALID", "CIRCULAR")


def check_windows(layer: Any, name: str) -> None:
    """Check the shape of a window, called ``name``, with its strides and padding, and store tuples of integers."""
    for attribute in (name, "strides"):
        sizes = getattr(layer, attribute)
        if sizes is None:
            continue
        if not isinstance(sizes, Sequence):
            raise TypeError(f"{attribute} must be a tuple, one number for each axis of positions, got {sizes!r}")
        object.__setattr__(layer, attribute, tuple(as_positive_int(attribute, size) for size in sizes))
    shape = getattr(layer, name)
    if not shape or (layer.strides is not None and len(layer.strides) != len(shape)):
        raise ValueError(
            f"{name} and strides must have one number for each axis of positions, got {shape} and {layer.strides}"
        )
    if layer.padding not in _PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(_PADDINGS)}, got {layer.padding!r}")


def check_axes(covariances: Covariances, name: str, shape: tuple[int, ...]) -> None:
    """Check that a window has a size for each axis of positions."""
    check_num_axes(covariances.num_positions, name, shape)


def check_num_axes(num_axes: int, name: str, shape: tuple[int, ...]) -> None:
    """Check that a window has a size for each axis of positions, of which there are ``num_axes``."""
    if num_axes != len(shape):
        raise ValueError(
            f"{name} {shape} does not fit inputs with {num_axes} axes of positions between the first (examples) and "
            "the last (channels)"
        )


def pad_positions(
    array: Array,
    sides: tuple[tuple[int, ...], ...],
    window_shape: tuple[int, ...],
    strides: tuple[int, ...],
    padding: str,
) -> Array:
    """Pad the axes of positions on every side for windows that then move without padding."""
    widths = [(0, 0)] * array.ndim
    for axes in sides:
        lengths = tuple(array.shape[axis] for axis in axes)
        pads = lax.padtype_to_pads(lengths, window_shape, strides, "VALID" if padding == "VALID" else "SAME")
        for axis, pad in zip(axes, pads, strict=True):
            widths[axis] = pad
    # CIRCULAR wraps around by the widths by which SAME pads with zeros.
    return jnp.pad(array, widths, mode="wrap" if padding == "CIRCULAR" else "constant")
