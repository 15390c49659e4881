"""Answers and prompts through vLLM, on a tiny random target of which every fourth token ends a turn."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eaglepipe.generation.regenerate import run_regenerate
from eaglepipe.generation.synthesis.synthesize import run_synthesize
from eaglepipe.recipe.load import parse_recipe
from tests.tiny_project import VOCAB_SIZE


@pytest.fixture(scope="module")
def target(served_project, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answers") / "target"
    shutil.copytree(served_project.target, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6.0 if weight.dim() == 2 else 1.0)  # so that greedy text does not stay with one token
    model.save_pretrained(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": list(range(0, VOCAB_SIZE, 4))}))
    return folder


def recipe(target_folder, folder, **sections):
    source = {"path": str(folder / "prompts.jsonl")}
    settings = {
        "name": "answers",
        "target": {"path": str(target_folder), "dtype": "float32"},
        "data": {"sources": [source]},
    }
    for name, value in sections.items():
        settings[name] = {**settings.get(name, {}), **value}
    return parse_recipe(settings)


def run(stage, *args, **sections):
    return stage(recipe(*args, **sections), report=lambda _: None)


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_greedy_answers_are_those_of_transformers(target, tmp_path):
    texts = [" ".join(["Tell me of trees"] * (1 + number % 7)) + f" {number}" for number in range(60)]
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "?"}] for text in texts]
    rows = [{"id": str(number), "messages": turn * (1 + number % 2)} for number, turn in enumerate(turns)]
    lines = [json.dumps(row) for row in rows] + ["{no row"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    results = {}
    for engine in ("transformers", "vllm"):
        output = str(tmp_path / f"{engine}.jsonl")
        settings = {"sources": [{"path": str(tmp_path / "prompts.jsonl")}], "output": output, "max_new_tokens": 24}
        results[engine] = run(run_regenerate, target, tmp_path, target={"engine": engine}, regenerate=settings)
    ours, theirs = results["transformers"], results["vllm"]
    assert read(ours.output) == read(theirs.output) and ours.success > 10
    assert read(ours.output + ".left-out.jsonl") == read(theirs.output + ".left-out.jsonl")
    assert theirs.success + theirs.errors + theirs.skipped == theirs.input == 61 and theirs.tokens == ours.tokens


def test_prompts_continued_from_any_draw_are_those_of_an_undisturbed_run(target, tmp_path):
    output = tmp_path / "made.jsonl"
    synthesize = {"output": str(output), "count": 40, "min_tokens": 1, "max_new_tokens": 12, "max_draws": 4000}
    result = run(run_synthesize, target, tmp_path, target={"engine": "vllm"}, synthesize=synthesize)
    whole = output.read_bytes()
    settings = json.loads((tmp_path / "made.jsonl.report.json").read_text())["settings"]
    for name in ("count", "max_draws"):  # when to stop is no matter of the draws
        del settings["synthesize"][name]
    written = [{"status": "written", "tokens": 1, "rows": [row], "id": row["id"]} for row in read(output)]
    outcomes = [*written, *read(tmp_path / "made.jsonl.left-out.jsonl")]
    outcomes.sort(key=lambda row: int(row["id"].partition("-")[2]))
    assert len(outcomes) == result.draws and result.prompts == 40
    output.unlink()
    log = [{"settings": settings}, *outcomes[: result.draws // 3]]
    (tmp_path / "made.jsonl.part").write_text("".join(json.dumps(row) + "\n" for row in log) + '{"stat')
    again = run(run_synthesize, target, tmp_path, target={"engine": "vllm"}, synthesize=synthesize)
    assert output.read_bytes() == whole and again.left_out_by_reason == result.left_out_by_reason
