"""Fixtures that several folders of tests share: a tiny real project, and one complete cache made from it."""

import os
import shutil
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

torch.set_num_threads(1)

from tests.tiny_project import TinyProject, make_project  # noqa: E402


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A corpus, a tokenizer and a random 8-layer target of width 32; read-only for tests."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def sealed_cache(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of several shards; read-only for tests."""
    from eaglepipe.precompute.stage import run_precompute

    root = tmp_path_factory.mktemp("caches")
    return Path(run_precompute(project.recipe(**{"cache.root": str(root)}), report=lambda _: None).folder)


@pytest.fixture
def cache_copy(sealed_cache: Path, tmp_path: Path) -> Path:
    """The same cache, to be damaged."""
    return Path(shutil.copytree(sealed_cache, tmp_path / "moved" / "under another name"))


@pytest.fixture(scope="session")
def full_cache(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few samples, `hidden` with every head row; read-only for tests."""
    from tests.cache.derived import few, make_cache

    return make_cache(project, tmp_path_factory.mktemp("full"), **few(project), **{"cache.full_head": "true"})


@pytest.fixture(scope="session")
def dense_cache(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 1 makes of the same samples with `dense`; read-only for tests."""
    from tests.cache.derived import few, make_cache

    return make_cache(project, tmp_path_factory.mktemp("dense"), **few(project), **{"cache.supervision": "dense"})
