"""Files are seen whole or not at all."""

import pytest

from fixntk._files import replace_when_written


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


def test_two_writers_of_a_file_do_not_mix(tmp_path):
    path = tmp_path / "table.csv"
    with replace_when_written(path) as first, replace_when_written(path) as second:
        first.write_text("the first")
        second.write_text("two")
    assert path.read_text() in ("the first", "two")
    assert list(tmp_path.iterdir()) == [path]
