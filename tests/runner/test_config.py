import json
import math
import time

import pytest

from fixntk.runner import config
from fixntk.runner.config import ConfigError, describe_configs, find_config, load_config

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


def test_lists_need_no_brackets(project):
    for overrides, tables in (["tables=wine"], ("wine",)), (["tables=iris, wine"], ("iris", "wine")):
        assert load_config(project.config, overrides)[1].tables == tables
    for override, seeds in (("seeds=3", (3,)), ("seeds=6, 7", (6, 7))):
        assert load_config(project.config, [override])[1].seeds == seeds
    with pytest.raises(ConfigError, match=r"key 'seeds\.1' is 'seven', expected a valid integer"):
        load_config(project.config, ["seeds=6,seven"])


def test_configs_are_found_by_name_and_described_by_their_first_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "own_folder", lambda: None)
    assert describe_configs() == {}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "first.yaml").write_text(
        "# What it shows, at λ = 0.5,\n# in a line. More.\nexperiment: toy\n"
    )
    (tmp_path / "configs" / "second.yaml").write_text("experiment: toy  # nothing\n")
    assert describe_configs() == {"first": "What it shows, at λ = 0.5, in a line.", "second": ""}
    assert str(find_config("first")) == "configs/first.yaml"
    (tmp_path / "first").write_text("")
    assert str(find_config("first")) == "first"
    for name, end in (("secnd", "; did you mean second?"), ("configs/secnd.yaml", "; did you mean second?"), ("x", "")):
        with pytest.raises(ConfigError) as error:
            find_config(name)
        assert str(error.value) == f"{name}: there is no such file{end}"
    with pytest.raises(ConfigError, match="there is no such file"):
        find_config("a" * 5000)


def test_the_projects_own_configs_are_found_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = config.own_folder()
    assert describe_configs().keys() == {path.stem for path in (own / "configs").glob("*.yaml")}
    experiment, _ = load_config(find_config("toy"))
    assert experiment.__file__ == str(own / "experiments" / "toy.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.yaml").write_text("# Mine.\nexperiment: toy\n")
    assert describe_configs()["toy"] == "Mine."
    assert str(find_config("toy")) == "configs/toy.yaml"
    with pytest.raises(ConfigError, match="uic: there is no such file; did you mean uci"):
        find_config("uic")


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


BOMB = "a: &a [1]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
# Each line is one level deeper than the one before.
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{k + 1}: &a{k + 1} [*a{k}]\n" for k in range(400))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CHAIN, ", line 198, column 14: more than 20000 values, with those that aliases repeat"),
        (BOMB, ", line 6, column 8: more than 20000 values, with those that aliases repeat"),
        (
            "experiment: toy\ntables: &a [*a]",
            ", line 2, column 13: an alias stands for a value that contains it",
        ),
        ("experiment: toy\ntables: " + "[" * 8000, ", line 2, column 40: more than 32 levels inside one another"),
        (
            "experiment: toy\n" + "".join(f"{' ' * k}a:\n" for k in range(99)),
            ", line 33, column 32: more than 32 levels",
        ),
        ("experiment: toy\n[a]: 1", ", line 2, column 1: a key must be text"),
        ("experiment: toy\n{a: b}: 1", ", line 2, column 1: a key must be text"),
        ("experiment: toy\n? !!python/tuple [a]\n: 1", ", line 2, column 3: a key must be text"),
        ("experiment: toy\ntables: [iris]\n1: x", ": unknown key '1', the keys are tables, seeds, reg, solver"),
        ("experiment: toy\ntables: [iris]\non: x", ": unknown key 'on', the keys are tables, seeds, reg, solver"),
        (
            "experiment: toy\nseeds: [" + "9" * 5000 + "]",
            ", line 2, column 9: '999999999999...9999999999999' is not a valid int",
        ),
        (
            "experiment: toy\nseeds: [0x" + "f" * 5000 + "]",
            ", line 2, column 9: '0xffffffffff...fffffffffffff' is not a valid",
        ),
        ("experiment: toy\nseeds: [0b_]", ", line 2, column 9: '0b_' is not a valid int"),
        ('experiment: toy\nseeds: [!!int ""]', ", line 2, column 9: '' is not a valid int"),
        ("experiment: toy\nseeds: [!!bool x]", ", line 2, column 9: 'x' is not a valid bool"),
        (
            "experiment: toy\nseeds: 2021-02-30",
            ": key 'tables' is missing; key 'seeds' is '2021-02-30', expected a valid array",
        ),
        (
            "experiment: toy\nseeds: !!timestamp 2021-02-30",
            ", line 2, column 8: the tag 'tag:yaml.org,2002:timestamp' is",
        ),
        ("experiment: toy\ntables: !!set {iris}", ", line 2, column 9: the tag 'tag:yaml.org,2002:set' is not allowed"),
        (
            "experiment: toy\ntables: !!python/name:os.system",
            ", line 2, column 9: the tag 'tag:yaml.org...ame:os.system' is",
        ),
        ("experiment: " + "a" * 300, ": there is no experiments/" + "a" * 300),
        ("experiment: toy\ntables: [iris] # " + "x" * 20_000, ": has more than 16384 bytes, too many for a config"),
        ('experiment: toy\ntables: ["\\ud800"]', ", line 2, column 10: '\\ud800' has half of a surrogate pair"),
        (
            "experiment: toy\n" + "\n".join(f"key{k}: 1" for k in range(500)),
            ": key 'tables' is missing; unknown key 'key0',",
        ),
    ],
)
def test_what_could_take_forever_or_mean_anything_is_an_error(project, text, expected):
    before = time.process_time()
    assert message(project, text).startswith(expected)
    assert len(message(project)) < 1000
    assert time.process_time() - before < 2


