"""Input checks shared by the public functions: errors name the argument, the value passed and what is expected."""

from __future__ import annotations

import decimal
import math
import numbers
import operator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding


def is_traced(*values: Any) -> bool:
    """Whether any leaf is a tracer, whose values are not known."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def is_tracing(*values: Any) -> bool:
    """Whether any leaf is a tracer, or a function is being traced, where even arrays of constants are tracers."""
    return is_traced(values) or is_traced(-_zero())


@cache
def _zero() -> Array:
    """A number on the device: an operation on it is a tracer while a function is being traced."""
    with jax.ensure_compile_time_eval():
        return jax.device_put(np.float32(0))


def default_device() -> jax.Device:
    """JAX's default device."""
    (device,) = to_device(np.zeros(())).devices()
    return device


def default_platform() -> str:
    """Platform of JAX's default device, such as ``"cpu"`` or ``"gpu"``."""
    return default_device().platform


def as_int(name: str, value: Any) -> int:
    """Return an integer as an int; raise TypeError for anything else."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {value!r}") from error


def as_positive_int(name: str, value: Any) -> int:
    """Return a count as an int; raise TypeError unless it is an integer, and ValueError if it is below 1."""
    number = as_int(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def check_scalar(name: str, value: Any) -> None:
    """Check that a number is finite and not negative; arrays with axes, tracers and pytree placeholders of JAX pass.

    Raises
    ------
    TypeError
        If it is text, a container or a complex number.
    ValueError
        If it is negative, infinite or NaN.
    """
    is_array = isinstance(value, Array | np.ndarray)
    if isinstance(value, str | list | tuple | dict | complex) or (is_array and jnp.iscomplexobj(value)):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    is_number = isinstance(value, int | float | np.number)
    is_scalar = is_array and not is_traced(value) and value.ndim == 0
    if (is_number or is_scalar) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number that is not negative, got {value!r}")


def is_key(leaf: Any) -> bool:
    """Whether an array holds typed PRNG keys."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def entries_of(leaf: Array | np.ndarray) -> np.ndarray:
    """The entries of an array on the host; of typed PRNG keys, their data."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def as_array(name: str, value: Any) -> Array:
    """Return ``value`` as a JAX array of numbers, or of typed PRNG keys.

    It may be an array of NumPy, pandas, pyarrow, or anything else that NumPy takes, of any byte order and precision.

    Raises
    ------
    TypeError
        If it is anything else.
    ValueError
        If values are missing, or integers need 64 bits and those are off in JAX.
    """
    value = _as_numbers(name, value)
    if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.bool_, jnp.number, jax.dtypes.prng_key)):
        raise TypeError(f"{name} must be a numeric array, got dtype {value.dtype}")
    return _to_device(name, value)


def as_real_array(name: str, value: Any) -> Array:
    """Return ``value`` as a JAX array of bool, integers or floating-point numbers, taken as :func:`as_array` does.

    Raises
    ------
    TypeError
        If it is anything else.
    ValueError
        If values are missing, or integers need 64 bits and those are off in JAX.
    """
    return _to_device(name, as_real(name, value))


def is_floating(name: str, value: Any) -> bool:
    """Whether the numbers of an array, of which :func:`as_real_array` says what it may be, are floating-point."""
    return bool(jnp.issubdtype(as_real(name, value).dtype, jnp.floating))


def as_real(name: str, value: Any) -> Array | np.ndarray:
    """A JAX array as it is, anything else as a NumPy array, checked to hold real numbers."""
    value = _as_numbers(name, value)
    # JAX's hierarchy of dtypes, because NumPy's hierarchy does not contain bfloat16.
    if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise TypeError(f"{name} must be a real numeric array, got dtype {value.dtype}")
    # JAX promotes numbers of eight bits to no other type.
    is_narrow = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 2
    return value.astype(np.float32) if is_narrow else value


def _as_numbers(name: str, value: Any) -> Array | np.ndarray:
    """A JAX array as it is, anything else as a NumPy array with a dtype that JAX has."""
    if isinstance(value, jax.Array):
        return value
    refuse_masked(name, value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a numeric array, got {type(value).__name__}: {error}") from error
    if array.dtype.kind in "mMSUT":
        raise TypeError(f"{name} must be a real numeric array, got dtype {array.dtype}")
    if array.dtype == object:
        array = _as_numbers_from_objects(name, array)
    if array.dtype.char == "g":
        # Long double, of which JAX has no equal. What overflows is found where infinities are.
        with np.errstate(over="ignore"):
            return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _as_numbers_from_objects(name: str, array: np.ndarray) -> np.ndarray:
    """Numbers of an array of Python's objects, as which pandas hands out columns of several types."""
    entries = array.ravel().tolist()
    if not array.ndim and entries[0] is None:
        raise TypeError(f"{name} must be a real numeric array, got dtype object, None")
    refuse_missing(name, array)
    others = {
        type(entry).__name__ for entry in entries if not isinstance(entry, numbers.Real | decimal.Decimal | np.bool_)
    }
    if others:
        raise TypeError(
            f"{name} must be a real numeric array, got dtype object with entries of type {', '.join(sorted(others))}"
        )
    found = np.array(entries)
    if found.dtype == object:
        # Decimals, fractions and long integers.
        try:
            found = np.array([float(entry) for entry in entries])
        except (OverflowError, ValueError) as error:
            raise ValueError(f"{name} has a number that float64 cannot hold: {error}") from error
    return found.reshape(array.shape)


