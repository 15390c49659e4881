"""Caches of the target's own answers, generated and captured in one pass."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import ConfigError, DataError
from eaglepipe.precompute.answers import vocabulary
from eaglepipe.precompute.answers.log import ShardAnswers
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.tree import Recipe
from tests.own_answers import SAMPLED, answering_recipe, conversation, save_ending_target
from tests.processes import run_eaglepipe
from tests.stage_one import quiet, shard_bytes
from tests.tiny_project import TinyProject

ROWS = [conversation(number) for number in range(30)]


@pytest.fixture(scope="module")
def target(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ending_target(project, tmp_path_factory.mktemp("ending"))


@pytest.fixture(scope="module")
def recipe(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return answering_recipe(target, tmp_path_factory.mktemp("sampled"), ROWS, generate=SAMPLED)


@pytest.fixture(scope="module")
def made(recipe: Recipe) -> Path:
    return Path(run_precompute(recipe, report=quiet).folder)


def answers_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def samples_of(folder: Path) -> dict[str, Any]:
    cache = Cache.open(folder)
    return {sample.sample_id: sample for sample in map(cache.read, range(cache.manifest.samples))}


def test_cache_is_complete_and_its_answers_are_its_tokens(made: Path) -> None:
    cache, rows, samples = Cache.open(made), answers_of(made), samples_of(made)
    assert verify_cache(made, full=True).ok
    assert len(cache.manifest.shards) > 1
    assert "answers.jsonl" in {entry.path for entry in cache.manifest.files}
    assert [row["id"] for row in rows] == list(samples)
    for row in rows:
        sample = samples[row["id"]]
        assert sample.input_ids.tolist() == row["input_ids"]
        assert sample.loss_mask.tolist() == [bool(value) for value in row["loss_mask"]]
    assert len(samples) + sum(cache.manifest.drops.values()) >= len(ROWS)
    assert not (made / "work").exists()
    counted = np.zeros(cache.spec.vocab_size, np.int64)
    for sample in samples.values():
        np.add.at(counted, sample.input_ids[sample.loss_mask], 1)
    assert cache.vocab.counts.numpy().tolist() == counted.tolist()


def test_every_user_turn_is_answered_after_the_turns_before_it(made: Path, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(target)
    ends = set(AutoModelForCausalLM.from_pretrained(target).generation_config.eos_token_id)
    turns = set()
    for row in answers_of(made):
        ids, mask = np.array(row["input_ids"]), np.array(row["loss_mask"], dtype=bool)
        asked = ROWS[int(row["id"].removeprefix("prompts:row").partition("#")[0])]["messages"]
        users = [message["content"] for message in asked if message["role"] == "user"]
        own = [message["content"] for message in row["messages"] if message["role"] == "user"]
        assert own == users[: len(own)]
        first = row["messages"][: [message["role"] for message in row["messages"]].index("assistant")]
        prompt = tokenizer.apply_chat_template(first, add_generation_prompt=True, return_dict=False)
        assert ids[: len(prompt)].tolist() == prompt
        ended = np.flatnonzero(mask & ~np.append(mask[1:], False))
        assert {int(ids[end]) for end in ended} <= ends
        inner = mask.copy()
        inner[ended] = False
        assert not ends & set(ids[inner].tolist())
        turns.add(len(own))
    assert turns == {1, 2}


def test_greedy_answers_are_those_of_the_target_alone(target: Path, tmp_path: Path) -> None:
    recipe = answering_recipe(target, tmp_path, ROWS, generate={"max_new_tokens": 60})
    folder = Path(run_precompute(recipe, report=quiet).folder)
    model = AutoModelForCausalLM.from_pretrained(target)
    rows = answers_of(folder)
    assert rows
    for row in rows:
        ids, mask = torch.tensor(row["input_ids"]), np.array(row["loss_mask"], dtype=bool)
        with torch.no_grad():
            greedy = model(input_ids=ids[None]).logits[0].argmax(dim=-1)
        written = np.flatnonzero(mask)
        assert ids[written].tolist() == greedy[written - 1].tolist()


def test_states_are_those_of_a_cache_made_from_the_answers(made: Path, recipe: Recipe, tmp_path: Path) -> None:
    data = {**recipe.data.model_dump(), "sources": [{"path": str(made / "answers.jsonl"), "name": "again"}]}
    again = recipe.model_copy(
        update={
            "data": type(recipe.data).model_validate({**data, "generate": None}),
            "cache": recipe.cache.model_copy(update={"root": str(tmp_path)}),
        }
    )
    one, other = samples_of(made), samples_of(Path(run_precompute(again, report=quiet).folder))
    named = {sample_id.removeprefix("again:"): sample for sample_id, sample in other.items()}
    assert one.keys() == named.keys()
    for sample_id, sample in one.items():
        assert np.array_equal(sample.input_ids, named[sample_id].input_ids)
        assert np.array_equal(sample.target_top1, named[sample_id].target_top1)
        assert np.array_equal(sample.loss_mask, named[sample_id].loss_mask)


@pytest.mark.parametrize("moment", [0, 1])
def test_killed_at_any_moment_and_run_again_it_leaves_the_same_bytes(
    moment: int, recipe: Recipe, made: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
    arguments = ("precompute", file, f"cache.root={tmp_path / 'caches'}")
    killed = run_eaglepipe(*arguments, before=partial(kill_at, moment))
    assert killed.returncode == -signal.SIGKILL
    assert run_eaglepipe(*arguments).returncode == 0
    folder = tmp_path / "caches" / made.name
    assert shard_bytes(folder) == shard_bytes(made)
    assert (folder / "answers.jsonl").read_bytes() == (made / "answers.jsonl").read_bytes()
    assert verify_cache(folder, full=True).ok


def kill_at(moment: int) -> None:
    """Kill this process at its third batch of answers: before they are logged, half-way, or after."""
    append, calls = ShardAnswers.append, []

    def counted(self: ShardAnswers, outcomes: Any) -> None:
        calls.append(self)
        if len(calls) == 3 and moment == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, outcomes)
        if len(calls) == 3:
            if moment == 1:
                self.path.write_bytes(self.path.read_bytes()[:-200])
            os.kill(os.getpid(), signal.SIGKILL)

    ShardAnswers.append = counted  # type: ignore[method-assign]


def test_several_answers_differ_and_share_the_side_of_their_prompt(target: Path, tmp_path: Path) -> None:
    recipe = answering_recipe(target, tmp_path, ROWS[1:3], generate={**SAMPLED, "n": 4, "max_new_tokens": 80})
    folder = Path(run_precompute(recipe, report=quiet).folder)
    rows = answers_of(folder)
    by_row: dict[str, list[list[int]]] = {}
    for row in rows:
        by_row.setdefault(row["id"].partition("#")[0], []).append(row["input_ids"])
    assert len(by_row) == 2
    assert all(len({tuple(ids) for ids in answers}) == len(answers) > 1 for answers in by_row.values())


def test_sampling_settings_decide_the_identity_and_batches_do_not(recipe: Recipe, made: Path, tmp_path: Path) -> None:
    def identity(**changes: Any) -> str:
        generate = recipe.data.generate.model_copy(update=changes)  # type: ignore[union-attr]
        data = recipe.data.model_copy(update={"generate": generate})
        return run_precompute(recipe.model_copy(update={"data": data}), dry_run=True, report=quiet).identity

    own = Cache.open(made).manifest.identity
    assert identity() == own
    changed = [{"temperature": 0.9}, {"top_p": 0.9}, {"max_new_tokens": 41}, {"n": 2}, {"seed": 4}]
    assert len({own, *(identity(**change) for change in changed)}) == 6


def test_small_vocabulary_is_chosen_by_the_first_answers(
    target: Path, recipe: Recipe, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "FIRST_PROMPTS", 12)
    small = answering_recipe(target, tmp_path, ROWS, generate=SAMPLED, vocab={"draft_size": 64})
    cache = Cache.open(Path(run_precompute(small, report=quiet).folder))
    assert cache.vocab.size == 64
    assert cache.vocab.counts.equal(Cache.open(made).vocab.counts)
    assert cache.vocab.coverage() < 1
    assert {row["id"] for row in answers_of(cache.folder)} == {row["id"] for row in answers_of(made)}


def test_what_cannot_be_answered_is_dropped_and_counted(target: Path, tmp_path: Path) -> None:
    long = {"id": "long", "messages": [{"role": "user", "content": "word " * 400}]}
    system = {"id": "system", "messages": [{"role": "system", "content": "Be brief."}]}
    tokens = {"id": "tokens", "input_ids": [1, 2, 3], "loss_mask": [0, 1, 1]}
    recipe = answering_recipe(target, tmp_path, [*ROWS[:8], long, system, tokens], generate=SAMPLED)
    drops = Cache.open(Path(run_precompute(recipe, report=quiet).folder)).manifest.drops
    assert drops["too_long"] == drops["no_user_turn"] == drops["already_tokenised"] == 1
    assert set(drops) <= {"too_long", "no_user_turn", "already_tokenised", "unfinished", "empty_answer"}


def test_faulty_settings_are_refused(target: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="at temperature 0 all answers"):
        answering_recipe(target, tmp_path, ROWS, generate={"n": 2})
    with pytest.raises(ConfigError, match="512 tokens at once"):
        run_precompute(answering_recipe(target, tmp_path, ROWS, generate={"max_new_tokens": 512}), report=quiet)
    never = answering_recipe(target, tmp_path, ROWS[:3], generate={"max_new_tokens": 1, "temperature": 0.01})
    with pytest.raises(DataError, match="unfinished"):
        run_precompute(never, report=quiet)
