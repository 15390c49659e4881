"""Fixtures that several folders of tests share: a tiny real project, and one complete cache made from it."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the process that hands tests to workers runs none, and need not import torch
    from tests.tiny_project import TinyProject

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_finish() -> None:
    """Keep what was imported out of every collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def warm_processes() -> Iterator[None]:
    """Start the fresh processes in which benchmarks measure peaks as children of the tests' server."""
    from eaglepipe.bench import peak
    from tests.processes import WARM

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak, "get_context", lambda _: WARM)
        yield


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> "TinyProject":
    """A corpus, a tokenizer and a random 8-layer target of width 32; read-only for tests."""
    from tests.tiny_project import make_project

    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def sealed_cache(project: "TinyProject", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of several shards; read-only for tests."""
    from eaglepipe.precompute.stage import run_precompute

    root = tmp_path_factory.mktemp("caches")
    return Path(run_precompute(project.recipe(**{"cache.root": str(root)}), report=lambda _: None).folder)


@pytest.fixture
def cache_copy(sealed_cache: Path, tmp_path: Path) -> Path:
    """The same cache, to be damaged."""
    return Path(shutil.copytree(sealed_cache, tmp_path / "moved" / "under another name"))


@pytest.fixture(scope="session")
def full_cache(project: "TinyProject", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few samples, `hidden` with every head row; read-only for tests."""
    from tests.cache.derived import few, make_cache

    return make_cache(project, tmp_path_factory.mktemp("full"), **few(project), **{"cache.full_head": "true"})


@pytest.fixture(scope="session")
def dense_cache(project: "TinyProject", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 1 makes of the same samples with `dense`; read-only for tests."""
    from tests.cache.derived import few, make_cache

    return make_cache(project, tmp_path_factory.mktemp("dense"), **few(project), **{"cache.supervision": "dense"})
