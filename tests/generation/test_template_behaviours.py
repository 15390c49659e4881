"""The tokens that a target writes are those that its draft learns, for templates that behave like published ones.

Prompts and answers are written by hand, and the target has learnt them by heart: what it generated is known.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eaglepipe.cache.reader import Cache
from eaglepipe.chat.preview import escape_control
from eaglepipe.generation.regenerate import RegenerateResult, run_regenerate
from eaglepipe.precompute.preview import preview_recipe
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import run_training
from eaglepipe.training.data.collate import pack_documents
from tests.generation.scripted_target import make_tokenizer, turn_ids, write_targets
from tests.generation.template_behaviours import BEHAVIOURS, Behaviour
from tests.stage_one import quiet

Turn = tuple[list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A behaviour with its recipe, its regenerated rows, and the (prompt, answer) ids of each row's turns."""

    name: str
    behaviour: Behaviour
    recipe: Recipe
    result: RegenerateResult
    rows: list[dict[str, Any]]
    turns: list[list[Turn]]

    def expected(self) -> list[tuple[list[int], list[int]]]:
        """The ids of each row, and its mask of generated tokens."""
        return [_row_of(turns) for turns in self.turns]


def _row_of(turns: list[Turn]) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    mask: list[int] = []
    for prompt, answer in turns:
        assert prompt[: len(ids)] == ids
        mask += [0] * (len(prompt) - len(ids)) + [1] * len(answer)
        ids = prompt + answer
    return ids, mask


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_targets(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module", params=list(BEHAVIOURS))
def case(request: pytest.FixtureRequest, targets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Case:
    name = request.param
    behaviour, folder = BEHAVIOURS[name], tmp_path_factory.mktemp(name)
    row = {"id": "talk", "messages": behaviour.messages, "tools": behaviour.tools or None}
    (folder / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    recipe = parse_recipe(
        {
            "name": "behaviour",
            "target": {"path": str(targets[name]), "dtype": "float32"},
            "data": {
                "max_length": 512,
                "chat_template_kwargs": behaviour.variables,
                "sources": [{"path": str(folder / "answers.jsonl")}],
            },
            "regenerate": {
                "sources": [{"path": str(folder / "prompts.jsonl")}],
                "output": str(folder / "answers.jsonl"),
                "max_new_tokens": 60,
            },
            "vocab": {"draft_size": 128},
            "cache": {"root": str(folder / "caches"), "profile": "exact", "aux_layer_ids": [1, 2]},
            "precompute": {"device": "cpu"},
            "draft": {"intermediate_size": 32},
            "train": {
                "output_dir": str(folder / "run"),
                "epochs": 1,
                "ttt_steps": 2,
                "batch_tokens": 512,
                "micro_batch_tokens": 512,
                "pack_length": 512,
                "heldout_fraction": 0.0,
                "device": "cpu",
            },
        }
    )
    result = run_regenerate(recipe, report=quiet)
    rows = [json.loads(line) for line in Path(result.output).read_text().splitlines()]
    turns = turn_ids(make_tokenizer(), behaviour)
    grouped = [[turns[index] for index in indices] for indices in behaviour.rows]
    return Case(name=name, behaviour=behaviour, recipe=recipe, result=result, rows=rows, turns=grouped)


def test_rows_hold_the_tokens_of_each_prompt_and_answer(case: Case) -> None:
    assert [(row["input_ids"], row["loss_mask"]) for row in case.rows] == case.expected()
    assert [row["id"] for row in case.rows] == ["prompts:talk", "prompts:talk#2"][: len(case.rows)]
    reasons = [case.behaviour.ended_early] if case.behaviour.ended_early else []
    assert list(case.result.ended_early_by_reason) == reasons
    assert case.result.tokens == sum(map(sum, (row["loss_mask"] for row in case.rows)))


def test_the_preview_brackets_each_answer_with_its_end(case: Case) -> None:
    text = preview_recipe(case.recipe, count=9, colour=False)
    shown = [part.partition("⟧")[0] for part in text.split("⟦")[1:]]
    assert shown == [escape_control(answer) for _, answer in case.behaviour.turns]


def test_the_cache_and_the_batch_of_training_supervise_what_was_generated(case: Case) -> None:
    cache = Cache.open(Path(run_precompute(case.recipe, report=quiet).folder))
    samples = {sample.sample_id: sample for sample in map(cache.read, range(cache.num_samples))}
    assert sorted(samples) == [f"answers:{row['id']}" for row in case.rows]
    for row, turns, (ids, mask) in zip(case.rows, case.turns, case.expected(), strict=True):
        sample = samples[f"answers:{row['id']}"]
        assert (sample.input_ids.tolist(), sample.loss_mask.astype(int).tolist()) == (ids, mask)
        batch = pack_documents(((sample,),)).batch
        slots = np.flatnonzero(batch.loss_mask[0].numpy())
        read, learnt = batch.input_ids[0].numpy()[slots], batch.input_ids[0].numpy()[slots + 1]
        assert read.tolist() == [token for _, answer in turns for token in answer[:-1]]
        assert learnt.tolist() == [token for _, answer in turns for token in answer[1:]]
        assert sample.target_top1[sample.supervised].tolist() == learnt.tolist()  # the target is sure of each
    result = run_training(case.recipe, [cache.folder])
    assert (result.train_samples, result.supervised_tokens) == (len(case.rows), sum(cache.index.num_supervised))
