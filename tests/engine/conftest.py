"""What the tests of the engine share: a real target from a pip package, and a tiny one that vLLM's CPU kernels take."""

from pathlib import Path

import pytest

from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.gguf.folder import ROOT_VARIABLE
from eaglepipe.target.load import resolve_folder
from tests.engine.targets import make_served_project, smollm2_gguf
from tests.tiny_project import TinyProject


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that lies in this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, weights in float32, with its tokenizer and chat template; read-only for tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOT_VARIABLE, str(tmp_path_factory.mktemp("smollm2")))
        return resolve_folder(TargetConfig(path=str(smollm2_gguf())))


@pytest.fixture(scope="session")
def served_project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A corpus, a tokenizer and a random target of width 64 that vLLM serves; read-only for tests."""
    return make_served_project(tmp_path_factory.mktemp("served"))
