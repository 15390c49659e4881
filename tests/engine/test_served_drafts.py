"""Drafts in vLLM: it accepts what decoding here accepts, and a fault of an export is a gap with its cause."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.drafting import chain_drafter
from eaglepipe.evaluation.evaluate import evaluate_run
from eaglepipe.evaluation.figures.measured_sets import Measured, measure_sets
from eaglepipe.evaluation.figures.measurement import EvalConditions
from eaglepipe.evaluation.finished_run import FinishedRun, open_run
from eaglepipe.evaluation.options import GREEDY, EngineOptions, EvalOptions
from eaglepipe.evaluation.prompts import PromptSet, read_prompt_sets
from eaglepipe.evaluation.real_decoding import OpenTarget, measure_real, open_target
from eaglepipe.evaluation.served.causes import likely_causes
from eaglepipe.evaluation.served.engine_process import EngineJob
from eaglepipe.evaluation.served.gap import Gap, compare
from eaglepipe.evaluation.served.served import engine_job, served_folder, speculative_config
from eaglepipe.files.digests import DIGESTS_FILE
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.train import run_training
from tests.engine.serve_jobs import served
from tests.engine.targets import make_served_project
from tests.evaluation.faulty_exports import FAULTS
from tests.evaluation.own_text import write_own_text
from tests.tiny_project import VOCAB_SIZE, TinyProject

DEPTH, ROWS, PROMPTS, ANSWER, MAX_STEPS = 3, 56, 16, 96, 50
NORMED = {"draft.fc_norm": "true", "draft.norm_output": "true", "draft.norm_before_residual": "true"}
DRAFTS: dict[str, dict[str, Any]] = {
    "EAGLE-3": {},
    "EAGLE-3.1": NORMED,
    "P-EAGLE": {"train.objective": "peagle", "train.peagle_depths": DEPTH, "train.ttt_steps": 7},
    "EAGLE-1": {"train.objective": "eagle1", "vocab.draft_size": VOCAB_SIZE},
    "DFlash": {  # vLLM's CPU kernel reads the context's keys of one layer right
        "train.objective": "dflash",
        "train.block_size": DEPTH + 1,
        "train.ttt_steps": 7,
        "draft.num_hidden_layers": 1,
    },
}
SMALL = {"kv_cache_memory_bytes": 2**26}
SHARPER = {"lm_head": 30.0, "o_proj": 4.0, "down_proj": 8.0}
SPOILT, THROUGH_EVAL = "EAGLE-3.1", "ids in d2t"  # which are beyond so small a vocabulary


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A run, what is served of it, and its figures of decoding here."""

    run: FinishedRun
    target: OpenTarget
    folder: Path
    sets: list[PromptSet]
    options: EvalOptions
    alone: Measured
    real: Measured

    def job(self, folder: Path) -> EngineJob:
        drafting = speculative_config(self.run, folder, DEPTH)
        return engine_job(self.run, self.target, self.sets, drafting, options=self.options)


@contextmanager
def opened(project: TinyProject, corpus: Path, name: str) -> Iterator[Opened]:
    recipe = project.recipe(
        **{
            "data.sources": f"[{{path: {corpus / 'own.jsonl'}, format: tokenized}}]",
            "cache.root": str(corpus / "caches"),
            "cache.aux_codec": "fp32",
            "cache.hidden_codec": "fp32",
            "cache.last_hidden": "all",
            "cache.full_head": "true",
            "target.dtype": "float32",
            "train.output_dir": str(corpus / name),
            "train.ttt_steps": DEPTH,
            "train.learning_rate": 0.01,
            "train.epochs": 20,
            "train.max_steps": MAX_STEPS,
            "train.eval_every_steps": 1000,
            "train.checkpoint_every_steps": 1000,
            "train.heldout_fraction": 0.25,
            **DRAFTS[name],
        }
    )
    run_training(recipe, [Path(run_precompute(recipe, report=lambda _: None).folder)])
    if name == SPOILT:
        flip_channels(corpus / name / "draft")
    run = open_run(corpus / name)
    options = EvalOptions(
        target=project.target,
        prompts=(corpus / "own.jsonl",),  # of which most were trained on, so that guesses are right at every position
        num_prompts=PROMPTS,
        depths=(DEPTH,),
        max_new_tokens=ANSWER,
        batch_size=PROMPTS,
        baselines=False,
        engine=EngineOptions(arguments=SMALL),
    )
    target = open_target(run, options, torch.device("cpu"), print)
    sets = read_prompt_sets(options.prompts, target.chat, VOCAB_SIZE, options.num_prompts)
    alone, real = measure_real(target, [chain_drafter(run, DEPTH, GREEDY)], sets, options, print)
    with served_folder(run, EngineOptions(), target) as (_, own):
        yield Opened(run=run, target=target, folder=own, sets=sets, options=options, alone=alone, real=real)


