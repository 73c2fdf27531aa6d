import pytest

from tests.report.runs import front_run, tiny_plans


@pytest.fixture(scope="session")
def plans(tmp_path_factory):
    return tiny_plans(tmp_path_factory.mktemp("plans"))


@pytest.fixture
def front(tmp_path, plans):
    """A finished front's run folder."""
    return front_run(tmp_path / "front", plans)
