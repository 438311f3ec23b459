"""Compiled programs are kept on disk where the user wants it and jaxlib reads them back rightly."""

import pytest

from fixntk.runner import compilation_cache

pytestmark = pytest.mark.core


@pytest.fixture
def wanted(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("FIXNTK_COMPILATION_CACHE", str(tmp_path))
    monkeypatch.setattr(compilation_cache.jaxlib, "__version__", "0.6.1")
    return tmp_path


def test_the_users_folder_is_taken(wanted):
    assert compilation_cache.cache_folder() == wanted


def test_no_programs_are_kept_where_jaxlib_reads_them_back_wrongly(wanted, monkeypatch):
    assert wanted.exists()
    monkeypatch.setattr(compilation_cache.jaxlib, "__version__", "0.6.0")
    assert compilation_cache.cache_folder() is None


@pytest.mark.parametrize("word", ["off", "0", "No"])
def test_no_programs_are_kept_where_the_user_wants_none(wanted, monkeypatch, word):
    assert wanted.exists()
    monkeypatch.setenv("FIXNTK_COMPILATION_CACHE", word)
    assert compilation_cache.cache_folder() is None


def test_a_folder_that_cannot_be_made_is_told_once_and_none_is_set(wanted, monkeypatch, capsys):
    (wanted / "file").write_text("")
    monkeypatch.setenv("FIXNTK_COMPILATION_CACHE", str(wanted / "file" / "folder"))
    updated = []
    monkeypatch.setattr(compilation_cache.jax.config, "update", lambda name, _: updated.append(name))
    compilation_cache.keep_compiled_programs()
    assert updated == []
    told = capsys.readouterr().err
    assert told.startswith("fixntk: compiled programs are not kept: ")
    assert told.count("\n") == 1
    # One that can be is made and set.
    monkeypatch.setenv("FIXNTK_COMPILATION_CACHE", str(wanted / "new"))
    compilation_cache.keep_compiled_programs()
    assert (wanted / "new").is_dir()
    assert updated[0] == "jax_compilation_cache_dir"


def test_a_folder_that_is_read_only_is_told(wanted, monkeypatch, capsys):
    monkeypatch.setattr(compilation_cache.os, "access", lambda *_: False)
    compilation_cache.keep_compiled_programs()
    assert capsys.readouterr().err == f"fixntk: compiled programs are not kept: {wanted} is read-only\n"
