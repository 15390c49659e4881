"""A Hub on this machine that huggingface_hub and datasets ask instead of the real one."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from eaglepipe.hub.attempts import PATIENCE_VARIABLE
from tests.hub.local_hub import LocalHub, serve

Served = Callable[[str, dict[str, bytes]], LocalHub]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Serve a repository of this name and these files; patience is short and the cache of downloads empty."""
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.6")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "downloads"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with ExitStack() as stack:

        def start(name: str, files: dict[str, bytes]) -> LocalHub:
            hub = stack.enter_context(serve(name, files))
            use_endpoint(monkeypatch, hub.endpoint)
            return hub

        yield start


@pytest.fixture
def model(served: Served) -> LocalHub:
    """A Hub with the model org/tiny, of which one file is larger than an answer that is read at once."""
    config = json.dumps({"model_type": "llama"}).encode()
    return served("org/tiny", {"config.json": config, "model.safetensors": bytes(range(256)) * 4096})


@pytest.fixture
def patient(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time enough for failures that pass, on a busy machine too; the first waits are short all the same."""
    monkeypatch.setenv(PATIENCE_VARIABLE, "8")


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
