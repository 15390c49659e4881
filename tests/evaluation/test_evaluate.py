"""`eaglepipe eval` on a run trained from the tiny target's own greedy text."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eaglepipe.cache.reader import Cache
from eaglepipe.commands.evaluate import tree_shape
from eaglepipe.decoding.decode import StoppingCriteria, speculate
from eaglepipe.decoding.text_drafters import lookup_drafter, no_drafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.errors import DataError, EaglepipeError
from eaglepipe.evaluation.drafting import TreeShape, chain_drafter
from eaglepipe.evaluation.eval_report import EvalReport
from eaglepipe.evaluation.evaluate import evaluate_run
from eaglepipe.evaluation.finished_run import open_run
from eaglepipe.evaluation.options import EvalOptions
from eaglepipe.evaluation.prompts import cached_turns, file_prompts
from eaglepipe.evaluation.replay import replay
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.recipe.load import load_recipe, parse_recipe
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import load_target
from eaglepipe.target.steps.stepping import SteppingTarget
from eaglepipe.train import run_training
from tests.tiny_project import VOCAB_SIZE, TinyProject

CPU, GREEDY = torch.device("cpu"), SamplingRule()
ANSWER = 24


@dataclass(frozen=True, kw_only=True)
class OwnText:
    """A run trained on the target's own text, its cache and its target."""

    run: Path
    cache: Path
    target: Path
    stepping: SteppingTarget


