"""Files are seen whole or not at all, and those of arrays are refused if any of their content was changed."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fixntk._files import FileFormatError, Format, read_arrays, replace_when_written, write_arrays

pytestmark = pytest.mark.core

KIND = Format("fixntk thing", 3)
FIELDS = {"names": ["a", "=1", "\x00\n\u20ac"], "share": 0.1}
ARRAYS = {
    "plain": np.arange(6.0).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.int16).reshape(2, 3).T,
    "big-endian": np.arange(3, dtype=">f4"),
    "half": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
    "empty": np.zeros((0, 2)),
    "number": np.array(True),
}


def test_the_old_file_is_there_until_the_block_ends(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replace_when_written(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("is_begun", [False, True])
def test_after_an_error_the_old_file_is_as_it_was_and_nothing_beside_it(tmp_path, error, is_begun):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write():
        with replace_when_written(path) as part:
            if is_begun:
                part.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    file, link = tmp_path / "folder" / "file", tmp_path / "link"
    link.symlink_to(file)
    for text in ("new", "newer"):
        with replace_when_written(link) as part:
            part.write_text(text)
        assert link.is_symlink()
        assert file.read_text() == text
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_a_pipe_is_written_to_itself(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replace_when_written(pipe) as part:
        part.write_text("content")
    assert os.read(end, 100) == b"content"
    os.close(end)
    assert pipe.is_fifo()


def test_two_writers_of_a_file_do_not_mix(tmp_path):
    path = tmp_path / "table.csv"
    with replace_when_written(path) as first, replace_when_written(path) as second:
        first.write_text("the first")
        second.write_text("two")
    assert path.read_text() in ("the first", "two")
    assert list(tmp_path.iterdir()) == [path]


def test_fields_and_arrays_come_back(tmp_path):
    write_arrays(tmp_path / "file", KIND, FIELDS, ARRAYS)
    fields, arrays = read_arrays(tmp_path / "file", KIND)
    assert FIELDS.items() <= fields.items()
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(arrays[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "file"
    write_arrays(path, KIND, FIELDS, ARRAYS)
    return path, path.read_bytes()


def refuse(path, content):
    """The message with which a file is refused."""
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        read_arrays(path, KIND)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_every_byte_is_covered(written):
    path, content = written
    for position in range(len(content)):
        # Another bit in each byte: digits stay digits, letters letters.
        changed = bytearray(content)
        changed[position] ^= 1
        refuse(path, bytes(changed))


@given(cut=st.integers(0), added=st.binary())
def test_other_lengths_are_refused(written, cut, added):
    path, content = written
    changed = content[: cut % len(content)] + added
    if changed != content:
        refuse(path, changed)


@given(content=st.binary())
def test_other_bytes_are_refused(written, content):
    refuse(written[0], content)
    # A header of the length that it states.
    refuse(written[0], len(content).to_bytes(8, "little") + content)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": "fixntk other", "version": 3}, "is not the file of a fixntk thing"),
        ({"version": 3}, "is not the file of a fixntk thing"),
        ([], "is not the file of a fixntk thing"),
        ({"format": "fixntk thing"}, "has version None of the format, which is none"),
        *(
            ({"format": "fixntk thing", "version": version}, f"has version {version!r} of the format, which is none")
            for version in ("3", True, 3.0, 0, -1, [3])
        ),
        ({"format": "fixntk thing", "version": 4, "fixntk": "9.0"}, "has version 4 of the format, by fixntk '9.0'"),
        ({"format": "fixntk thing", "version": 2}, "this fixntk reads version 3: make it again"),
        ({"format": "fixntk thing", "version": 3}, "does not have the checksum that it states"),
    ],
)
def test_other_headers_are_named(tmp_path, header, message):
    save_file(ARRAYS | {"half": np.ones(2)}, tmp_path / "file", metadata={"header": json.dumps(header), "sha256": "0"})
    assert message in refuse(tmp_path / "file", (tmp_path / "file").read_bytes())


@pytest.mark.parametrize("header", ["[" * 100_000, "1" * 5_000, "", "nul", '{"format": NaN}'])
def test_headers_that_are_no_json_are_named(tmp_path, header):
    save_file({"a": np.ones(2)}, tmp_path / "file", metadata={"header": header})
    assert "is not the file of" in refuse(tmp_path / "file", (tmp_path / "file").read_bytes())


def test_a_device_or_a_hole_is_not_read_into_memory(tmp_path):
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(2**36)
    for path in (Path("/dev/zero"), tmp_path / "hole"):
        with pytest.raises(FileFormatError, match="is damaged or not the file of a fixntk thing"):
            read_arrays(path, KIND)
