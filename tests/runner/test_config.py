import pytest

from fixntk.runner.config import ConfigError, load_config

pytest_plugins = ("toy_experiment",)


def message(project, text=None, overrides=()):
    if text is not None:
        project.config.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(project.config, overrides)
    assert str(project.config) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(project.config))


def test_config_is_read_and_validated(project):
    experiment, config = load_config(project.config)
    assert experiment.__name__ == "experiments.toy"
    assert config.tables == ("iris", "wine")
    assert config.seeds == (0, 1)


def test_experiment_is_found_beside_the_config_from_any_folder(project, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_config(project.config)[1].seeds == (0, 1)


def test_experiment_is_found_in_the_current_folder(project, tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "some.yaml"
    path.write_text(project.config.read_text())
    assert load_config(path)[1].seeds == (0, 1)


@pytest.mark.parametrize(
    ("override", "value"),
    [("1e-8", 1e-8), ("0.5", 0.5), ("1", 1.0), (".5E+3", 500.0)],
)
def test_override_reaches_into_mappings_and_takes_numbers_as_people_write_them(project, override, value):
    assert load_config(project.config, [f"solver.tol={override}"])[1].solver.tol == value


def test_overrides_are_yaml_and_the_last_one_wins(project):
    _, config = load_config(project.config, ["seeds=[5]", "tables=[a=b]", "seeds=[6, 7]"])
    assert config.seeds == (6, 7)
    assert config.tables == ("a=b",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tables: [iris]", ": the key 'experiment' is missing; it names a module of experiments/"),
        ("", ": the key 'experiment' is missing; it names a module of experiments/"),
        ("- a", ": expected 'key: value' lines, got a list"),
        ("experiment: toy\ntables: [a\n", ", line 3, column 1: expected ',' or ']', but got '<stream end>'"),
        ("experiment: toy\nseeds: [0]\nseeds: [1]", ", line 3, column 1: the key 'seeds' is given twice"),
        ("experiment: ../toy", ": key 'experiment' is '../toy', expected the name of a module"),
        ("experiment: tox", ": there is no experiments/tox.py for 'experiment: tox'; there are toy"),
        ("experiment: toy", ": key 'tables' is missing"),
        ("experiment: toy\ntables: [a]\nsedes: [0]", ": unknown key 'sedes', did you mean 'seeds'?"),
        (
            "experiment: toy\ntables: [a]\nxyz: 0",
            ": unknown key 'xyz', the keys are tables, seeds, reg, solver",
        ),
        ("experiment: toy\ntables: [a]\nsolver: {tl: 1}", ": unknown key 'solver.tl', did you mean 'tol'?"),
        ("experiment: toy\ntables: [a]\nseeds: [0, x]", ": key 'seeds.1' is 'x', expected a valid integer"),
        (
            "experiment: toy\ntables: [a]\nreg: [1]",
            ": key 'reg' is [1], expected a valid number or a valid string",
        ),
        ("experiment: toy\ntables: [a]\nsolver: {tol: 0}", ": key 'solver.tol' is 0, expected greater than 0"),
        ("experiment: toy\ntables: [unknown]", ": key 'tables' is ['unknown']: there is no table unknown"),
        (
            "experiment: toy\ntables: iris\nseeds: x",
            ": key 'tables' is 'iris', expected a valid array; key 'seeds' is 'x', expected a valid array",
        ),
    ],
)
def test_error_is_one_line_with_file_and_key(project, text, expected):
    assert message(project, text) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seeds", ": the override 'seeds' is not of the form key=value"),
        ("=1", ": the override '=1' is not of the form key=value"),
        ("seeds=[0", ": the override 'seeds=[0' is not YAML, line 1, column 3:"),
        ("tables.a=1", ": the override 'tables.a=1' reaches into 'tables', not a mapping"),
        ("seeds=3", ": key 'seeds' is 3 (from the command line), expected a valid array"),
        ("sed=3", ": unknown key 'sed' (from the command line), did you mean 'seeds'?"),
    ],
)
def test_error_in_an_override_quotes_it(project, override, expected):
    assert message(project, overrides=[override]).startswith(expected)


def test_missing_unreadable_and_undecodable_files_are_named(project):
    project.config.write_bytes(b"experiment: toy\ntables: [\xff]")
    assert message(project) == ": is not UTF-8 text"
    project.config.unlink()
    assert message(project) == ": there is no such file"
    project.config.mkdir()
    assert message(project) == ": cannot be read: Is a directory"


def test_module_that_is_no_experiment_says_what_it_lacks(project):
    (project.root / "experiments" / "toy.py").write_text("def tasks(config): ...")
    with pytest.raises(ConfigError, match=r"experiments\.toy is not an experiment: it lacks Config, run_task"):
        load_config(project.config)


def test_another_package_named_experiments_is_reported(project, monkeypatch):
    other = project.root / "other" / "experiments"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    monkeypatch.syspath_prepend(other.parent)
    __import__("experiments")
    assert message(project) == f": another package named 'experiments' hides {project.root / 'experiments'}"


def test_missing_package_inside_an_experiment_is_not_hidden(project):
    (project.root / "experiments" / "toy.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_config(project.config)
