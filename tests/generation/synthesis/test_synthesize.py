"""The synthesize stage on a real, random target, whose turns end at one of many stop tokens."""

import json
import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eaglepipe.chat.sources import iter_conversations
from eaglepipe.errors import ConfigError, DataError, EaglepipeError
from eaglepipe.generation.synthesis.rules import repetition
from eaglepipe.generation.synthesis.synthesize import run_synthesize
from eaglepipe.recipe.load import parse_recipe
from tests.generation.talkative_target import save_talkative_target

BATCH = 8
REASONS = {
    "unfinished after max_new_tokens", "empty", "shorter than min_tokens", "longer than max_tokens", "repeats itself",
    "duplicate", "near duplicate", "special tokens inside", "not valid text",
}  # fmt: skip


@pytest.fixture(scope="module")
def target(project, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("talker")
    save_talkative_target(project.target, folder)
    return folder


@pytest.fixture
def make_recipe(target, tmp_path):
    def make(**settings):
        output = str(tmp_path / "prompts.jsonl")
        synthesize = {"count": 40, "batch_size": BATCH, "max_new_tokens": 10, "min_tokens": 2, "max_tokens": 8}
        return parse_recipe(
            {
                "name": "prompts",
                "target": {"path": str(target)},
                "data": {"sources": [{"path": str(tmp_path / "absent.jsonl")}]},
                "synthesize": {"output": output, **synthesize, **settings},
            }
        )

    return make


def run(recipe):
    return run_synthesize(recipe, report=lambda _: None)


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_prompts_are_as_many_as_wanted_within_their_limits_and_all_draws_are_accounted_for(make_recipe, target):
    recipe = make_recipe()
    result = run(recipe)
    rows, left_out = read(result.output), read(result.output + ".left-out.jsonl")
    assert result.prompts == len(rows) == 40
    assert result.prompts + result.left_out == result.draws == len(rows) + len(left_out)
    assert {"unfinished after max_new_tokens", "shorter than min_tokens"} <= set(result.left_out_by_reason) <= REASONS
    numbers = {int(row["id"].partition("-")[2]) for row in [*rows, *left_out]}
    assert numbers == set(range(result.draws))
    tokenizer = AutoTokenizer.from_pretrained(target)
    for row in rows:
        (message,) = row["messages"]
        ids = tokenizer.encode(message["content"], add_special_tokens=False)
        assert message["role"] == "user" and 2 <= len(ids) <= 8
        assert repetition(ids) <= recipe.synthesize.max_repetition and not set(ids) & set(tokenizer.all_special_ids)
    assert len({row["messages"][0]["content"].casefold() for row in rows}) == len(rows)


def test_the_output_is_a_source_of_prompts_and_system_messages_take_turns(make_recipe):
    result = run(make_recipe(count=6, system=["Be brief.", "Be kind."]))
    rows = read(result.output)
    for row in rows:
        number = int(row["id"].partition("-")[2])
        assert row["messages"][0] == {"role": "system", "content": ("Be brief.", "Be kind.")[number % 2]}
    recipe = make_recipe()
    sources = recipe.data.model_copy(
        update={"sources": (recipe.data.sources[0].model_copy(update={"path": result.output}),)}
    )
    conversations = list(iter_conversations(sources.sources))
    assert [conversation.sample_id for conversation in conversations] == [f"prompts:{row['id']}" for row in rows]
    assert [list(conversation.messages) for conversation in conversations] == [row["messages"] for row in rows]


def start_and_signal(recipe, log, number):
    """Run the stage in a process of its own, sent a signal when its log grows; returns its exit code."""

    def body():
        try:
            run(recipe)
        except EaglepipeError as error:
            os._exit(error.exit_code)
        os._exit(0)

    before = log.stat().st_size if log.exists() else 0
    process = get_context("fork").Process(target=body)
    process.start()
    while process.is_alive():
        if log.exists() and log.stat().st_size > max(before, 2000):
            os.kill(process.pid, number)
            break
        time.sleep(0.001)
    process.join()
    return process.exitcode


def test_killed_and_stopped_and_run_again_it_writes_the_same_bytes(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("eaglepipe.generation.ordered_log._FLUSH_SECONDS", 0.0)
    recipe = make_recipe(count=60, max_draws=4000)
    output, log = tmp_path / "prompts.jsonl", tmp_path / "prompts.jsonl.part"
    undisturbed = run(recipe)
    expected = output.read_bytes()
    output.unlink()
    codes = [start_and_signal(recipe, log, number) for number in (signal.SIGKILL, signal.SIGTERM)]
    assert codes == [-signal.SIGKILL, 75] and not output.exists()
    with log.open("ab") as stream:
        stream.write(b'{"status": "wri')
    result = run(recipe)
    assert output.read_bytes() == expected and not log.exists()
    assert (result.draws, result.left_out_by_reason) == (undisturbed.draws, undisturbed.left_out_by_reason)


def test_an_unfinished_run_is_finished_with_another_count(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("eaglepipe.generation.ordered_log._FLUSH_SECONDS", 0.0)
    output, log = tmp_path / "prompts.jsonl", tmp_path / "prompts.jsonl.part"
    run(make_recipe(count=60, max_draws=4000))
    expected = output.read_bytes()
    output.unlink()
    assert start_and_signal(make_recipe(count=90, max_draws=5000), log, signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(ConfigError, match="begun with other settings"):
        run(make_recipe(count=60, max_draws=4000, seed=7))
    run(make_recipe(count=60, max_draws=4000))
    assert output.read_bytes() == expected


def test_a_finished_output_is_left_alone_and_one_of_other_settings_refused(make_recipe, tmp_path):
    first = run(make_recipe(count=3))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(make_recipe(count=3)).prompts == first.prompts
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with pytest.raises(ConfigError, match=r"another synthesize\.output:\n.*seed: 0 -> 7"):
        run(make_recipe(count=3, seed=7))


def test_max_draws_end_the_draws_and_no_prompt_at_all_is_an_error(make_recipe, tmp_path):
    lines = []
    result = run_synthesize(make_recipe(count=12, max_draws=16, max_similarity=0.2), report=lines.append)
    assert 0 < result.prompts < 12 and result.draws == 16 and "max_draws ends the draws" in lines[-1]
    Path(result.output).unlink()
    with pytest.raises(DataError, match="no draw was kept"):
        run(make_recipe(count=1, max_draws=2, max_new_tokens=20, min_tokens=20, max_tokens=None))
    assert not (tmp_path / "prompts.jsonl").exists()


def test_a_recipe_without_the_section_and_settings_that_keep_nothing_are_refused(make_recipe):
    with pytest.raises(ConfigError, match="no `synthesize` section"):
        run(make_recipe().model_copy(update={"synthesize": None}))
    for settings, fault in ({"min_tokens": 20}, "no prompt has more than 8"), ({"max_draws": 39}, "fewer than count"):
        with pytest.raises(ValueError, match=fault):
            make_recipe(**settings)
    with pytest.raises(ConfigError, match="256 positions"):
        run(make_recipe(max_new_tokens=256))
