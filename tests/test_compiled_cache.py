"""Where compiled programs are kept."""

import jax
import pytest

from sgm_jax.parallel import cache


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """No folder is named, neither to JAX nor to us; homes are below `tmp_path`."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', None)
    monkeypatch.delenv(cache.OURS, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    yield
    jax.config.update('jax_compilation_cache_dir', before)


@pytest.mark.parametrize(
    ('processes', 'named', 'expected'),
    [
        (1, '', 'home/sgm_jax/xla'),
        (2, '', 'run/compiled'),
        (1, 'own', 'own/xla'),
        (2, 'own', 'own/xla'),
    ],
)
@pytest.mark.usefixtures('unset')
def test_hosts_share_a_folder_that_all_of_them_see(
    processes, named, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    if named:
        monkeypatch.setenv(cache.OURS, str(tmp_path / named))
    found = cache.keep_compiled(shared=tmp_path / 'run')
    # Below it is a folder for this kind of processor.
    assert found.parent == tmp_path / expected
    assert found.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(found)


@pytest.mark.usefixtures('unset')
def test_a_folder_that_cannot_be_made_is_said(tmp_path, monkeypatch, caplog):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv(cache.OURS, str(tmp_path / 'file'))
    with caplog.at_level('INFO'):
        assert cache.keep_compiled() is None
    assert 'compiled programs are not kept' in caplog.text
    assert jax.config.jax_compilation_cache_dir is None
