"""Drafts that speculators saved, served by vLLM: the logits of our own decoding, or refused as the check says."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from eaglepipe.decoding.drafters import VerifiedSlots
from eaglepipe.decoding.eagle3_steps import Eagle3Steps, PeagleSteps
from eaglepipe.drafts.folder import read_draft_folder
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.write import export_draft
from tests.drafts.speculators_drafts import ROOT, initialised, target_of

PROMPT, DEPTH, TIME_LIMIT_S = [5, 9, 3, 17, 22, 8, 31, 40, 11, 2, 6, 29], 3, 600
EXPORTED = ("defaults", "qwen3", "fc_norm", "yarn", "peagle")
AS_SAVED = ("qwen3",)
Plant = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]
LOADED: dict[str, tuple[str, Plant]] = {
    "another_class": ("whole_vocabulary", lambda c, t: c.update(architectures=["Eagle3Qwen2_5vlForCausalLM"])),
    "rope_in_one_spelling": ("yarn", lambda c, t: (c.pop("rope_theta"), c.pop("rope_scaling"))),
    "tied_embeddings": ("defaults", lambda c, t: c.update(tie_word_embeddings=True)),
    "window_switched_off": ("fc_norm", lambda c, t: c.update(sliding_window=4, use_sliding_window=False)),
}
REFUSED: dict[str, tuple[str, Plant]] = {
    "class_of_speculators": (
        "peagle_whole_vocabulary", lambda c, t: c.update(architectures=["PEagleDraftModel"])
    ),
    "activation": ("whole_vocabulary", lambda c, t: c.update(hidden_act="gelu")),
    "four_ids_and_no_count": (
        "defaults",
        lambda c, t: (c.update({"eagle_aux_hidden_state_layer_ids": [1, 3, 5, 8]}), c.pop("num_aux_hidden_states")),
    ),
    "maps_of_a_whole_vocabulary": (
        "whole_vocabulary",
        lambda c, t: t.update(d2t=torch.zeros(48, dtype=torch.int64), t2d=torch.ones(48, dtype=torch.bool)),
    ),
}  # fmt: skip
MISSERVED: dict[str, tuple[str, Plant]] = {
    "a_final_norm_of_zeros": ("fc_norm", lambda c, t: t["norm.weight"].zero_()),
    "a_bias_that_o_proj_has_there": (
        "fc_norm",
        lambda c, t: (c.update(bias=True), t.update({"midlayer.self_attn.o_proj.bias": torch.ones(16)})),
    ),
    "mask_token_beyond_the_vocabulary": ("peagle", lambda c, t: c.update(mask_token_id=48, pard_token=48)),
}
MIXED = "three_layers"


@dataclass(frozen=True, kw_only=True)
class Served:
    target: LlamaForCausalLM
    folders: dict[str, Path]
    answers: Path

    def logits(self, name: str) -> torch.Tensor:
        error = self.answers / f"{name}.txt"
        assert not error.exists(), error.read_text()
        return load_file(self.answers / f"{name}.safetensors")["logits"]


def save_target(folder: Path) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=16, num_hidden_layers=10, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + ("norm" in name))
    model.save_pretrained(folder)
    return model


def planted(source: Path, folder: Path, plant: Plant) -> Path:
    config, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    plant(config, tensors)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    root = tmp_path_factory.mktemp("published")
    target = save_target(root / "target")

    def exported(name: str) -> Path:
        out = root / "exports" / name
        out.parent.mkdir(exist_ok=True)
        return out if out.exists() else export_draft(ROOT / name, "vllm", out=out, dtype="float32").folder

    folders = {name: exported(name) for name in EXPORTED}
    for name in (*AS_SAVED, MIXED):  # without what is recorded beside them, which vLLM would load
        folders[f"{name}_as_saved"] = planted(ROOT / name, root / f"{name}_as_saved", lambda c, t: None)
    folders |= {
        name: planted(exported(source), root / name, plant)
        for name, (source, plant) in {**LOADED, **REFUSED, **MISSERVED}.items()
    }
    parallel = ("peagle", "class_of_speculators", "mask_token_beyond_the_vocabulary")
    drafts = {name: {"folder": str(folder), "parallel": name in parallel} for name, folder in folders.items()}
    job = {"target": str(root / "target"), "prompt": PROMPT, "depth": DEPTH, "drafts": drafts}
    (root / "answers").mkdir()
    (root / "answers" / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "tests.engine.draft_logits", str(root / "answers" / "job.json")]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Served(target=target, folders=folders, answers=root / "answers")


@torch.no_grad()
def decoded(name: str, folder: Path, target: LlamaForCausalLM) -> torch.Tensor:
    """Logits [depth, D] of our own decoding after the prompt, from the target's states in transformers."""
    states = list(target(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states)
    last: list[torch.Tensor] = []
    hook = target.model.layers[-1].register_forward_hook(
        lambda _module, _inputs, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    logits = target(torch.tensor([PROMPT])).logits
    hook.remove()
    states[-1] = last[0].reshape(states[-1].shape)  # before the final norm
    draft = initialised(name, folder=folder)
    if "embed_tokens.weight" not in read_draft_folder(folder).tensors:
        draft.get_input_embeddings().weight.copy_(target.model.embed_tokens.weight)
    aux = torch.stack([states[boundary][0] for boundary in target_of(name).aux_layer_ids], dim=1)
    tokens = torch.cat((torch.tensor(PROMPT[1:]), logits[0, -1:].argmax(-1)))
    verified = VerifiedSlots(
        aux=aux[None], last_hidden=None, next_tokens=tokens[None], counts=torch.tensor([len(PROMPT)]), sequences=()
    )
    steps = (PeagleSteps if name == "peagle" else Eagle3Steps)(draft)
    steps.begin(1)
    if isinstance(steps, PeagleSteps):
        return steps.draft_all(verified, DEPTH)[0]
    state, guess = steps.extend(verified)
    drafted, state = [guess[0]], state[:, None]
    for depth in range(1, DEPTH):
        visible = torch.ones(1, 1, depth, dtype=torch.bool)
        state, level = steps.step(steps.to_target_ids(drafted[-1].argmax(-1)).reshape(1, 1), state, visible, depth)
        drafted.append(level[0, 0])
    return torch.stack(drafted)


@pytest.mark.parametrize("name", [*EXPORTED, *(f"{name}_as_saved" for name in AS_SAVED)])
def test_vllm_drafts_from_the_logits_of_our_own_decoding(name: str, served: Served) -> None:
    own, folder = name.removesuffix("_as_saved"), served.folders[name]
    expected, actual = decoded(own, folder, served.target), served.logits(name)
    if actual.shape != expected.shape:
        actual = actual[:, target_of(own).selected_token_ids]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [*LOADED, *REFUSED, f"{MIXED}_as_saved"])
def test_check_says_what_vllms_loader_does(name: str, served: Served) -> None:
    report = check_draft(served.folders[name], "vllm")
    assert report.ok == (name in LOADED), report.table()
    assert (served.answers / f"{name}.txt").exists() != report.ok


@pytest.mark.parametrize("name", [name for name, (source, _) in LOADED.items() if source in EXPORTED])
def test_what_the_check_lets_pass_changes_nothing_in_vllm(name: str, served: Served) -> None:
    torch.testing.assert_close(served.logits(name), served.logits(LOADED[name][0]), rtol=0, atol=0)


@pytest.mark.parametrize("name", MISSERVED)
def test_what_vllm_serves_wrongly_without_a_word_is_named(name: str, served: Served) -> None:
    assert not check_draft(served.folders[name], "vllm").ok
    difference = served.logits(name) - served.logits(MISSERVED[name][0])
    assert difference[difference.isfinite()].abs().max() > 0.1
