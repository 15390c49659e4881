"""Block drafts served by vLLM: the logits of our own decoding, from exports and from folders of speculators."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from eaglepipe.decoding.dflash_steps import DflashSteps
from eaglepipe.decoding.drafters import VerifiedSlots
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.write import export_draft
from tests.drafts.block_drafts import ROOT, initialised, target_of
from tests.engine.test_published_drafts import PROMPT, TIME_LIMIT_S, Plant, planted, save_target

EXPORTED = ("dflash", "dflash_window")
AS_SAVED: dict[str, tuple[str, Plant]] = {"windows_as_saved": ("dflash_defaults", lambda c, t: None)}
MISREAD: dict[str, tuple[str, Plant]] = {"as_saved": ("dflash", lambda c, t: None)}
REFUSED: dict[str, tuple[str, Plant]] = {
    "mixed": ("dflash_mixed", lambda c, t: None),
    "mask_hidden": ("dflash", lambda c, t: t.update(mask_hidden=torch.ones(1, 1, 48))),
}


@dataclass(frozen=True, kw_only=True)
class Served:
    target: LlamaForCausalLM
    folders: dict[str, Path]
    answers: Path

    def logits(self, name: str) -> torch.Tensor:
        error = self.answers / f"{name}.txt"
        assert not error.exists(), error.read_text()
        return load_file(self.answers / f"{name}.safetensors")["logits"]


def depth_of(name: str) -> int:
    return int(json.loads((ROOT / name / "config.json").read_text())["block_size"]) - 1


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    root = tmp_path_factory.mktemp("blocks")
    target = save_target(root / "target")
    sources = {name: name for name in EXPORTED}
    folders = {
        name: export_draft(ROOT / name, "vllm", out=root / name, dtype="float32", target=root / "target").folder
        for name in EXPORTED
    }
    for name, (source, plant) in {**AS_SAVED, **MISREAD, **REFUSED}.items():
        sources[name], folders[name] = source, planted(ROOT / source, root / name, plant)
    drafts: dict[str, Any] = {
        name: {"folder": str(folder), "parallel": False, "method": "dflash", "depth": depth_of(sources[name])}
        for name, folder in folders.items()
    }
    job = {"target": str(root / "target"), "prompt": PROMPT, "depth": 0, "drafts": drafts}
    (root / "answers").mkdir()
    (root / "answers" / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "tests.engine.draft_logits", str(root / "answers" / "job.json")]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Served(target=target, folders=folders, answers=root / "answers")


@torch.no_grad()
def decoded(name: str, target: LlamaForCausalLM) -> torch.Tensor:
    """Logits [depth, D] of our own decoding after the prompt, from the target's states in transformers."""
    states = list(target(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states)
    last: list[torch.Tensor] = []
    hook = target.model.layers[-1].register_forward_hook(
        lambda _module, _inputs, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    logits = target(torch.tensor([PROMPT])).logits
    hook.remove()
    states[-1] = last[0].reshape(states[-1].shape)  # before the final norm
    draft: Any = initialised(name)
    draft.embed_tokens.weight.copy_(target.model.embed_tokens.weight)
    if not hasattr(draft, "d2t"):
        draft.lm_head.weight.copy_(target.lm_head.weight)
    aux = torch.stack([states[boundary][0] for boundary in target_of(name).aux_layer_ids], dim=1)
    tokens = torch.cat((torch.tensor(PROMPT[1:]), logits[0, -1:].argmax(-1)))
    verified = VerifiedSlots(
        aux=aux[None], last_hidden=None, next_tokens=tokens[None], counts=torch.tensor([len(PROMPT)]), sequences=()
    )
    steps = DflashSteps(draft)
    steps.begin(1)
    return steps.draft_all(verified, depth_of(name))[0]


def compared(name: str, source: str, served: Served) -> tuple[torch.Tensor, torch.Tensor]:
    expected, actual = decoded(source, served.target), served.logits(name)
    return (actual if actual.shape == expected.shape else actual[:, target_of(source).selected_token_ids]), expected


@pytest.mark.parametrize("name", [*EXPORTED, *AS_SAVED])
def test_vllm_drafts_from_the_logits_of_our_own_decoding(name: str, served: Served) -> None:
    actual, expected = compared(name, AS_SAVED[name][0] if name in AS_SAVED else name, served)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert check_draft(served.folders[name], "vllm").ok


@pytest.mark.parametrize("name", MISREAD)
def test_folders_that_vllm_misreads_are_errors_of_the_check(name: str, served: Served) -> None:
    actual, expected = compared(name, MISREAD[name][0], served)
    assert not torch.allclose(actual, expected, atol=1e-2 * float(expected.abs().max()))
    assert not check_draft(served.folders[name], "vllm").ok


def test_folders_that_vllm_stops_at_are_named(served: Served) -> None:
    assert all((served.answers / f"{name}.txt").exists() for name in REFUSED)
    assert "mixed sliding/full" in (served.answers / "mixed.txt").read_text()
    assert "VLLM_USE_V2_MODEL_RUNNER" in check_draft(served.folders["mixed"], "vllm").table()
    assert not check_draft(served.folders["mask_hidden"], "vllm").ok
