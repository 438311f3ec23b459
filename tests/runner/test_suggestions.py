"""Errors of the command line name what may be meant, and nothing where nothing is near."""

import pytest

from fixntk.cli import main


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["rnu"], "run"),
        (["reprot", "runs/toy"], "report"),
        (["run", "toy", "--fast"], None),
        (["run", "toy", "--resmue"], "--resume"),
        (["run", "toy", "seeds=[1]", "--otu=here"], "--out"),
        (["verify", "--qiuck"], "--quick"),
        (["fit", "table.csv", "--target", "y", "--out", "model", "--colunms", "a=id"], "--columns"),
        (["fit", "table.csv", "--target", "y", "--out", "model", "--method", "gate"], "gated"),
        (["fit", "table.csv", "--taregt", "y", "--out", "model"], "--target"),
        (["fit", "table.csv", "--target", "y", "--uot=model"], "--out"),
        (["fit", "table.csv", "--target", "y"], None),
        (["info", "xyz"], None),
        (["xyz"], None),
    ],
)
def test_the_nearest_word_is_named(capsys, arguments, meant):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    if meant is None:
        assert "did you mean" not in last
    else:
        assert last.endswith(f"; did you mean {meant}?")
