"""Tokens that the tokenizer knows and the target has no embedding for only matter to the rows that hold them."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eaglepipe.errors import DataError, TargetError
from eaglepipe.precompute.inputs import read_stage1_inputs
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.tree import Recipe
from tests.stage_one import quiet
from tests.tiny_project import VOCAB_SIZE, TinyProject


def row(number: int, text: str) -> dict[str, object]:
    turns = [{"role": "user", "content": f"Say {number}."}, {"role": "assistant", "content": text}]
    return {"id": str(number), "messages": turns}


def made_recipe(project: TinyProject, folder: Path, odd: dict[str, object], *, num_rows: int = 30) -> Recipe:
    """A target with a pad token at id V, and a corpus with one odd row."""
    target = shutil.copytree(project.target, folder / "target")
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_special_tokens({"pad_token": "<unseen>"})
    assert tokenizer.pad_token_id == VOCAB_SIZE
    tokenizer.save_pretrained(target)
    rows = [row(number, f"It is {number}.") for number in range(num_rows - 1)] + [odd]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    sources = f"[{{path: {folder / 'rows.jsonl'}}}]"
    return project.recipe(**{"target.path": target, "data.sources": sources, "cache.root": folder / "caches"})


@pytest.mark.parametrize(
    "odd",
    [
        row(99, "Here is <unseen> text."),
        {**row(99, "Well."), "messages": [{"role": "system", "content": "<unseen>"}, *row(99, "Well.")["messages"]]},  # type: ignore[misc]
        {"id": "99", "input_ids": [1, 2, VOCAB_SIZE + 7, 3], "loss_mask": [0, 1, 1, 1]},
    ],
    ids=["answer", "prompt", "token-ids"],
)
def test_only_the_row_that_holds_one_is_dropped(project: TinyProject, tmp_path: Path, odd: dict[str, object]) -> None:
    recipe = made_recipe(project, tmp_path, odd)
    inputs = read_stage1_inputs(recipe)
    assert inputs.special_ids and max(inputs.special_ids) < VOCAB_SIZE
    result = run_precompute(recipe, dry_run=True, report=quiet)
    assert (result.samples, result.drops) == (29, {"token_out_of_range": 1})


def test_too_many_rows_with_one_stop_the_corpus(project: TinyProject, tmp_path: Path) -> None:
    recipe = made_recipe(project, tmp_path, row(99, "<unseen>"), num_rows=8)
    with pytest.raises(DataError, match=rf"token_out_of_range[^\n]*{VOCAB_SIZE}"):
        run_precompute(recipe, dry_run=True, report=quiet)


def test_tokenizer_of_another_model_is_refused(project: TinyProject, tmp_path: Path) -> None:
    recipe = made_recipe(project, tmp_path, row(99, "Well."))
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    (tmp_path / "target" / "config.json").write_text(json.dumps({**config, "vocab_size": VOCAB_SIZE // 2}))
    with pytest.raises(TargetError, match="use the target's own tokenizer"):
        read_stage1_inputs(recipe)
