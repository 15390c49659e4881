"""Texts of a recipe that no file and no path can hold are mistakes of the recipe, named by their setting."""

import pytest

from eaglepipe.errors import ConfigError
from tests.tiny_project import TinyProject

NO_TEXT = {r'"a\0b"': "NUL", r'"\ud800x"': "surrogate|unicode", r'"\udcff"': "surrogate|unicode"}
PATHS = [
    "target.path", "target.revision", "data.sources.0.path", "data.sources.0.name", "data.chat_template", "cache.root",
    "train.output_dir", "train.caches.0", "draft.init", "regenerate.output",
]  # fmt: skip
MORE = {"train.caches": "[x]", "regenerate": "{sources: [{path: x}], output: x.jsonl}"}


@pytest.mark.parametrize("setting", PATHS)
def test_a_text_that_no_path_holds_is_a_mistake_that_names_the_setting(project: TinyProject, setting: str) -> None:
    for value, problem in NO_TEXT.items():
        with pytest.raises(ConfigError, match=rf"1 mistake\(s\)\n  {setting}.*({problem})"):
            project.recipe(**MORE, **{setting: value})


def test_the_home_of_nobody_and_an_output_that_is_no_file_are_mistakes(project: TinyProject) -> None:
    for setting in ("target.path", "data.sources.0.path", "cache.root", "train.output_dir", "draft.init"):
        with pytest.raises(ConfigError, match=f"{setting}: .*a user who is not on this machine"):
            project.recipe(**{setting: "~nobody-at-all/x"})
    for output in ('""', ".", "/", "..", "a/.."):
        with pytest.raises(ConfigError, match=r"regenerate\.output: .*not the name of a file"):
            project.recipe(**MORE, **{"regenerate.output": output})
    assert project.recipe(**{"cache.root": "~/caches"}).cache.root == "~/caches"
