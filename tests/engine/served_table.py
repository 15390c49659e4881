"""Every kind of draft that vLLM serves, on a real target: trained for a minute, decoded here, served, and compared.

    python -m tests.engine.served_table [--engine PYTHON] [--speculators PYTHON] TARGET FOLDER [KIND...]

prints a line for each kind: acceptance length in vLLM and here, both counted as engines count, the gap, the widest gap
at a position, whether the greedy text is that of the target alone in both, and how far the logits are from those that
the speculators package computes from its export. FOLDER keeps what was trained, so that a second call only measures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.decoding.decode import DecodedAnswers, StoppingCriteria, speculate
from eaglepipe.errors import DraftError
from eaglepipe.evaluation.drafting import chain_drafter
from eaglepipe.evaluation.figures.engine_count import EngineCount, count_accepted
from eaglepipe.evaluation.finished_run import FinishedRun, open_run
from eaglepipe.evaluation.options import GREEDY, EngineOptions, EvalOptions
from eaglepipe.evaluation.prompts import Prompt, PromptSet
from eaglepipe.evaluation.real_decoding import open_target
from eaglepipe.evaluation.served.engine_process import EngineJob
from eaglepipe.evaluation.served.served import engine_job, speculative_config
from eaglepipe.export.write import export_draft
from eaglepipe.tables import text_table
from tests.drafts.speculators_drafts import logits_of
from tests.engine.serve_jobs import served
from tests.engine.served_variants import ANSWER_TOKENS, DEPTH, VARIANTS, trained

SLOTS, EVERY = 40, 3  # of the speculators check; one trained prompt in EVERY is decoded


@dataclass(frozen=True, kw_only=True)
class Here:
    """A kind of draft as it decodes here, and the engine's job."""

    name: str
    run: FinishedRun
    decoded: DecodedAnswers
    job: EngineJob
    alone: EngineJob

    @property
    def count(self) -> EngineCount:
        return count_accepted(self.decoded.answers, DEPTH)


def own_answers(folder: Path) -> tuple[list[Prompt], list[tuple[int, ...]]]:
    """Return prompts, and what the target alone answers to them."""
    rows = [json.loads(line) for line in (folder / "own.jsonl").read_text().splitlines()][::EVERY]
    sizes = [row["loss_mask"].index(1) for row in rows]
    pairs = [(row["id"], row["input_ids"], size) for row, size in zip(rows, sizes, strict=True)]
    prompts = [Prompt(sample_id=name, token_ids=np.array(ids[:size], np.int32)) for name, ids, size in pairs]
    return prompts, [tuple(ids[size:]) for _, ids, size in pairs]


def decode_here(target: Path, folder: Path, name: str, prompts: Sequence[Prompt]) -> Here:
    run = open_run(trained(target, folder, name, report=lambda _: None))
    options = EvalOptions(
        target=target, depths=(DEPTH,), max_new_tokens=ANSWER_TOKENS, batch_size=len(prompts), ignore_end=True,
        engine=EngineOptions(arguments={"kv_cache_memory_bytes": 2**28}),
    )  # fmt: skip
    opened = open_target(run, options, torch.device("cpu"), lambda _: None)
    decoded = speculate(
        opened.stepping, chain_drafter(run, DEPTH, GREEDY), [prompt.token_ids for prompt in prompts], rule=GREEDY,
        criteria=StoppingCriteria(max_new_tokens=ANSWER_TOKENS), batch_size=len(prompts),
        generator=torch.Generator(),
    )  # fmt: skip
    export = export_draft(run.folder, "vllm", out=folder / "exports" / run.folder.name, dtype="float32").folder
    sets = [PromptSet(name="own", prompts=prompts)]
    starts = (speculative_config(run, export, DEPTH), None)
    job, alone = (engine_job(run, opened, sets, drafting, options=options) for drafting in starts)
    return Here(name=name, run=run, decoded=decoded, job=job, alone=alone)