def test_numbers_that_are_not_finite_survive_in_the_json_of_a_run(project, tmp_path):
    _, config = load_config(project.config, ["solver.tol=.inf", "reg=.nan"])
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    description = {"experiment": "toy", **config.model_dump(mode="json")}
    (tmp_path / "runs" / "toy" / "config.json").write_text(json.dumps(description))
    _, again = load_config(tmp_path / "runs" / "toy" / "config.json")
    assert again.solver.tol == math.inf
    assert math.isnan(again.reg)


def test_the_json_of_a_run_may_be_damaged(project):
    path = project.root / "configs" / "config.json"
    for text in ('{"experiment": "toy"', "[" * 100_000, '{"experiment": ' + "9" * 5000 + "}", "\0", ""):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json: (is not JSON: |has too many levels)"):
            load_config(path)


def test_an_alias_repeats_a_value_and_an_override_changes_one_of_them(project):
    project.config.write_text("experiment: toy\ntables: [&name iris, *name]\nsolver: &solver {tol: 1}\nreg: 2")
    assert load_config(project.config)[1].tables == ("iris", "iris")
    project.config.write_text("experiment: &solver {tol: 1}\nsolver: *solver")
    with pytest.raises(ConfigError, match=r"key 'experiment' is \{'tol': 1\}, expected"):
        load_config(project.config, ["solver.tol=3"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a." * 5000 + "a=1", ": the override 'a.a.a.a.a.a....a.a.a.a.a.a=1' has more than 16 dots"),
        (
            "tables=" + "[" * 5000,
            ": the override 'tables=[[[[[...[[[[[[[[[[[[[' is not YAML, line 1, column 33: more than 32",
        ),
        ("reg=" + "x" * 20_000, ": the override 'reg=xxxxxxxx...xxxxxxxxxxxxx' has more than 16384 characters"),
        ("tables=*a", ": the override 'tables=*a' is not YAML, line 1, column 1: found undefined alias 'a'"),
        ("seeds", ": the override 'seeds' is not of the form key=value"),
        ("=1", ": the override '=1' is not of the form key=value"),
        ("seeds=[0", ": the override 'seeds=[0' is not YAML, line 1, column 3:"),
        ("tables.a=1", ": the override 'tables.a=1' reaches into 'tables', not a mapping"),
        ("seeds={a: 3}", ": key 'seeds.0' is {'a': 3}, expected a valid integer"),
        ("sed=3", ": unknown key 'sed' (from the command line), did you mean 'seeds'?"),
        ("jobz=3", ": unknown key 'jobz' (from the command line), did you mean 'jobs'?"),
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


def test_a_module_of_another_package_is_not_run_in_its_place(project, monkeypatch):
    other = project.root / "other" / "experiments"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    (other / "toy.py").write_text((project.root / "experiments" / "toy.py").read_text())
    monkeypatch.syspath_prepend(other.parent)
    __import__("experiments")
    wanted = project.root / "experiments" / "toy.py"
    assert message(project).startswith(f": {other / 'toy.py'} hides {wanted}; does {wanted.parent} have an __init__.py")


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