@pytest.fixture(scope="module")
def own_text(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> OwnText:
    """Prompts of random tokens, each answered twice by the target; states are stored in float32."""
    folder = tmp_path_factory.mktemp("own-text")
    target = SteppingTarget(HFEagle3TargetModel(load_target(TargetConfig(path=str(project.target)), "cpu"), [2, 4, 5]))
    generator = np.random.default_rng(0)
    prompts = [generator.integers(5, VOCAB_SIZE, size).astype(np.int32) for size in generator.integers(3, 9, 40)]
    first = answers(target, prompts)
    follow_ups = [np.concatenate([p, a, p[:2]]).astype(np.int32) for p, a in zip(prompts, first, strict=True)]
    second = answers(target, follow_ups)
    rows = zip(prompts, first, follow_ups, second, strict=True)
    with (folder / "own.jsonl").open("w") as stream:
        for number, (prompt, a, follow_up, b) in enumerate(rows):
            mask = [0] * len(prompt) + [1] * len(a) + [0] * 2 + [1] * len(b)
            row = {"id": str(number), "input_ids": [*follow_up.tolist(), *b], "loss_mask": mask}
            stream.write(json.dumps(row) + "\n")
    recipe = project.recipe(
        **{
            "data.sources": f"[{{path: {folder / 'own.jsonl'}, format: tokenized}}]",
            "cache.root": str(folder / "caches"),
            "cache.aux_codec": "fp32",
            "train.output_dir": str(folder / "run"),
            "train.learning_rate": 0.01,
            "train.epochs": 12,
        }
    )
    cache = Path(run_precompute(recipe, report=lambda _: None).folder)
    run_training(recipe, [cache])
    return OwnText(run=folder / "run", cache=cache, target=project.target, stepping=target)


def answers(target: SteppingTarget, prompts: list[np.ndarray]) -> list[list[int]]:
    criteria, generator = StoppingCriteria(max_new_tokens=ANSWER), torch.Generator()
    run = speculate(
        target, no_drafter(CPU), prompts, rule=GREEDY, criteria=criteria, batch_size=40, generator=generator
    )
    return [list(answer.token_ids) for answer in run.answers]


@pytest.fixture(scope="module")
def report(own_text: OwnText) -> EvalReport:
    options = EvalOptions(
        caches=(own_text.cache,),
        target=own_text.target,
        depths=(3,),
        trees=(TreeShape(size=8, depth=3, width=3),),
        max_new_tokens=ANSWER,
        batch_size=4,
    )
    return evaluate_run(own_text.run, options)


@pytest.fixture(scope="module")
def block_run(own_text: OwnText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DFlash draft of the same cache, for three guesses a round."""
    folder = tmp_path_factory.mktemp("blocks") / "run"
    given = json.loads(load_recipe(own_text.run / "recipe.yaml").model_dump_json())
    shape = {"num_hidden_layers": 1, "intermediate_size": 64}
    kept = ("batch_tokens", "micro_batch_tokens", "heldout_fraction", "learning_rate")
    train = {name: given["train"][name] for name in kept}
    train |= {"objective": "dflash", "block_size": 4, "max_anchors": 32, "epochs": 4, "output_dir": str(folder)}
    run_training(parse_recipe({**given, "draft": shape, "train": train}), [own_text.cache])
    return folder


def test_a_block_draft_is_measured_at_the_depths_that_it_has(own_text: OwnText, block_run: Path) -> None:
    options = EvalOptions(caches=(own_text.cache,), target=own_text.target, num_prompts=2, max_new_tokens=12)
    report = evaluate_run(block_run, replace(options, baselines=False))
    figures = [figure.to_json() for figure in report.measurements if figure.method.drafter == "DFlash"]
    assert [(f["kind"], f["shape"], f["depth"]) for f in figures] == [("simulated", "chain", 3), ("real", "chain", 3)]
    assert figures[1]["identical"] is True and report.heldout[0].num_depths == 3 and not report.notes
    deeper = evaluate_run(block_run, replace(options, baselines=False, target=None, depths=(4,)))
    assert deeper.notes == ("K = 4: the draft was trained for 3 guesses a round, not for those after them",)
    with pytest.raises(EaglepipeError, match="a DFlash draft guesses all depths at once"):
        evaluate_run(block_run, replace(options, trees=(TreeShape(size=4, depth=2, width=2),)))


@pytest.fixture(scope="module")
def one_layer_run(own_text: OwnText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EAGLE-3 draft of the same cache that reads the last of its aux layers alone."""
    folder = tmp_path_factory.mktemp("one_layer") / "run"
    given = json.loads(load_recipe(own_text.run / "recipe.yaml").model_dump_json())
    last = Cache.open(own_text.cache).spec.aux_layer_ids[-1]
    train = {**given["train"], "epochs": 6, "output_dir": str(folder)}
    run_training(
        parse_recipe({**given, "draft": {**given["draft"], "aux_layer_ids": [last]}, "train": train}), [own_text.cache]
    )
    return folder


@pytest.mark.parametrize("family", ["eagle3", "eagle3, one aux layer", "dflash"])
def test_replayed_rounds_are_those_of_real_decoding_one_for_one(
    own_text: OwnText, family: str, request: pytest.FixtureRequest
) -> None:
    others = {"dflash": "block_run", "eagle3, one aux layer": "one_layer_run"}
    folder = request.getfixturevalue(others[family]) if family in others else own_text.run
    run = open_run(folder, [own_text.cache])
    turns = cached_turns(run, max_new_tokens=ANSWER)
    assert len(turns) == 2 * len(run.heldout)
    target = load_target(TargetConfig(path=str(own_text.target)), "cpu")
    stepping = SteppingTarget(HFEagle3TargetModel(target, run.source.spec.aux_layer_ids))
    for drafter in (chain_drafter(run, 3, GREEDY), lookup_drafter(3, CPU)):
        replayed = replay(run.source, drafter, turns, device=CPU)
        real = speculate(
            stepping,
            drafter,
            [turn.prompt.token_ids for turn in turns],
            rule=GREEDY,
            criteria=StoppingCriteria(max_new_tokens=ANSWER),
            batch_size=4,
            generator=torch.Generator(),
        )
        assert replayed.answers == real.answers
        longest = max(max(answer.rounds) for answer in real.answers)
        assert longest == 4 or (family == "dflash" and longest > 1)


def test_heldout_figures_are_those_that_training_ended_with(own_text: OwnText, report: EvalReport) -> None:
    trained = json.loads((own_text.run / "train.json").read_text())
    whole = report.heldout[0]
    assert whole.loss == pytest.approx(trained["heldout_loss_end"], rel=1e-4)
    length = whole.acceptance_length
    assert length.value == pytest.approx(trained["simulated_acceptance_length_end"], rel=1e-6)
    assert length.low <= length.value <= length.high and length.low < length.high
    accuracy = [estimate.value for estimate in whole.accuracy_by_depth]
    assert accuracy == pytest.approx(trained["accuracy_by_depth"], rel=1e-6)


def test_every_method_is_labelled_and_identical_to_the_target_alone(report: EvalReport) -> None:
    figures = [figure.to_json() for figure in report.measurements]
    real = [figure for figure in figures if figure["kind"] == "real"]
    assert [(f["drafter"], f["shape"], f["depth"]) for f in real] == [
        ("none", "none", 0),
        ("bigram table", "chain", 3),
        ("prompt lookup", "chain", 3),
        ("EAGLE-3", "chain", 3),
        ("EAGLE-3", "tree", 3),
    ]
    assert all(figure["identical"] is True for figure in real)
    assert real[0]["acceptance_length"] == real[0]["tokens_per_forward"] == 1.0
    assert all(f["acceptance_length"] == pytest.approx(1 + sum(f["acceptance_by_depth"])) for f in figures)
    assert all(figure["temperature"] == 0.0 and figure["data"] for figure in figures)


def test_simulated_and_real_acceptance_lengths_agree(report: EvalReport) -> None:
    by_kind = {f.conditions.kind: f for f in report.measurements if f.method.label == "EAGLE-3, chain of 3"}
    assert by_kind["real"].acceptance_length == by_kind["simulated"].acceptance_length
    assert report.own_text_share == 1.0


def test_the_report_is_left_in_the_runs_folder(own_text: OwnText, report: EvalReport) -> None:
    assert json.loads((own_text.run / "eval.json").read_text()) == json.loads(json.dumps(report.to_json()))


def test_prompts_of_a_file_are_the_tokens_before_each_answer(project: TinyProject, tmp_path: Path) -> None:
    from eaglepipe.precompute.inputs import read_chat_tokenizer

    chat = read_chat_tokenizer(project.recipe(), project.target)
    assert chat is not None
    messages = [
        {"role": "user", "content": "What is 7?"},
        {"role": "assistant", "content": "A number."},
        {"role": "user", "content": "And 8?"},
    ]
    later = {"role": "assistant", "content": "Another."}
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"messages": [*messages, later]}) + "\n" + json.dumps({"messages": messages[:1]}) + "\n")
    texts = [chat.tokenizer.decode(prompt.token_ids) for prompt in file_prompts(file, chat)]
    expected = [chat.template.render(part, None, prompt=True) for part in (messages[:1], messages, messages[:1])]
    assert texts == expected


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EaglepipeError, match="no finished run"):
        evaluate_run(tmp_path, EvalOptions())


