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
