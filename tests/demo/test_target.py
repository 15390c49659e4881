"""The demo's tokenizer and target at toy size: exact text, an honest mask, and a folder that loads anywhere."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from eaglepipe.demo.answer_quality import is_loop, measure_answers, shared_words
from eaglepipe.demo.corpus import CorpusFiles, read_rows, write_corpus
from eaglepipe.demo.target import TargetShape, TargetTraining, build_model, rate_factor, train_target
from eaglepipe.demo.target_data import collate, encode, steps
from eaglepipe.demo.tokenizer import END_OF_TURN, train_tokenizer

SHAPE = TargetShape(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2)
TRAINING = TargetTraining(max_steps=3, max_seconds=600.0, rows=4, micro_rows=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusFiles:
    return write_corpus(tmp_path_factory.mktemp("corpus"), seed=0, train_rows=120, prompt_rows=40)


@pytest.fixture(scope="module")
def tokenizer(corpus: CorpusFiles) -> PreTrainedTokenizerFast:
    return train_tokenizer(corpus.train, vocab_size=600)


@pytest.mark.parametrize(
    "text", ["U+00E9 is é.", "  two  spaces\n\ttab ", "汉字 🙂 \u0301", "0b10_01 ,.2f '  12.00'", "\x00\x7f"]
)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_generation_mask_is_each_answer_and_its_end_of_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is U+0041?"},
        {"role": "assistant", "content": "U+0041 is LATIN CAPITAL LETTER A."},
        {"role": "user", "content": "And 12?"},
        {"role": "assistant", "content": " 12 is even. "},
    ]
    (example,) = encode(tokenizer, [{"messages": messages}])
    ids, mask = example.input_ids.tolist(), example.is_answer.tolist()
    spans: list[list[int]] = []
    for position, is_answer in enumerate(mask):
        if is_answer and (position == 0 or not mask[position - 1]):
            spans.append([])
        if is_answer:
            spans[-1].append(ids[position])
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    assert [tokenizer.decode(span) for span in spans] == [answer + END_OF_TURN for answer in answers]


def test_a_generation_prompt_is_a_prefix_of_the_whole_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "What is 12?"}, {"role": "assistant", "content": "12 is even."}]
    asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert whole[: len(asked)] == asked


def test_padding_does_not_change_what_real_tokens_compute(
    tokenizer: PreTrainedTokenizerFast, corpus: CorpusFiles
) -> None:
    model = build_model(tokenizer, SHAPE, seed=0).eval()
    examples = sorted(encode(tokenizer, read_rows(corpus.train)[:8]), key=lambda example: len(example.input_ids))
    padded = model(collate([examples[0], examples[-1]]).input_ids).logits[0, : len(examples[0].input_ids)]
    torch.testing.assert_close(padded, model(examples[0].input_ids[None]).logits[0], rtol=1e-5, atol=1e-6)


def test_an_epoch_of_steps_takes_every_example_once(tokenizer: PreTrainedTokenizerFast, corpus: CorpusFiles) -> None:
    examples = encode(tokenizer, read_rows(corpus.train)[:24])
    batches = steps(examples, rows=6, micro_rows=4, seed=3)
    taken = [tuple(row.tolist()) for _ in range(4) for micro in next(batches) for row in micro.input_ids]
    stripped = sorted(tuple(token for token in row if token) for row in taken)
    assert stripped == sorted(tuple(token for token in e.input_ids.tolist() if token) for e in examples)


def test_the_learning_rate_ends_at_zero_whatever_ended_the_run() -> None:
    assert rate_factor(1.0, 0.05) == 0.0
    assert rate_factor(0.05, 0.05) == 1.0
    assert 0.0 < rate_factor(0.0, 0.05) < 0.5


def test_a_target_trains_saves_and_loads_as_a_transformers_folder(
    tokenizer: PreTrainedTokenizerFast, corpus: CorpusFiles, tmp_path: Path
) -> None:
    report = train_target(corpus.train, tokenizer, tmp_path / "a", training=TRAINING, shape=SHAPE)
    again = train_target(corpus.train, tokenizer, tmp_path / "b", training=TRAINING, shape=SHAPE)
    assert report.num_steps == 3 and not report.stopped_by_time and math.isfinite(report.loss)
    assert (report.folder / "model.safetensors").read_bytes() == (again.folder / "model.safetensors").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(report.folder)
    reloaded = AutoTokenizer.from_pretrained(report.folder)
    assert model.config.vocab_size == len(reloaded) == len(tokenizer)
    assert model.dtype == torch.float32 and model.config.use_cache


def test_a_slow_machine_stops_by_time(tokenizer: PreTrainedTokenizerFast, corpus: CorpusFiles, tmp_path: Path) -> None:
    hurried = TargetTraining(max_steps=10_000, max_seconds=0.05, rows=4, micro_rows=2)
    report = train_target(corpus.train, tokenizer, tmp_path, training=hurried, shape=SHAPE)
    assert report.stopped_by_time and 1 <= report.num_steps < 10_000


def test_a_loop_is_an_eight_token_run_three_times() -> None:
    run = list(range(8))
    assert is_loop([*run, 9, *run, 10, *run])
    assert not is_loop(run + run)
    assert is_loop([7] * 10)
    assert not is_loop([1, 2])


def test_shared_words_count_each_word_once() -> None:
    assert shared_words("a b c d", "d c b a") == 1.0
    assert shared_words("a a x", "a b") == 0.5
    assert shared_words("q", "a b") == 0.0


def test_answers_are_judged_against_the_rows_they_answer(corpus: CorpusFiles, tmp_path: Path) -> None:
    rows = read_rows(corpus.prompts)
    right, looping = dict(rows[0]), dict(rows[1])
    looping["messages"] = [
        {**m, "content": "a b c d e f g h " * 3} if m["role"] == "assistant" else m for m in looping["messages"]
    ]
    answers = [{**row, "id": f"source:{row['id']}"} for row in (right, looping)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    report = measure_answers(tmp_path / "answers.jsonl", rows, str.split)
    num_right = sum(message["role"] == "assistant" for message in right["messages"])
    assert report.looping_share == 1 - num_right / report.num_answers
    assert 0.0 < report.shared_words < 1.0
