"""What the tests of the engine share: a real target from a pip package, and a tiny one that vLLM's CPU kernels take."""

from pathlib import Path

import pytest

from tests.engine.targets import dequantised_smollm2, make_served_project
from tests.tiny_project import TinyProject


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that lies in this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in float32, with its tokenizer and chat template; read-only for tests."""
    return dequantised_smollm2(tmp_path_factory.mktemp("smollm2") / "target")


@pytest.fixture(scope="session")
def served_project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A corpus, a tokenizer and a random target of width 64 that vLLM serves; read-only for tests."""
    return make_served_project(tmp_path_factory.mktemp("served"))