def refuse_masked(name: str, value: Any) -> None:
    """Raise ValueError if a masked array, or a list of some, hides entries."""
    is_list = isinstance(value, list | tuple)
    masked = [row for row in (value if is_list else [value]) if isinstance(row, np.ma.MaskedArray)]
    if masked:
        shape = (len(value), *masked[0].shape) if is_list else value.shape
        _refuse_missing(name, sum(int(np.ma.count_masked(row)) for row in masked), shape)


def refuse_missing(name: str, array: np.ndarray) -> None:
    """Raise ValueError if entries of an array of Python's objects are missing: None, or those of pandas."""
    if array.dtype == object:
        missing = [entry is None or type(entry).__name__ in ("NAType", "NaTType") for entry in array.ravel().tolist()]
        _refuse_missing(name, sum(missing), array.shape)


def _refuse_missing(name: str, count: int, shape: tuple[int, ...]) -> None:
    if count:
        raise ValueError(f"{name} has {count} missing value(s) in shape {shape}")


def _to_device(name: str, value: Array | np.ndarray) -> Array:
    array = to_device(value)
    if isinstance(value, np.ndarray) and array.dtype != value.dtype and value.dtype.kind in "iu" and value.size:
        limits = jnp.iinfo(array.dtype)
        if value.max() > limits.max or value.min() < limits.min:
            raise ValueError(
                f"{name} holds integers from {value.min()} to {value.max()}, beyond {array.dtype}: enable"
                " jax_enable_x64, or pass floating-point numbers"
            )
    return array


def to_device(value: Array | np.ndarray) -> Array:
    """A JAX array of a NumPy array's values, concrete also while a function is traced.

    ``jnp.asarray`` would compile a program for each shape.
    """
    if isinstance(value, jax.Array):
        return _with_automatic_axes(value)
    try:
        with jax.ensure_compile_time_eval():
            return jax.device_put(value)
    except (MemoryError, ValueError, jax.errors.JaxRuntimeError) as error:
        if not is_exhaustion(error):
            raise
        shape, size = "×".join(map(str, value.shape)), bytes_in_words(value.nbytes)
        message = f"an array of {shape} numbers needs {size}, which the device does not have: pass fewer at a time"
        raise OutOfMemoryError(message) from None


class RowSharding(NamedTuple):
    """How rows are divided over devices: the mesh, and the name or names of its axes over which they are."""

    mesh: Mesh
    axes: str | tuple[str, ...]

    @property
    def num_parts(self) -> int:
        """Number of parts, each on one device or several."""
        axes = (self.axes,) if isinstance(self.axes, str) else self.axes
        return math.prod(self.mesh.shape[axis] for axis in axes)


def row_sharding(tree: Any) -> RowSharding | None:
    """How the rows of a pytree's arrays are divided; None unless all are, alike, and no other axis is."""
    found = {_row_sharding(leaf) for leaf in jax.tree.leaves(tree)}
    return found.pop() if len(found) == 1 else None


def _row_sharding(array: Any) -> RowSharding | None:
    sharding = array.sharding if isinstance(array, Array) and not is_traced(array) else None
    if not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated or not isinstance(sharding.mesh, Mesh):
        return None
    axes, *others = sharding.spec
    return None if axes is None or any(other is not None for other in others) else RowSharding(sharding.mesh, axes)


def place_rows_like(x: Array, rows: Array) -> Array:
    """Rows on one device divided as those of x are; as they are where x is not divided, or they are already."""
    sharding = row_sharding(x)
    if sharding is None or is_traced(rows) or len(rows.sharding.device_set) > 1:
        return rows
    return place(rows, NamedSharding(sharding.mesh, PartitionSpec(sharding.axes)))


