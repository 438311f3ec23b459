import json
import subprocess

import pytest

from fixntk.runner import environment


def test_environment_is_json_and_names_no_folder(tmp_path):
    facts = environment.environment(tmp_path)
    assert str(tmp_path) not in json.dumps(facts)
    assert facts["platform"] in ("cpu", "gpu", "tpu")
    assert facts["cores"] >= 1
    assert facts["git_revision"] is None


def test_git_revision_and_changes(tmp_path):
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    try:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    (tmp_path / "a").write_text("1")
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, *identity, "commit", "-qm", "message"], check=True)
    assert len(environment.environment(tmp_path)["git_revision"]) == 40
    assert environment.environment(tmp_path)["git_dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment.environment(tmp_path)["git_dirty"] is True


def test_device_that_does_not_start_is_reported(monkeypatch):
    def fail():
        raise RuntimeError("no driver")

    monkeypatch.setattr("jax.devices", fail)
    assert environment.environment()["device"] == "none: no driver"


def test_optional_packages_are_those_of_the_extras_for_users():
    packages = environment.optional_packages()
    assert "pydantic" in packages
    assert "scikit-learn" in packages
    assert not {"jax", "ruff", "pytest"} & set(packages)
