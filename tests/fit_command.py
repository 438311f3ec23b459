"""The command ``fixntk fit`` on a table of a test, and its one line of an error."""

from fixntk.cli import main


def error_line(capsys):
    """The one line on stderr, which is no traceback."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fixntk: error: ")
    return line


def fitted(folder, target="kind", *options):
    """The exit status of a fit of the folder's table to a model beside it."""
    return main(["fit", str(folder / "table.csv"), "--target", target, "--out", str(folder / "model"), *options])