def place(array: Array | np.ndarray, sharding: Sharding) -> Array:
    """An array that is the same on every process, on the devices of a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # device_put would send every entry between the processes, to compare their arrays.
    return jax.make_array_from_callback(array.shape, sharding, np.asarray(array).__getitem__)


def _with_automatic_axes(array: Array) -> Array:
    """An array of the same parts on the same devices, over which XLA divides programs by itself.

    ``jax.make_mesh`` makes meshes over which every function would have to say how its result is divided.
    """
    sharding = None if is_traced(array) else array.sharding
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return array
    automatic = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
    if automatic == sharding.mesh:
        return array
    with jax.ensure_compile_time_eval():
        return jax.device_put(array, NamedSharding(automatic, sharding.spec))


class OutOfMemoryError(MemoryError, ValueError):
    """A computation needs more memory than there is; the message says how much, and what lowers it."""


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that an allocation failed."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def bytes_in_words(num_bytes: int | float) -> str:
    """A number of bytes in units that people read."""
    for prefix, unit in (("P", 2**50), ("T", 2**40), ("G", 2**30)):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {prefix}iB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.0f} KiB"


def as_float_array(name: str, value: Any, ndim: tuple[int, ...]) -> Array:
    """Return ``value`` as a floating-point JAX array of one of the numbers of dimensions in ``ndim``.

    Raises
    ------
    TypeError
        If it is not a numeric array.
    ValueError
        If values are missing, its number of dimensions is wrong, it is empty, or it holds NaN or infinity.
    """
    value = as_real(name, value)
    array = to_device(value if is_floating(name, value) else value.astype(jnp.result_type(float)))
    if array.ndim not in ndim:
        expected = " or ".join(str(k) for k in ndim)
        raise ValueError(f"{name} must have {expected} dimensions, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: shape {array.shape}")
    if not is_traced(array) and not math.isfinite(largest_entry(array)):
        with jax.ensure_compile_time_eval():
            bad = int(jnp.sum(~jnp.isfinite(array)))
        raise ValueError(f"{name} holds {bad} NaN or infinite value(s) in shape {array.shape}")
    return array


def largest_entry(array: Array) -> float:
    """Largest absolute value of an array that is not traced; NaN if it holds one."""
    if all(device.platform == "cpu" for device in array.devices()) and array.is_fully_addressable:
        # NumPy reads arrays of a CPU without a copy, and compiles nothing.
        entries = np.asarray(array)
        return float(np.maximum(np.max(entries), -np.min(entries)))
    # A concrete array that a traced function closes over has known values, but reading them needs eager evaluation.
    with jax.ensure_compile_time_eval():
        return float(_largest(array))


@jax.jit
def _largest(array: Array) -> Array:
    # A maximum over processes loses NaN where their CPUs take it.
    return jnp.where(jnp.any(jnp.isnan(array)), jnp.nan, jnp.max(jnp.abs(array)))


def as_matrix(name: str, value: Any) -> Array:
    """Return ``value`` as a finite, non-empty, two-dimensional floating-point array."""
    return as_float_array(name, value, (2,))


def check_same_rows(name1: str, array1: Array, name2: str, array2: Array) -> None:
    """Raise ValueError unless both arrays have the same number of rows."""
    if array1.shape[0] != array2.shape[0]:
        raise ValueError(
            f"{name1} and {name2} must have the same number of rows, got shapes {array1.shape} and {array2.shape}"
        )


def check_same_columns(name1: str, array1: Array, name2: str, array2: Array) -> None:
    """Raise ValueError unless both matrices have the same number of columns."""
    if array1.shape[1] != array2.shape[1]:
        raise ValueError(
            f"{name1} and {name2} must have the same number of columns, got shapes {array1.shape} and {array2.shape}"
        )


def check_squares(name: str, array: Array) -> None:
    """Raise ValueError if squared lengths of an array's rows are too large for its dtype."""
    if is_traced(array):
        return
    largest = largest_entry(array)
    limit = math.sqrt(float(jnp.finfo(array.dtype).max) / array.shape[-1])
    if largest > limit:
        raise ValueError(
            f"{name} holds entries up to {largest:.1e}, squared lengths overflow {array.dtype} above {limit:.1e}: "
            "scale the inputs"
        )


def as_numpy(value: Any) -> np.ndarray:
    """Return a float64 NumPy copy for computations on the host."""
    return np.asarray(value, dtype=np.float64)


def describe_fields(name: str, **fields: Any) -> str:
    """A record in a line, for its ``repr``: arrays by dtype and shape, without their numbers; no field that is None."""
    shown = []
    for field, value in fields.items():
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            shown.append(f"{field} {value.dtype}{list(value.shape)}")
        elif value is not None:
            shown.append(f"{field} {value}")
    return f"{name}({', '.join(shown)})"
