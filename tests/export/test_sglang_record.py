"""What SGLang's own code answered (`python -m tests.export.sglang_own`) binds check, export and emulator."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from eaglepipe.drafts.aux_ids import sglang_boundaries, sglang_fault
from eaglepipe.errors import DraftError
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.target_facts import read_target_facts
from tests.export.engine_forward import chain, chain_of_features
from tests.export.engine_loaders import load_as, load_features_draft
from tests.export.made_drafts import DEPTH
from tests.export.sglang_own.blocks import BLOCKS, make_block, our_block_logits
from tests.export.sglang_own.faults import CASES, DRAFTS, write_case
from tests.export.sglang_own.reference import STEPS, inputs_of, kept

RECORD = json.loads(Path(__file__).with_name("sglang_own").joinpath("record.json").read_text())
STRICTER = {
    "no biases in attention": "the config promises biases that the folder lacks, and other engines read them",
    "model_type qwen3": "to vLLM it is another class, with norms of query and key heads",
}
"""Cases that SGLang serves rightly and the check refuses, and why."""
UNKNOWABLE = {
    "embeddings not said to be trained": "they may be the target's own: a warning",
    "norm_output not named": "nothing in the folder tells the draft from one that was trained without",
}
"""Cases that SGLang serves wrongly by what a folder does not hold, and why."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@cache
def answer_of(name: str) -> dict[str, Any]:
    answer: dict[str, Any] = RECORD["drafts"][name]
    return answer


def test_every_case_has_been_put_to_sglang() -> None:
    assert RECORD["drafts"].keys() == CASES.keys() and RECORD["depth"] == DEPTH


@pytest.mark.parametrize("name", CASES)
def test_check_and_export_say_what_sglang_does(name: str, exports: Path, tmp_path: Path) -> None:
    case, answer = CASES[name], answer_of(name)
    if answer["outcome"] == "refused":
        with pytest.raises(DraftError, match="cannot be served by sglang"):
            write_case(case, tmp_path / "planted", exports)
        assert answer_of(f"for vllm: {case.draft}")["outcome"] in ("differs", "stops"), "a refusal without a reason"
        return
    planted = write_case(case, tmp_path / "planted", exports)
    (tmp_path / "target.json").write_text(json.dumps(DRAFTS[case.draft].target.target_config))
    report = check_draft(planted, "sglang", read_target_facts(tmp_path / "target.json"))
    is_said_to_fit = name in UNKNOWABLE or (answer["outcome"] == "same" and name not in STRICTER)
    assert report.ok == is_said_to_fit, report.table()


@pytest.mark.parametrize("name", [f"export of {name}" for name in DRAFTS])
def test_emulator_computes_what_sglang_does(name: str, exports: Path, tmp_path: Path) -> None:
    """The recorded logits are those of SGLang's own classes."""
    case, answer = CASES[name], answer_of(name)
    if answer["outcome"] == "refused":
        return
    target = DRAFTS[case.draft].target
    folder, (ids, states) = write_case(case, tmp_path / "planted", exports), inputs_of(target)
    if case.draft.startswith("eagle1"):
        features = load_features_draft("sglang", folder, target_embeddings=target.embeddings)
        logits = chain_of_features(features, ids, states[-1], target.head, STEPS)
    else:
        is_gpt_oss = target.target_config["model_type"] == "gpt_oss"
        served = load_as("sglang", folder, depth=DEPTH, target_embeddings=target.embeddings, gpt_oss=is_gpt_oss)
        assert served.boundaries == target.aux_layer_ids
        logits = chain(served, ids, states, STEPS)
    torch.testing.assert_close(torch.tensor(kept(logits)), torch.tensor(answer["logits"]), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_have_the_logits_that_sglang_gave(name: str) -> None:
    answer = RECORD["blocks"][name]
    logits = torch.tensor(kept([our_block_logits(make_block(name))[-1]]))
    assert answer["outcome"] == "same"
    torch.testing.assert_close(logits, torch.tensor(answer["logits"]), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", RECORD["targets"])
def test_boundaries_are_those_that_sglangs_targets_give_out(model_type: str) -> None:
    for written, answer in RECORD["targets"][model_type].items():
        ids = json.loads(written)
        if ids is None:
            assert answer == [2, DEPTH // 2, DEPTH - 3]
            continue
        expected = sglang_boundaries(tuple(ids), depth=DEPTH, model_type=model_type)
        fault = sglang_fault(expected, depth=DEPTH, model_type=model_type)
        assert max(expected) > DEPTH or (answer == list(expected)) == (fault is None), (ids, expected, answer)