def speculators_gaps(drafts: Sequence[Here], target: Path, folder: Path, python: str) -> dict[str, str]:
    """Return for each draft its logits' greatest deviation from speculators', or why there is none."""
    torch.manual_seed(3)
    gaps, inputs = {}, {}
    for here in drafts:
        room = folder / here.name.replace(" ", "_")
        room.mkdir(parents=True, exist_ok=True)
        for file in ("refused.txt", "logits.safetensors"):
            (room / file).unlink(missing_ok=True)
        if here.run.recipe.train.family.drafts_blocks:
            gaps[here.name] = "see tests/eagle/dflash"
            continue
        try:
            export_draft(here.run.folder, "speculators", out=room / "draft", dtype="float32", target_name="own/target")
        except DraftError as error:
            gaps[here.name] = f"not exported: {error}"
            continue
        source = here.run.source
        width = len(source.spec.aux_layer_ids) * source.spec.hidden_size
        inputs[here.name] = {
            "aux": torch.randn(1, SLOTS, width),
            "ids": torch.randint(source.spec.vocab_size - 1, (1, SLOTS)),
            "documents": torch.arange(SLOTS)[None] // (SLOTS // 2 + 3),
            "steps": torch.tensor(DEPTH),
        }
        save_file(inputs[here.name], room / "inputs.safetensors")
    program = Path(__file__).with_name("speculators_logits.py")
    subprocess.run([python, str(program), str(target), str(folder)], check=True)
    for here in drafts:
        room = folder / here.name.replace(" ", "_")
        if here.name in inputs:
            gaps[here.name] = _deviation(here, inputs[here.name], room)
    return gaps


def _deviation(here: Here, inputs: dict[str, torch.Tensor], room: Path) -> str:
    if (refused := room / "refused.txt").exists():
        return f"refused: {refused.read_text()[:200]}"
    recorded = load_file(room / "logits.safetensors")
    own = logits_of(here.run.draft.float().eval(), {**inputs, **recorded})  # type: ignore[arg-type]
    return f"{float((own - recorded['logits']).abs().max() / recorded['logits'].abs().max()):.1e}"


def main() -> None:
    """Print the table, one row as soon as it is known."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(VARIANTS))
    parser.add_argument("--engine", metavar="PYTHON", default=sys.executable, help="interpreter that has vLLM")
    parser.add_argument("--speculators", metavar="PYTHON", help="interpreter that has speculators 0.9")
    arguments = parser.parse_args()
    target, folder = arguments.target, arguments.folder
    kinds = arguments.kinds or list(VARIANTS)
    trained(target, folder, kinds[0])
    prompts, texts = own_answers(folder)
    (folder / "exports").mkdir(exist_ok=True)
    drafts = []
    for name in kinds:
        drafts.append(decode_here(target, folder, name, prompts))
        print(f"{name}: {drafts[-1].count.acceptance_length:.3f} here", flush=True)
    deviations: dict[str, str] = {}
    if arguments.speculators:
        deviations = speculators_gaps(drafts, target, folder / "speculators", arguments.speculators)
    scratch = Path(tempfile.mkdtemp(prefix="served-", dir=folder))
    (alone,), *answers = served([drafts[0].alone, *(here.job for here in drafts)], scratch, python=arguments.engine)
    rows = []
    for here, (decoded,) in zip(drafts, answers, strict=True):
        ours, theirs = here.count, count_accepted(decoded.answers, DEPTH)
        by_position = zip(theirs.acceptance_by_position, ours.acceptance_by_position, strict=True)
        points = max(abs(one - another) for one, another in by_position) * 100
        same = [[answer.token_ids for answer in side.answers] == texts for side in (alone, decoded, here.decoded)]
        rows.append(
            (here.name, f"{theirs.acceptance_length:.3f}", f"{ours.acceptance_length:.3f}",
             f"{theirs.acceptance_length / ours.acceptance_length - 1:+.2%}", f"{points:.2f}",
             " ".join(f"{share:.0%}" for share in ours.acceptance_by_position), "yes" if all(same) else str(same),
             deviations.get(here.name, ""))
        )  # fmt: skip
    columns = ("draft", "vLLM", "here", "gap", "points", "by position here", "same text", "logits, speculators")
    print(text_table(dict.fromkeys(columns, "left"), rows))


if __name__ == "__main__":
    main()