def test_another_target_is_refused_before_anything_is_measured(own_text: OwnText, tmp_path: Path) -> None:
    from tests.target.tiny_targets import CONFIGS, save_target

    other = save_target(CONFIGS["llama"], tmp_path / "other")
    options = EvalOptions(caches=(own_text.cache,), target=other, num_samples=2, baselines=False)
    messages: list[str] = []
    with pytest.raises(EaglepipeError, match="vocab_size 67"):
        evaluate_run(own_text.run, options, messages.append)
    missing = replace(options, target=own_text.target, prompts=(tmp_path / "nowhere.jsonl",))
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        evaluate_run(own_text.run, missing, messages.append)
    assert not messages


@pytest.mark.parametrize(("text", "shape"), [("24x5", (24, 5, 8)), ("6x3", (6, 3, 6)), ("60x7x10", (60, 7, 10))])
def test_a_tree_is_named_by_its_size_and_depth(text: str, shape: tuple[int, int, int]) -> None:
    assert tree_shape(text) == TreeShape(size=shape[0], depth=shape[1], width=shape[2])


@pytest.mark.parametrize("text", ["24", "0x5", "24x0", "ax5", "24x5x", "-1x5"])
def test_another_spelling_of_a_tree_is_refused(text: str) -> None:
    with pytest.raises(EaglepipeError, match="24x5x8"):
        tree_shape(text)


def test_report_counts_held_out_targets_that_only_held_out_samples_brought_into_the_vocabulary(
    own_text: OwnText, report: EvalReport
) -> None:
    run = open_run(own_text.run, [own_text.cache])
    selected = set(run.source.vocab.selected_token_ids.tolist())
    train = [run.source.read(number) for number in run.split.train.tolist()]
    seen = {int(token) for sample in train for token in sample.input_ids[sample.loss_mask]}
    heldout = [run.source.read(number) for number in run.split.heldout.tolist()]
    targets = [int(token) for sample in heldout for token in sample.target_top1[sample.supervised]]
    share = sum(token in selected - seen for token in targets) / len(targets)
    assert report.unseen_vocabulary_share == pytest.approx(share)
    assert "chosen from all samples, held-out ones included" in report.table()
