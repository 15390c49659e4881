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
from eaglepipe.export.layouts import Engine
from eaglepipe.export.target_facts import TargetFacts, read_target_facts
from eaglepipe.export.write import export_draft
from tests.drafts.speculators_drafts import ROOT, initialised, target_of
from tests.export.made_drafts import MadeTarget, make_draft, save_draft

PROMPT, DEPTH, TIME_LIMIT_S = [5, 9, 3, 17, 22, 8, 31, 40, 11, 2, 6, 29], 3, 600
EXPORTED = ("defaults", "qwen3", "fc_norm", "yarn", "peagle")
AS_SAVED = ("qwen3",)
IN_THEIR_FORMAT = "yarn"  # with aux layers [1, 4, 7], and positions scaled as those of the target here are not
EAGLE1 = "eagle1"
Plant = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]
LOADED: dict[str, tuple[str, Plant]] = {
    "another_class": ("fc_norm", lambda c, t: c.update(architectures=["Eagle3Qwen2_5vlForCausalLM"])),
    "own_class_of_eagle1": (EAGLE1, lambda c, t: c.update(architectures=["EagleLlamaForCausalLM"])),
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
PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 5000.0}  # of the target
LINEAR: dict[str, Any] = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
POSITIONS: dict[str, tuple[dict[str, Any], Plant]] = {
    "unscaled": (PLAIN, lambda c, t: c.update(rope_scaling=None, rope_parameters=PLAIN)),
    "linear": (
        LINEAR,
        lambda c, t: c.update(rope_scaling={"rope_type": "linear", "factor": 4.0}, rope_parameters=LINEAR),
    ),
}
"""What `yarn` becomes with other positions than it was trained with."""
MIXED = "three_layers"


@dataclass(frozen=True, kw_only=True)
class Served:
    target: LlamaForCausalLM
    folders: dict[str, Path]
    answers: Path
    facts: TargetFacts

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
        return out if out.exists() else export_draft(published(name), "vllm", out=out, dtype="float32").folder

    def published(name: str) -> Path:
        if name != EAGLE1:
            return ROOT / name
        whole = MadeTarget(target_config=target.config.to_dict(), draft_size=target.config.vocab_size)
        return save_draft(make_draft(whole, EAGLE1), root / EAGLE1)

    folders = {name: exported(name) for name in (*EXPORTED, EAGLE1)}
    folders[f"{IN_THEIR_FORMAT}_in_their_format"] = export_draft(
        ROOT / IN_THEIR_FORMAT, "speculators", out=root / "in_their_format", dtype="float32"
    ).folder
    folders |= {name: planted(exported("yarn"), root / name, plant) for name, (_, plant) in POSITIONS.items()}
    for name in (*AS_SAVED, MIXED):  # without what is recorded beside them, which vLLM would load
        folders[f"{name}_as_saved"] = planted(ROOT / name, root / f"{name}_as_saved", lambda c, t: None)
    folders |= {
        name: planted(exported(source), root / name, plant)
        for name, (source, plant) in {**LOADED, **REFUSED, **MISSERVED}.items()
    }
    parallel = ("peagle", "class_of_speculators", "mask_token_beyond_the_vocabulary")
    drafts: dict[str, dict[str, Any]] = {
        name: {"folder": str(folder), "parallel": name in parallel} for name, folder in folders.items()
    }
    for name in (EAGLE1, "own_class_of_eagle1"):
        drafts[name]["method"] = "eagle"
    job = {"target": str(root / "target"), "prompt": PROMPT, "depth": DEPTH, "drafts": drafts}
    (root / "answers").mkdir()
    (root / "answers" / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "tests.engine.draft_logits", str(root / "answers" / "job.json")]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    facts = read_target_facts(root / "target")
    return Served(target=target, folders=folders, answers=root / "answers", facts=facts)


@torch.no_grad()
def decoded(name: str, folder: Path, target: LlamaForCausalLM, **config: Any) -> torch.Tensor:
    """Logits [depth, D] of our own decoding after the prompt, from the target's states in transformers.

    `config` are fields of the target that the draft is built for, if they are not those of the one that `name` is for.
    """
    states = list(target(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states)
    last: list[torch.Tensor] = []
    hook = target.model.layers[-1].register_forward_hook(
        lambda _module, _inputs, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    logits = target(torch.tensor([PROMPT])).logits
    hook.remove()
    states[-1] = last[0].reshape(states[-1].shape)  # before the final norm
    draft = initialised(name, target_of(name, **config), folder)
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


@pytest.mark.parametrize(
    "name", [*EXPORTED, *(f"{name}_as_saved" for name in AS_SAVED), f"{IN_THEIR_FORMAT}_in_their_format"]
)
def test_vllm_drafts_from_the_logits_of_our_own_decoding(name: str, served: Served) -> None:
    own, folder = name.removesuffix("_as_saved").removesuffix("_in_their_format"), served.folders[name]
    assert name.endswith("_as_saved") or check_draft(folder, engine_of(name), served.facts).ok
    expected, actual = decoded(own, folder, served.target), served.logits(name)
    if actual.shape != expected.shape:
        actual = actual[:, target_of(own).selected_token_ids]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def engine_of(name: str) -> Engine:
    return "speculators" if name.endswith("_in_their_format") else "vllm"


@pytest.mark.parametrize("name", ["yarn", *POSITIONS])
def test_vllm_scales_positions_as_the_draft_says_and_the_check_names_what_the_target_does_not(
    name: str, served: Served
) -> None:
    """It neither refuses such a draft nor takes over the target's positions, so the check warns and lets it pass."""
    report = check_draft(served.folders[name], "vllm", served.facts)
    named = [finding.line() for finding in report.findings if finding.name == "rope_scaling"]
    assert report.ok and bool(named) == (name != "unscaled") and all("the target's is none" in line for line in named)
    actual = served.logits(name)
    if name != "yarn":
        rope, _ = POSITIONS[name]
        expected = decoded("yarn", served.folders[name], served.target, rope_parameters=rope)
        actual = actual[:, target_of("yarn").selected_token_ids] if actual.shape != expected.shape else actual
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        difference = served.logits(name) - served.logits("yarn")
        assert difference[difference.isfinite()].abs().max() > 0.1


def test_the_exported_classes_are_those_that_the_check_lets_pass(served: Served) -> None:
    config = json.loads((served.folders["qwen3"] / "config.json").read_text())
    assert config["architectures"] == ["Eagle3Qwen3ForCausalLM"]


@pytest.mark.parametrize("name", [*LOADED, *REFUSED, f"{MIXED}_as_saved"])
def test_check_says_what_vllms_loader_does(name: str, served: Served) -> None:
    report = check_draft(served.folders[name], "vllm")
    assert report.ok == (name in LOADED), report.table()
    assert (served.answers / f"{name}.txt").exists() != report.ok


@pytest.mark.parametrize("name", [name for name, (source, _) in LOADED.items() if source in (*EXPORTED, EAGLE1)])
def test_what_the_check_lets_pass_changes_nothing_in_vllm(name: str, served: Served) -> None:
    torch.testing.assert_close(served.logits(name), served.logits(LOADED[name][0]), rtol=0, atol=0)


@pytest.mark.parametrize("name", MISSERVED)
def test_what_vllm_serves_wrongly_without_a_word_is_named(name: str, served: Served) -> None:
    assert not check_draft(served.folders[name], "vllm").ok
    difference = served.logits(name) - served.logits(MISSERVED[name][0])
    assert difference[difference.isfinite()].abs().max() > 0.1
