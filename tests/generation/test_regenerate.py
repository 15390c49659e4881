"""The regenerate stage on a real, random target; its answers end at one of many stop tokens."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from eaglepipe.errors import ConfigError, CorruptError, DataError, EaglepipeError
from eaglepipe.generation.regenerate import WINDOW_BATCHES, run_regenerate
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.recipe.tree import Recipe
from tests.generation.talkative_target import save_talkative_target

BATCH = 2
WINDOW = BATCH * WINDOW_BATCHES
NUM_ROWS = 8 * WINDOW + 3  # two windows at most for each of three stops, and some to go


@pytest.fixture(scope="module")
def target(project, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("talker")
    save_talkative_target(project.target, folder)
    return folder


def conversation(number):
    system = [{"role": "system", "content": "Be brief."}] if number % 4 == 0 else []
    turns = [
        {"role": "user", "content": f"Tell me about {number} " * (1 + number % 5)},
        {"role": "assistant", "content": "something the target never said"},
    ]
    more = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "nor this"}]
    return {"id": f"row{number}", "messages": system + turns + (more if number % 3 == 0 else [])}


@pytest.fixture
def make_recipe(target, tmp_path):
    source = tmp_path / "prompts.jsonl"

    def make(rows=None, **settings) -> Recipe:
        if rows is not None:
            source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        regenerate = {"sources": [{"path": str(source)}], "output": str(tmp_path / "answers.jsonl")}
        sampling = {"max_new_tokens": 80, "batch_size": BATCH, "temperature": 1.0, **settings}
        return parse_recipe(
            {
                "name": "answers",
                "target": {"path": str(target)},
                "data": {"sources": [{"path": str(source)}]},
                "regenerate": {**regenerate, **sampling},
            }
        )

    return make


def run(recipe):
    return run_regenerate(recipe, report=lambda _: None)


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_every_assistant_turn_is_the_targets_own_continuation_of_what_stands_before_it(make_recipe, target):
    result = run(make_recipe([conversation(number) for number in range(WINDOW + 3)], temperature=0.0))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    stops = model.generation_config.eos_token_id
    answers = read(result.output)
    assert {len(answer["messages"]) for answer in answers} >= {2, 4}
    assert result.rows == len(answers) > result.success
    for answer in answers:
        runs = []
        for position, message in enumerate(answer["messages"]):
            if message["role"] == "assistant":
                prompt = tokenizer.apply_chat_template(
                    answer["messages"][:position], add_generation_prompt=True, return_tensors="pt", return_dict=True
                )
                output = model.generate(**prompt, do_sample=False, max_new_tokens=80, pad_token_id=0)[0]
                assert int(output[-1]) in stops
                start = prompt["input_ids"].shape[1]
                assert tokenizer.decode(output[start:-1]) == message["content"]
                runs.append((output.tolist(), [0] * start + [1] * (len(output) - start)))
        assert (answer["input_ids"], answer["loss_mask"]) == runs[-1]


def test_rows_keep_their_order_ids_and_everything_up_to_the_last_assistant_turn(make_recipe):
    rows = [conversation(number) for number in range(20)]
    rows[1]["messages"].append({"role": "user", "content": "a question nobody answered"})
    result = run(make_recipe(rows))
    answers = read(result.output)
    by_id = {f"prompts:{row['id']}": row["messages"] for row in rows}
    numbered = [name + suffix for name in by_id for suffix in ("", "#2")]
    ids = [answer["id"] for answer in answers]
    assert ids == [name for name in numbered if name in set(ids)]
    assert result.rows == len(ids) == len(set(ids)) > result.success == len({name.partition("#")[0] for name in ids})
    for answer in answers:
        old, new = by_id[answer["id"].partition("#")[0]], answer["messages"]
        assert [message["role"] for message in new] == [m["role"] for m in old][: len(new)]
        assert new[-1]["role"] == "assistant" and answer["source"] == "prompts"
        for before, after in zip(old, new, strict=False):
            assert (before == after) == (before["role"] != "assistant")


def test_success_errors_and_skipped_add_up_to_the_input(make_recipe):
    odd = [
        {"id": "only-a-prompt", "messages": [{"role": "user", "content": "hi"}]},
        {"id": "nobody-asks", "messages": [{"role": "system", "content": "hi"}]},
        {"id": "tokens", "input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        {"id": "long", "messages": [{"role": "user", "content": "x " * 300}, {"role": "assistant", "content": "y"}]},
    ]
    result = run(make_recipe([conversation(number) for number in range(10)] + odd))
    assert result.success + result.errors + result.skipped == result.input == 14
    assert result.errors_by_reason == {"prompt too long": 1}
    assert result.skipped_by_reason["nothing to answer"] == 1
    left_out = {row["id"]: row for row in read(result.output + ".left-out.jsonl")}
    early = [row for row in left_out.values() if row["status"] == "ended_early"]
    assert len(left_out) - len(early) == result.errors + result.skipped
    assert len(early) == sum(result.ended_early_by_reason.values()) > 0
    assert left_out["prompts:long"]["where"].endswith("prompts.jsonl:14")
    assert "prompts:tokens" in left_out


def test_answers_that_do_not_end_are_left_out(make_recipe):
    result = run(make_recipe([conversation(number) for number in range(24)], max_new_tokens=3))
    assert result.skipped_by_reason["unfinished after max_new_tokens"] > 0
    assert len(read(result.output)) == result.rows >= result.success == 24 - result.skipped


def test_answers_that_do_not_end_are_kept_if_asked_without_the_turns_after_them(make_recipe, target):
    rows, unfinished = [conversation(number) for number in range(24)], "unfinished after max_new_tokens"
    recipe = make_recipe(rows, max_new_tokens=3, temperature=0.0)
    left_out = run(recipe)
    ended = {row["id"]: row for row in read(left_out.output)}
    with pytest.raises(ConfigError, match="keep_unfinished"):
        run(make_recipe(rows, max_new_tokens=3, temperature=0.0, keep_unfinished=True))
    Path(left_out.output).unlink()
    result = run(make_recipe(rows, max_new_tokens=3, temperature=0.0, keep_unfinished=True))
    assert unfinished not in result.skipped_by_reason and result.ended_early_by_reason[unfinished] > 0
    assert result.success + result.skipped == 24 and result.success > left_out.success
    stops = AutoModelForCausalLM.from_pretrained(target).generation_config.eos_token_id
    tokenizer, cut = AutoTokenizer.from_pretrained(target), 0
    for row in read(result.output):
        answer = [token for token, own in zip(row["input_ids"], row["loss_mask"], strict=True) if own]
        if row["id"] in ended:
            assert row["input_ids"][: len(ended[row["id"]]["input_ids"])] == ended[row["id"]]["input_ids"]
        elif answer[-1] not in stops:
            assert row["input_ids"][-1] == answer[-1]
            assert tokenizer.decode(row["input_ids"]).endswith(row["messages"][-1]["content"])
            cut += 1
    assert cut > 0


def test_with_the_last_turn_supervised_each_conversation_is_one_row(make_recipe):
    rows = [conversation(number) for number in range(12)]
    every = run(make_recipe(rows))
    by_name = {row["id"]: row for row in read(every.output)}
    Path(every.output).unlink()
    recipe = make_recipe(rows)
    last = run(recipe.model_copy(update={"data": recipe.data.model_copy(update={"supervise": "last"})}))
    assert last.rows == last.success == every.success < every.rows
    for row in read(last.output):
        name = row["id"].partition("#")[0]
        assert row == by_name[row["id"]] and (row["id"] != name or f"{name}#2" not in by_name)


def test_an_output_of_text_alone_is_not_taken_for_one_of_token_ids(make_recipe):
    recipe = make_recipe([conversation(number) for number in range(5)])
    output = run(recipe).output
    report_file = Path(output + ".report.json")
    report = json.loads(report_file.read_text())
    del report["settings"]["format"]
    report_file.write_text(json.dumps(report))
    with pytest.raises(ConfigError, match="format: null -> 2"):
        run(recipe)


def start_and_signal(recipe, log, after_rows, number):
    """The stage in a process of its own, sent a signal once that many rows are in its log; its exit code."""

    def body():
        try:
            run(recipe)
        except EaglepipeError as error:
            os._exit(error.exit_code)
        os._exit(0)

    # Rows of its own: by then the stage listens to signals, while rows of the run before are there at once.
    enough = max(after_rows, log.read_bytes().count(b"\n") if log.exists() else 0)
    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    while process.is_alive():
        if log.exists() and log.read_bytes().count(b"\n") > enough:
            os.kill(process.pid, number)
            break
        time.sleep(0.001)
    process.join()
    return process.exitcode


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)])
def test_stopped_in_any_window_and_run_again_it_writes_the_same_bytes(make_recipe, tmp_path, number, code):
    recipe = make_recipe([conversation(number) for number in range(NUM_ROWS)])
    output, log = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.part"
    undisturbed = run(recipe)
    expected = output.read_bytes()
    output.unlink()
    codes = [start_and_signal(recipe, log, rows, number) for rows in (1, WINDOW + 1, 2 * WINDOW + 1)]
    assert codes == [code] * 3 and not output.exists()
    assert log.read_bytes().count(b"\n") > 2 * WINDOW
    result = run(recipe)
    assert output.read_bytes() == expected and not log.exists()
    assert (result.success, result.tokens, result.input) == (undisturbed.success, undisturbed.tokens, NUM_ROWS)


def test_a_finished_output_returns_its_result_without_touching_a_file(make_recipe, tmp_path):
    recipe = make_recipe([conversation(number) for number in range(5)])
    first = run(recipe)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = run(recipe)
    assert again == replace(first, seconds=0.0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_damaged_report_of_a_finished_output_is_named(make_recipe):
    recipe = make_recipe([conversation(number) for number in range(5)])
    report_file = Path(run(recipe).output + ".report.json")
    whole = json.loads(report_file.read_text())
    for damaged in (
        {"settings": whole["settings"]},
        {"result": whole["result"]},
        {**whole, "settings": "x"},
        {**whole, "result": {**whole["result"], "rows": "5"}},
        {**whole, "result": {"rows": 5}},
    ):
        report_file.write_text(json.dumps(damaged))
        with pytest.raises(CorruptError, match=re.escape(str(report_file))):
            run(recipe)


def test_an_output_made_with_other_settings_is_refused_with_the_difference(make_recipe):
    rows = [conversation(number) for number in range(5)]
    output = run(make_recipe(rows)).output
    before = Path(output).read_bytes()
    with pytest.raises(ConfigError, match=r"sampling\.seed: 0 -> 7"):
        run(make_recipe(seed=7))
    with pytest.raises(ConfigError, match=r"data: "):
        run(make_recipe(rows[:4]))
    assert Path(output).read_bytes() == before


def test_a_file_that_the_stage_did_not_make_is_never_overwritten(make_recipe, tmp_path):
    (tmp_path / "answers.jsonl").write_text("precious\n")
    with pytest.raises(ConfigError, match="was not finished by this command"):
        run(make_recipe([conversation(0)]))
    assert (tmp_path / "answers.jsonl").read_text() == "precious\n"


def test_an_output_without_a_single_answer_is_an_error_and_no_file(make_recipe, tmp_path):
    with pytest.raises(DataError, match="no conversation could be answered"):
        run(make_recipe([{"messages": [{"role": "system", "content": "hi"}]}]))
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_malformed_line_is_an_error_row_and_the_others_are_answered(make_recipe, tmp_path):
    recipe = make_recipe([conversation(0)])
    with (tmp_path / "prompts.jsonl").open("a") as stream:
        stream.write("{broken\n")
    result = run(recipe)
    assert (result.input, result.errors, result.errors_by_reason) == (2, 1, {"not_json": 1})
    left_out = [json.loads(line) for line in (tmp_path / "answers.jsonl.left-out.jsonl").read_text().splitlines()]
    assert [row["where"] for row in left_out if row["status"] == "error"] == [f"{tmp_path / 'prompts.jsonl'}:2"]


def test_a_recipe_without_the_section_says_so(make_recipe):
    with pytest.raises(ConfigError, match="no `regenerate` section"):
        run(make_recipe([conversation(0)]).model_copy(update={"regenerate": None}))


def test_prompt_with_a_token_that_the_target_lacks_is_an_error_of_its_row(target, make_recipe, tmp_path):
    folder = shutil.copytree(target, tmp_path / "target")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<unseen>"})
    tokenizer.save_pretrained(folder)
    rows = [conversation(number) for number in range(6)]
    rows[2]["messages"][0]["content"] = "What is <unseen>?"
    recipe = make_recipe(rows)
    recipe = recipe.model_copy(update={"target": recipe.target.model_copy(update={"path": str(folder)})})
    result = run_regenerate(recipe, report=lambda _: None)
    assert result.errors_by_reason == {"a token without embedding in the prompt": 1} and result.success > 0
