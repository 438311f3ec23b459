"""Files that are written completely or not at all: any, those of arrays with a checksum, and checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fixntk._checks import entries_of, is_key

Content = TypeVar("Content")

# Number of bytes at the start of a safetensors file that hold the length of its header.
_LENGTH_BYTES = 8
# NumPy's names of the types of arrays in safetensors files.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


class FileFormatError(ValueError):
    """A file of arrays cannot be used; the message names the file and the reason, in one line."""


class _OtherVersionError(FileFormatError):
    """A file is of a version of its format that this fixntk does not read."""


class Format(NamedTuple):
    """A kind of file of arrays.

    Attributes
    ----------
    name
        For instance "fixntk network".
    version
        The version that is written, the only one that is read.
    """

    name: str
    version: int


# Ending of the names of files that are being written.
PART_SUFFIX = ".part"
# Number of random bytes in such a name.
_NUM_RANDOM_BYTES = 4


@contextmanager
def replace_when_written(path: Path) -> Iterator[Path]:
    """Yield the path of a new file next to ``path``, which it replaces when the block ends without an error.

    After an error the new file is removed and ``path`` is unchanged. Several processes may write the same file: each
    has a new file of its own, and the last to end wins. A device or a pipe, such as /dev/stdout, is written to itself.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    # A link stays one: /dev/stdout is a link to a file where the shell redirects it.
    path = path.resolve() if path.is_symlink() else path
    part = path.with_name(f"{path.name}.{secrets.token_hex(_NUM_RANDOM_BYTES)}{PART_SUFFIX}")
    try:
        yield part
        _flush_to_disk(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _flush_to_disk(path: Path) -> None:
    """Wait until the file is on disk: after a power failure a renamed file could otherwise be empty."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def require_safetensors() -> None:
    """Raise ModuleNotFoundError where safetensors is missing, before there is work that could not be written."""
    _safetensors()


def write_arrays(path: Path, kind: Format, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file: the arrays, and in its metadata the fields as JSON, with a checksum of everything.

    An existing file is replaced only when the new one is complete.
    """
    library = _safetensors()
    header = json.dumps(
        {"format": kind.name, "version": kind.version, "fixntk": package_version("fixntk"), **fields}, allow_nan=False
    )
    # safetensors copies the memory of an array as it lies.
    plain = {name: np.asarray(array, array.dtype.newbyteorder("="), order="C") for name, array in arrays.items()}
    content = library.numpy.save(plain, metadata={"header": header, "sha256": _checksum(header, plain)})
    with replace_when_written(path) as part:
        part.write_bytes(content)


def read_arrays(path: Path, kind: Format) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and arrays of a file that :func:`write_arrays` wrote; reading it runs nothing that is in it.

    Raises
    ------
    OSError
        If the file cannot be read.
    FileFormatError
        If it is no such file, has another version, or was changed.
    """
    library = _safetensors()
    content = _read_whole(path, kind)
    try:
        tensors = library.deserialize(content)
    except library.SafetensorError as error:
        raise FileFormatError(f"{path}: is damaged or not the file of a {kind.name}: {str(error)!r}") from error
    metadata = _metadata_of(content)
    header = metadata.get("header", "")
    fields = _fields_of(header)
    if fields.get("format") != kind.name:
        raise FileFormatError(f"{path}: is not the file of a {kind.name}")
    _check_version(path, fields, kind)
    try:
        arrays = {
            name: np.frombuffer(tensor["data"], jnp.dtype(_DTYPES[tensor["dtype"]])).reshape(tensor["shape"])
            for name, tensor in tensors
        }
    except KeyError as error:
        raise FileFormatError(f"{path}: holds an array of type {error.args[0]!r}, which is not known") from error
    except ValueError as error:
        raise FileFormatError(f"{path}: is damaged: {error}") from error
    if metadata.get("sha256") != _checksum(header, arrays):
        raise FileFormatError(f"{path}: is damaged: its content does not have the checksum that it states")
    return fields, arrays


def _metadata_of(content: bytes) -> dict[str, str]:
    """The metadata in the header, of which the library has checked the length and that it is a JSON object."""
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    return json.loads(content[_LENGTH_BYTES:end]).get("__metadata__") or {}


def _fields_of(header: str) -> dict[str, Any]:
    """The fields of a header; none where it is no JSON object."""
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _read_whole(path: Path, kind: Format) -> bytes:
    """The content of a file whose header's length fits its own, so that a device or a hole is not read at all."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_LENGTH_BYTES)
        header = file.read(1)
        if not _LENGTH_BYTES + int.from_bytes(start, "little") <= size or not header.startswith(b"{"):
            raise FileFormatError(f"{path}: is damaged or not the file of a {kind.name}")
        return start + header + file.read(size)


def _is_foreign(path: Path) -> bool:
    """Whether a file is a safetensors file that fixntk has not written; one that is damaged may have been ours.

    Its header alone is read, as checkpoints are large.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES)
            length = min(int.from_bytes(start, "little"), path.stat().st_size)
            return "sha256" not in _metadata_of(start + file.read(length))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False


def _check_version(path: Path, fields: Mapping[str, Any], kind: Format) -> None:
    found = fields.get("version")
    if type(found) is not int or found < 1:
        raise FileFormatError(f"{path}: has version {found!r} of the format, which is none")
    if found > kind.version:
        raise _OtherVersionError(
            f"{path}: has version {found} of the format, by fixntk {fields.get('fixntk')!r}, newer than this"
            f" fixntk {package_version('fixntk')}, which reads version {kind.version}"
        )
    if found < kind.version:
        raise _OtherVersionError(
            f"{path}: has version {found} of the format, this fixntk reads version {kind.version}: make it again"
        )


def _checksum(header: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Checksum of the header and of each array's name, type, shape and entries."""
    digest = hashlib.sha256(header.encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "files of arrays need safetensors: pip install 'fixntk[networks]'", name="safetensors"
        ) from error
    return safetensors


_CHECKPOINT = Format("fixntk checkpoint", version=1)
_CHECKPOINT_NAME = re.compile(r"step-(\d+)\.safetensors")
# Files that a process was writing when it was killed.
_PART_NAME = re.compile(rf"step-\d+\.safetensors\.[0-9a-f]{{{2 * _NUM_RANDOM_BYTES}}}{re.escape(PART_SUFFIX)}")
# Number of the newest checkpoints that are kept.
_MAX_CHECKPOINTS = 2


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one computation in a folder, which keeps the two newest; other files in it are ignored.

    Attributes
    ----------
    folder
        Made when the first is written, or looked for.
    of
        What the computation is, such as "training".
    fingerprint
        A text for each argument that must be the same for it to be continued, by name.
    functions
        Names of those whose text depends on "versions", as that of a function does: they are compared only where that
        is the same.
    """

    folder: Path
    of: str
    fingerprint: Mapping[str, str]
    functions: Collection[str] = ()

    def save(self, step: int, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write the checkpoint of a step, and remove all but the two newest up to it.

        Raises
        ------
        OSError
            If it cannot be written, as on a full disk; the checkpoints before stay.
        """
        fields = {"of": self.of, "fingerprint": dict(self.fingerprint), **fields}
        with self._explain_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_arrays(self.folder / f"step-{step}.safetensors", _CHECKPOINT, fields, arrays)
            checkpoints = self._by_step()
            kept = [made for made in checkpoints if made <= step][:_MAX_CHECKPOINTS]
            # Later ones are damaged, as the computation continued from this one's predecessor.
            abandoned = [path for path in self.folder.iterdir() if _PART_NAME.fullmatch(path.name)]
            for path in [*(checkpoints[made] for made in checkpoints.keys() - kept), *abandoned]:
                path.unlink()

    def is_empty(self) -> bool:
        """Whether there are none."""
        return not self._by_step()

    def newest(self, read: Callable[[dict[str, Any], dict[str, np.ndarray]], Content]) -> Content | None:
        """What ``read`` makes of the fields and arrays of the newest checkpoint that is not damaged; None without any.

        Raises
        ------
        ValueError
            If it is of another computation, or all are damaged.
        OSError
            If the folder cannot be made.

        Warns
        -----
        UserWarning
            If a checkpoint is damaged, so that the one before is read.
        """
        _safetensors()
        with self._explain_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
        checkpoints = self._by_step()
        for path in checkpoints.values():
            try:
                fields, arrays = read_arrays(path, _CHECKPOINT)
                difference = self._difference(fields["of"], dict(fields["fingerprint"]))
                content = None if difference else read(fields, arrays)
            except _OtherVersionError as error:
                raise ValueError(f"checkpoint {error}") from error
            except (FileFormatError, KeyError, TypeError, ValueError, OSError) as error:
                reason = error if isinstance(error, FileFormatError | OSError) else f"{path}: is damaged: {error!r}"
                warnings.warn(f"{reason}; the {self.of} continues from the checkpoint before", stacklevel=4)
                continue
            if difference:
                raise ValueError(
                    f"checkpoint {self.folder} is of a {difference}: pass the same as before, or another folder"
                )
            return content
        if checkpoints:
            raise ValueError(
                f"checkpoint {self.folder}: all of its {len(checkpoints)} checkpoints are damaged: remove them"
            )
        return None

    def _by_step(self) -> dict[int, Path]:
        """The checkpoints by their number of steps, the newest first, without files of the same name by others."""
        if not self.folder.is_dir():
            return {}
        named = ((_CHECKPOINT_NAME.fullmatch(path.name), path) for path in self.folder.iterdir() if path.is_file())
        ours = ((int(name[1]), path) for name, path in named if name and not _is_foreign(path))
        return dict(sorted(ours, reverse=True))

    def _difference(self, of: str, saved: Mapping[str, Any]) -> str:
        """The computation that a checkpoint is of, where it is not this one."""
        if of != self.of:
            return f"{of}, not of a {self.of}"
        names = set(saved) | set(self.fingerprint)
        if saved.get("versions") != self.fingerprint.get("versions"):
            names -= {"versions", *self.functions}
        others = sorted(name for name in names if saved.get(name) != self.fingerprint.get(name))
        return f"{of} with other {', '.join(others)}" if others else ""

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = "is a file, not a folder" if isinstance(error, FileExistsError) else error.strerror
            message = f"checkpoint {self.folder} cannot be written: {reason}; what was written before stays"
            raise OSError(error.errno, message) from error


def digest(tree: Any) -> str:
    """A text that differs for other values of a pytree of arrays, numbers, text and None."""
    leaves, structure = jax.tree.flatten(tree)
    found = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and is_key(leaf):
            found.update(str(leaf.dtype).encode())
        array = entries_of(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
        found.update(f"{array.dtype}{array.shape}".encode())
        # Its memory itself: masks are gigabytes.
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
