import pytest

from fastfeed._extension import extension


@pytest.fixture(scope="module")
def pool():
    return extension().Pool(2)


@pytest.fixture
def cache_folder(tmp_path_factory, monkeypatch):
    """Return where fastfeed keeps what it can make again, in this test alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "fastfeed"
