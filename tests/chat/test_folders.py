"""Folders and patterns give the files of the split and config that were asked for, or list those that are there."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest

from eaglepipe.chat.folders.listing import local_files
from eaglepipe.errors import DataError
from eaglepipe.recipe.config import SourceConfig

HASH = "-00000-of-00001-a1b2c3d4e5f60718.parquet"
HASHED = [f"{split}{HASH}" for split in ("train", "test")]
CHAT = [f"data/{split}{HASH}" for split in ("train_sft", "test_sft", "train_gen", "test_gen")]
CONFIGS = [f"{config}/{split}{HASH}" for config in ("main", "socratic") for split in ("train", "test")]
PLAIN = ["a.jsonl", "sub/b.jsonl.gz", "sub/deep/c.parquet"]


def chosen(folder: Path, files: Sequence[str], pattern: str = "", **fields: Any) -> list[str]:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    source = SourceConfig(path=f"{folder}/{pattern}", **fields)
    return [str(file.relative_to(folder)) for file in local_files(source)]


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        (HASHED, "train", HASHED[:1]),
        (HASHED, "test", HASHED[1:]),
        (CHAT, "train_sft", CHAT[:1]),
        (CHAT, "test_gen", CHAT[3:]),
        (["en-00000-of-00002.jsonl", "fr-00000-of-00001.jsonl"], "en", ["en-00000-of-00002.jsonl"]),
        (["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"], "train", ...),
        (["corpus-00000-of-00002.jsonl", "corpus-00001-of-00002.jsonl"], "train", ...),
        (["train/a.jsonl", "train/b.jsonl", "test/c.jsonl"], "train", ["train/a.jsonl", "train/b.jsonl"]),
        (["default/train/0000.parquet", "default/test/0000.parquet"], "test", ["default/test/0000.parquet"]),
        (["train_1.jsonl.gz", "train_2.jsonl.gz", "test.jsonl"], "train", ["train_1.jsonl.gz", "train_2.jsonl.gz"]),
        (["a_train.jsonl", "b_train.jsonl", "a_test.jsonl"], "train", ["a_train.jsonl", "b_train.jsonl"]),
        (["x-train-00000-of-00001.arrow", "x-test.arrow"], "train", ["x-train-00000-of-00001.arrow"]),
        (["training.jsonl", "dev.jsonl"], "train", ["training.jsonl"]),
        (["training.jsonl", "dev.jsonl"], "validation", ["dev.jsonl"]),
        (["train.jsonl", "stats.json", "test.jsonl"], "train", ["train.jsonl"]),
        (["latest.jsonl", "contest.jsonl"], "train", ["contest.jsonl", "latest.jsonl"]),
        (["en/x.jsonl", "fr/y.jsonl"], "fr", ["fr/y.jsonl"]),
        (PLAIN, "train", PLAIN),
        (
            [*PLAIN, "dataset_infos.json", "config.json", ".x.jsonl", ".cache/y.jsonl", "__MACOSX/z.jsonl"],
            "train",
            PLAIN,
        ),
        (["x-train.arrow", "cache-01.arrow", "dataset_info.json"], "train", ["x-train.arrow"]),
        (["a.jsonl", "a.jsonl.report.json", "a.jsonl.left-out.jsonl", "notes.md"], "train", ["a.jsonl"]),
    ],
)
def test_split_is_read_from_the_names(tmp_path: Path, files: list[str], split: str, expected: Any) -> None:
    assert chosen(tmp_path, files, split=split) == (files if expected is ... else expected)


@pytest.mark.parametrize(
    ("files", "fields", "expected"),
    [
        (CONFIGS, {"config": "main"}, CONFIGS[:1]),
        (CONFIGS, {"config": "socratic", "split": "test"}, CONFIGS[3:]),
        ([f"data/{name}" for name in CONFIGS], {"config": "main"}, [f"data/{CONFIGS[0]}"]),
        (["default/train.jsonl", "other/train.jsonl"], {}, ["default/train.jsonl"]),
        (["train.jsonl", "other/train.jsonl"], {"config": "default"}, ["train.jsonl"]),
        (["train/en/x.jsonl", "train/fr/y.jsonl"], {"config": "en"}, ["train/en/x.jsonl"]),
    ],
)
def test_config_is_a_sub_folder(tmp_path: Path, files: list[str], fields: dict[str, str], expected: list[str]) -> None:
    assert chosen(tmp_path, files, **fields) == expected


@pytest.mark.parametrize(
    ("files", "pattern", "split", "expected"),
    [
        (["a-1.jsonl", "a-2.jsonl", "b.jsonl"], "a-*.jsonl", "train", ["a-1.jsonl", "a-2.jsonl"]),
        (PLAIN, "**/*.jsonl*", "train", PLAIN[:2]),
        (PLAIN, "[ab].jsonl", "train", PLAIN[:1]),
        (PLAIN, "*/", "train", PLAIN[1:]),
        (HASHED, "*.parquet", "train", HASHED[:1]),
        (HASHED, "*.parquet", "test", HASHED[1:]),
        (HASHED, "test-*", "train", HASHED[1:]),
        (CONFIGS, "*/train-*", "train", [CONFIGS[0], CONFIGS[2]]),
        (["train.jsonl", "other.jsonl"], "*.jsonl", "train", ["other.jsonl", "train.jsonl"]),
        (["train[1].jsonl", "train1.jsonl"], "train[1].jsonl", "train", ["train[1].jsonl"]),
    ],
)
def test_pattern_gives_its_matches_in_order(
    tmp_path: Path, files: list[str], pattern: str, split: str, expected: list[str]
) -> None:
    assert chosen(tmp_path, files, pattern, split=split) == expected


@pytest.mark.parametrize(
    ("files", "pattern", "fields", "problem"),
    [
        (HASHED, "", {"split": "dev"}, "no files of split 'dev'; there are test, train"),
        (CHAT, "", {}, "no files of split 'train'; there are test_gen, test_sft, train_gen, train_sft"),
        (["train_sft.jsonl", "train_gen.jsonl"], "", {}, "no files of split 'train'; there are train_gen, train_sft"),
        (["test.jsonl"], "", {}, "no files of split 'train'; there are test"),
        (PLAIN, "", {"split": "test"}, "there are a.jsonl, sub/b.jsonl.gz, sub/deep/c.parquet, named by none"),
        (CONFIGS, "", {}, r"several configs \(main, socratic\); choose one by `config`"),
        (CONFIGS, "", {"config": "x"}, "no files of config 'x'; there are main, socratic"),
        (["train.jsonl", "more.jsonl"], "", {}, r"more.jsonl has no split .* others have \(train\)"),
        (["a.jsonl"], "b*", {}, "no file or folder matches"),
        (["a.csv"], "*", {}, "of the 1 files that match, none is one of .jsonl"),
        (["a.csv", "b.jsonl.xz"], "", {}, "no file ending in .jsonl"),
        (["a.parquet.gz"], "a.parquet.gz", {}, "not one of .jsonl"),
        (["a.jsonl"], "a.jsonl", {"split": "test"}, "all of which is read: remove its split 'test'"),
        (["a.jsonl"], "a.jsonl", {"config": "en"}, "remove its config 'en'"),
        (["a.jsonl"], "", {"revision": "v1"}, "revision 'v1' is for datasets of the Hub"),
    ],
)
def test_choice_that_is_not_there_lists_what_is(
    tmp_path: Path, files: list[str], pattern: str, fields: dict[str, str], problem: str
) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        chosen(tmp_path, files, pattern, **fields)
    assert str(caught.value).startswith(str(tmp_path))


CARD = """---
configs:
- config_name: a
  data_files:
  - {split: train, path: x/*.jsonl}
  - {split: held, path: [y/1.jsonl, gone.jsonl]}
  - {split: gone, path: gone.jsonl}
- config_name: b
  data_files: z.jsonl
- {config_name: d, data_dir: x}
---
# A dataset
"""


def test_readme_that_declares_configs_decides(tmp_path: Path) -> None:
    files = ["x/1.jsonl", "x/2.jsonl", "y/1.jsonl", "z.jsonl"]
    (tmp_path / "README.md").write_text(CARD)
    assert chosen(tmp_path, files, config="a") == files[:2]
    assert chosen(tmp_path, files, config="a", split="held") == files[2:3]
    assert chosen(tmp_path, files, config="b") == files[3:]
    assert chosen(tmp_path, files, config="d") == files[:2]
    for fields, problem in (
        ({}, "several configs; choose one by `config`: a, b, d"),
        ({"config": "c"}, "no config 'c'; choose one by `config`: a, b, d"),
        ({"config": "a", "split": "test"}, "no files of split 'test'; there are train, held, gone"),
        ({"config": "a", "split": "gone"}, "no file of split 'gone', which README.md declares as gone.jsonl"),
    ):
        with pytest.raises(DataError, match=problem):
            chosen(tmp_path, files, **fields)


@pytest.mark.parametrize("card", ["# Notes\n", "---\nlicense: mit\n---\n", "---\nconfigs: [\n---\n"])
def test_readme_without_configs_changes_nothing(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    if "[" in card:
        with pytest.raises(DataError, match=r"README\.md: its metadata cannot be read"):
            chosen(tmp_path, HASHED)
    else:
        assert chosen(tmp_path, HASHED) == HASHED[:1]


def test_saved_dataset_gives_the_files_of_its_state(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"id": "a"}])
    datasets.DatasetDict(train_sft=rows, test=rows).save_to_disk(tmp_path)
    (tmp_path / "test" / "cache-0123.arrow").touch()
    assert chosen(tmp_path, [], split="test") == ["test/data-00000-of-00001.arrow"]
    assert chosen(tmp_path, [], "test") == ["test/data-00000-of-00001.arrow"]
    with pytest.raises(DataError, match="no files of split 'train'; there are test, train_sft"):
        chosen(tmp_path, [])
    (tmp_path / "test" / "state.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="a saved dataset that cannot be read"):
        chosen(tmp_path, [], split="test")


@pytest.mark.parametrize(
    "metadata",
    [
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij")),
        "configs: " + "[" * 2_000,
        "configs:\n- config_name: default\n  data_files: nosuch://host/a.jsonl",
        "configs: &a [*a]",
    ],
    ids=["aliases", "deep", "url", "itself"],
)
def test_a_card_that_no_dataset_has_is_refused_in_one_line(tmp_path: Path, metadata: str) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n")
    with pytest.raises(DataError, match=r"README\.md") as error:
        local_files(SourceConfig(path=str(tmp_path)))
    assert len(str(error.value).splitlines()) == 1
