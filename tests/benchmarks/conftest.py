import pytest


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    """The suite refuses to run in Triton's interpreter, which the other tests need where there is no GPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
