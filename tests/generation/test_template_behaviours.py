"""The tokens that a target writes are those that its draft learns, for templates that behave like published ones.

Prompts and answers are written by hand, and the target has learnt them by heart: what it generated is known.
"""

import json
from dataclasses import dataclass, replace
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
from tests.generation.template_behaviours import BEHAVIOURS, CALL, Behaviour, assistant, result, user
from tests.stage_one import quiet

Turn = tuple[list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A behaviour with its recipe, its regenerated rows, and the (prompt, answer) ids of each row's turns."""

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


def make_recipe(folder: Path, target: Path, behaviour: Behaviour) -> Recipe:
    row = {"id": "talk", "messages": behaviour.messages, "tools": behaviour.tools or None}
    (folder / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    answers = str(folder / "answers.jsonl")
    return parse_recipe(
        {
            "name": "behaviour",
            "target": {"path": str(target), "dtype": "float32"},
            "data": {
                "max_length": 512,
                "chat_template_kwargs": behaviour.variables,
                "sources": [{"path": answers}],
            },
            "regenerate": {
                "sources": [{"path": str(folder / "prompts.jsonl")}],
                "output": answers,
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
                "dtype": "float32",
            },
        }
    )


def regenerated(recipe: Recipe) -> tuple[RegenerateResult, list[dict[str, Any]]]:
    result = run_regenerate(recipe, report=quiet)
    return result, [json.loads(line) for line in Path(result.output).read_text().splitlines()]


@pytest.fixture(scope="module", params=list(BEHAVIOURS))
def case(request: pytest.FixtureRequest, targets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Case:
    name = request.param
    behaviour = BEHAVIOURS[name]
    recipe = make_recipe(tmp_path_factory.mktemp(name), targets[name], behaviour)
    result, rows = regenerated(recipe)
    turns = turn_ids(make_tokenizer(), behaviour)
    grouped = [[turns[index] for index in indices] for indices in behaviour.rows]
    return Case(behaviour=behaviour, recipe=recipe, result=result, rows=rows, turns=grouped)


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


OTHER_CALL = {"type": "function", "id": "abc123def", "function": {"name": "get_rain", "arguments": {"city": "Bergen"}}}
UNLIKE = "the target does not make the tool calls whose results the source has"
NO_RESULT = "the target calls a tool, and the source has no result of it"


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ([assistant("", tool_calls=[OTHER_CALL]), result("9 mm", "ipython"), assistant()], UNLIKE),
        ([assistant("", tool_calls=[CALL, CALL]), result("9 mm", "ipython"), assistant()], UNLIKE),
        ([assistant(), result("9 mm", "ipython"), assistant()], UNLIKE),
        ([assistant(), user("Sure?"), assistant()], NO_RESULT),
    ],
)
def test_results_of_other_calls_end_the_conversation(
    tmp_path: Path, targets: dict[str, Path], after: list[dict[str, Any]], reason: str
) -> None:
    llama = BEHAVIOURS["llama-3.1"]
    changed = replace(llama, messages=(*llama.messages[:2], *after))
    outcome, rows = regenerated(make_recipe(tmp_path, targets["llama-3.1"], changed))
    assert outcome.ended_early_by_reason == {reason: 1}
    assert [(row["input_ids"], row["loss_mask"]) for row in rows] == [_row_of(turn_ids(make_tokenizer(), llama)[:1])]
    (left_out,) = map(json.loads, Path(outcome.output + ".left-out.jsonl").read_text().splitlines())
    assert (left_out["status"], left_out["reason"]) == ("ended_early", reason)


def test_messages_that_are_not_trained_on_are_kept_as_they_are(tmp_path: Path, targets: dict[str, Path]) -> None:
    gemma = BEHAVIOURS["gemma-3"]
    example = assistant("An elm.", weight=0)
    changed = replace(gemma, messages=(*gemma.messages[:2], example, *gemma.messages[3:]))
    _, rows = regenerated(make_recipe(tmp_path, targets["gemma-3"], changed))
    assert [(row["input_ids"], row["loss_mask"]) for row in rows] == [_row_of(turn_ids(make_tokenizer(), gemma)[1:])]
