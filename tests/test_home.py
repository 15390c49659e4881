"""Folders of a recipe that begin with the user's home."""

from pathlib import Path

import pytest

from eaglepipe.cache.storage import cache_root
from eaglepipe.train import run_folder
from tests.tiny_project import TinyProject


def test_a_tilde_is_the_home_of_the_user(project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = project.recipe(**{"cache.root": "~/caches", "train.output_dir": "~/runs/one"})
    assert cache_root(recipe) == tmp_path / "caches"
    assert run_folder(recipe) == tmp_path / "runs" / "one"
