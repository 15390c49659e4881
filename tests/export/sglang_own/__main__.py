"""Asks SGLang's own code about every case, and writes its answers down: `python -m tests.export.sglang_own FOLDER`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from eaglepipe.errors import DraftError
from eaglepipe.export.write import export_draft
from tests.export.made_drafts import DEPTH, save_draft
from tests.export.sglang_own.blocks import BLOCKS, make_block, our_block_logits, serve_blocks
from tests.export.sglang_own.drafts import serve_chain
from tests.export.sglang_own.faults import CASES, DRAFTS, Case, draft_of, write_case
from tests.export.sglang_own.loading import open_sglang
from tests.export.sglang_own.reference import STEPS, differs, inputs_of, kept, our_logits
from tests.export.sglang_own.targets import TARGETS, captured

RECORD = Path(__file__).with_name("record.json")
STOPS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
IDS = (None, [1, 4, 6], [0, 4, 6], [2, 5, 7], [1, 4, 9], [2, 5, 9], [2, 5, 10], [5])


@torch.no_grad()
def outcome(sglang: Path, case: Case, folder: Path, exports: Path) -> dict[str, Any]:
    """Return what becomes of a case: same, differs, stops, or refused by the export."""
    target = DRAFTS[case.draft].target
    try:
        planted = write_case(case, folder, exports)
    except DraftError as refusal:
        return {"outcome": "refused", "why": str(refusal).rpartition("served by sglang: ")[2]}

    def capture(model_type: str, uses_aux: bool, ids: list[int] | None) -> tuple[int, ...]:
        if not uses_aux:
            raise ValueError("it asks for no aux states of the target")
        return captured(model_type, ids, depth=DEPTH)

    ids, states = inputs_of(target)
    try:
        served = serve_chain(
            sglang,
            planted,
            target=target.target_config,
            capture=capture,
            embeddings=target.embeddings,
            head=draft_of(case.draft).lm_head.weight if case.is_targets_head else target.head,
            ids=ids,
            states=states,
            steps=STEPS,
        )
    except STOPS as fault:
        return {"outcome": "stops", "why": f"{type(fault).__name__}: {fault}"[:160]}
    expected = our_logits(draft_of(case.draft), target)
    is_same = not differs(served.logits, expected) and torch.equal(served.target_ids, target.selected_token_ids)
    answer: dict[str, Any] = {"outcome": "same" if is_same else "differs"}
    if served.boundaries is not None and served.boundaries != target.aux_layer_ids:
        answer["boundaries"] = list(served.boundaries)
    if initial := [name for name in served.initial if "embed_tokens" not in name and "lm_head" not in name]:
        answer["initial"] = initial
    if answer == {"outcome": "same"}:
        answer["logits"] = kept(served.logits)
    return answer


def target_answers() -> dict[str, Any]:
    """Return the boundaries that each kind of target gives out for ids of a config."""
    answers: dict[str, Any] = {}
    for name in TARGETS:
        for ids in IDS:
            try:
                answers.setdefault(name, {})[json.dumps(ids)] = list(captured(name, ids, depth=DEPTH))
            except STOPS as fault:
                answers.setdefault(name, {})[json.dumps(ids)] = f"{type(fault).__name__}: {fault}"[:120]
    return answers


def _lines(record: dict[str, Any]) -> str:
    """JSON with one answer a line."""
    parts = []
    for name, value in record.items():
        inside = (
            ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            if isinstance(value, dict)
            else ""
        )
        parts.append(f"{json.dumps(name)}: " + (f"{{\n  {inside}\n }}" if inside else json.dumps(value)))
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def block_answers(scratch: Path) -> dict[str, Any]:
    """Return the last logits of each draft of blocks, and whether they are ours."""
    answers = {}
    for name in BLOCKS:
        draft = make_block(name)
        source = save_draft(draft, scratch / f"source of {name}")
        folder = export_draft(source, "sglang", out=scratch / name, dtype="float32").folder
        logits, initial = serve_blocks(folder, draft.embed_tokens.weight.detach(), draft.lm_head.weight.detach())
        is_same = not initial and not differs([logits], [our_block_logits(draft)])
        answers[name] = {"outcome": "same" if is_same else "differs", "logits": kept([logits[-1]])}
        print(f"{name:45} {answers[name]}", flush=True)
    return answers


def main(sglang: Path) -> None:
    version = open_sglang(sglang)
    answers = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, case) in enumerate(CASES.items()):
            answers[name] = outcome(sglang, case, Path(scratch) / str(number), Path(scratch) / "exports")
            print(f"{name:45} {answers[name]}", flush=True)
        blocks = block_answers(Path(scratch))
    record = {"sglang": version, "depth": DEPTH, "targets": target_answers(), "drafts": answers, "blocks": blocks}
    RECORD.write_text(_lines(record))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tests.export.sglang_own SGLANG_FOLDER")
    main(Path(sys.argv[1]))