@dataclass(frozen=True, kw_only=True)
class AllServed:
    drafts: dict[str, Opened]
    faulty: dict[str, Path]
    gaps: dict[str, Gap]  # by draft, or by fault of one draft
    identical: dict[str, bool | None]  # the text, to that of the target alone in transformers


def sharpen(target: Path) -> None:
    """Make a random target sure of its choices, so that a draft learns them in seconds, and its layers differ more."""
    tensors = load_file(target / "model.safetensors")
    for name in tensors:
        tensors[name] *= next((factor for part, factor in SHARPER.items() if part in name), 1.0)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def flip_channels(folder: Path) -> None:
    """Negate half of the channels of the states that a trained draft carries: the same draft, with norms unlike ones.

    All that reads a state goes through `hidden_norm`, also the residual, or is the head.
    """
    tensors = load_file(folder / "model.safetensors")
    signs = torch.ones(len(tensors["model.norm.weight"]))
    signs[::2] = -1.0
    for name in ("model.norm.weight", "model.layers.0.hidden_norm.weight", "lm_head.weight"):
        tensors[name] *= signs
    tensors["model.fc.weight"] *= signs[:, None]
    save_file(tensors, folder / "model.safetensors")
    (folder / DIGESTS_FILE).unlink()  # of the file before


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AllServed]:
    folder = tmp_path_factory.mktemp("drafts")
    project = make_served_project(folder / "project")
    sharpen(project.target)
    write_own_text(project.target, folder / "own.jsonl", rows=ROWS, tokens=ANSWER)
    with serve_everything(project, folder) as all_served:
        yield all_served


@contextmanager
def serve_everything(project: TinyProject, folder: Path) -> Iterator[AllServed]:
    """Serve every draft, and one with each fault, one after the other in one process."""
    with ExitStack() as stack:
        drafts = {name: stack.enter_context(opened(project, folder, name)) for name in DRAFTS}
        spoilt = drafts[SPOILT]
        faulty = {fault: Path(shutil.copytree(spoilt.folder, folder / "faulty" / fault)) for fault in FAULTS}
        for fault, (spoil, _) in FAULTS.items():
            spoil(faulty[fault])
        folders = {name: draft.folder for name, draft in drafts.items()} | faulty
        del folders[THROUGH_EVAL]
        (scratch := folder / "served").mkdir()
        answers = served([drafts.get(name, spoilt).job(path) for name, path in folders.items()], scratch)
        gaps, identical = {}, {}
        for (name, path), decoded in zip(folders.items(), answers, strict=True):
            draft = drafts.get(name, spoilt)
            conditions = EvalConditions(kind="served", data="", rule=GREEDY, batch_size=PROMPTS, engine="vLLM")
            (measured,) = measure_sets(
                draft.sets, decoded, draft.real.measurement.method, conditions,
                alone=[draft.alone.decoded], model=draft.target.stepping.model, seed=0,
            )  # fmt: skip
            gap = compare(measured, draft.real, seed=0)
            boundaries = tuple(draft.run.source.spec.aux_layer_ids)
            gaps[name] = replace(gap, causes=likely_causes(gap, path, draft.folder, boundaries))
            identical[name] = measured.measurement.identical
        yield AllServed(drafts=drafts, faulty=faulty, gaps=gaps, identical=identical)


@pytest.mark.parametrize("name", DRAFTS)
def test_vllm_accepts_what_decoding_here_accepts(name: str, everything: AllServed) -> None:
    gap = everything.gaps[name]
    assert gap.real.acceptance_length > 1.3
    assert abs(gap.length) <= 0.02 and max(map(abs, gap.positions)) <= 0.02, gap.lines()
    assert not gap.is_beyond_noise and gap.other_texts == 0
    assert everything.identical[name]


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != THROUGH_EVAL])
def test_a_fault_of_an_export_is_a_gap_with_its_cause(fault: str, everything: AllServed) -> None:
    gap, (_, words) = everything.gaps[fault], FAULTS[fault]
    assert gap.is_beyond_noise and gap.length < -0.02, gap.lines()
    first, *causes = gap.lines()
    assert first.startswith("GAP") and "loses acceptance" in first
    assert len(causes) == 1 and words in causes[0]
    assert everything.identical[fault]


def test_eval_tells_why_vllm_fails_on_a_folder(everything: AllServed) -> None:
    spoilt, (_, words) = everything.drafts[SPOILT], FAULTS[THROUGH_EVAL]
    engine = EngineOptions(arguments=SMALL, draft=everything.faulty[THROUGH_EVAL])
    with pytest.raises(EaglepipeError, match=f"vLLM failed(.|\n)*likely cause: .*{words}"):
        evaluate_run(spoilt.run.folder, replace(spoilt.options, engine=engine))
