"""Misses and false alarms of the check, each decided by what the engine's own loader does with such a folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eaglepipe.errors import DraftError
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.target_facts import read_target_facts
from eaglepipe.export.write import export_draft
from tests.export.made_drafts import DEPTH, LLAMA, VOCAB, MadeTarget, make_draft, save_draft
from tests.export.test_check import AUX, Config, Plant, Tensors, config_is, exported, inner, planted, reports

__all__ = ["exported"]
QWEN3 = {"qk_norm": True}


def no_old_rope(config: Config, tensors: Tensors) -> None:
    config.pop("rope_theta")
    config.pop("rope_scaling")


def zero_norm(config: Config, tensors: Tensors) -> None:
    tensors["norm.weight"].zero_()


def identity_maps(config: Config, tensors: Tensors) -> None:
    tensors |= {"d2t": torch.zeros(VOCAB, dtype=torch.int64), "t2d": torch.ones(VOCAB, dtype=torch.bool)}


MISSES: dict[str, tuple[tuple[str, ...], Plant, str]] = {
    "four ids and no count": (
        ("vllm",), lambda c, t: (c.update({AUX: [1, 3, 5, 8]}), c.pop("num_aux_hidden_states")), "num_aux_hidden_states"
    ),
    "another activation": (("vllm", "sglang", "hf", "speculators"), lambda c, t: inner(c).update(hidden_act="gelu"),
                           "hidden_act"),
    "bias that vLLM gives o_proj": (("vllm", "hf"), config_is(bias=True), "o_proj"),
    "bias of fc that is not stored": (("sglang",), config_is(bias=True), "fc.bias"),
    "norms of SGLang's older name": (("vllm",), config_is(use_aux_norm=True), "only SGLang reads it"),
    "norms of that name that are not stored": (("sglang",), config_is(use_aux_norm=True), "fc_norm.0.weight"),
    "a final norm of zeros": (("vllm", "sglang", "hf", "speculators"), zero_norm, "nothing comes out"),
    "one aux layer": (("sglang",), config_is(num_aux_hidden_states=1), "skips fc"),
}  # fmt: skip
FALSE_ALARMS: dict[str, tuple[tuple[str, ...], Plant]] = {
    "rope in its newer spelling alone": (("vllm", "sglang"), no_old_rope),
    "tied embeddings that vLLM never reads": (("vllm",), config_is(tie_word_embeddings=True)),
    "a window that is switched off": (("vllm", "sglang"), config_is(sliding_window=4096, use_sliding_window=False)),
    "a class of another target": (("vllm",), config_is(architectures=["Eagle3Qwen2_5vlForCausalLM"])),
    "speculators ids that look like outputs": (("speculators", "vllm"), config_is(**{AUX: [1, 4, 7]})),
}


@pytest.mark.parametrize("fault", MISSES)
def test_fault_that_an_engine_suffers_from_is_named(fault: str, exported: dict[str, Path], tmp_path: Path) -> None:
    engines, plant, word = MISSES[fault]
    for engine in engines:
        report = check_draft(planted(exported[engine], tmp_path / engine, plant), engine)  # type: ignore[arg-type]
        assert reports(report, word), report.table()


@pytest.mark.parametrize("case", FALSE_ALARMS)
def test_what_an_engine_reads_rightly_is_no_fault(case: str, exported: dict[str, Path], tmp_path: Path) -> None:
    engines, plant = FALSE_ALARMS[case]
    for engine in engines:
        source = exported["speculators" if "speculators" in engines else engine]
        report = check_draft(planted(source, tmp_path / engine, plant), engine)  # type: ignore[arg-type]
        assert report.ok, report.table()


def made(tmp_path: Path, target: MadeTarget, engine: Any, objective: str = "eagle3", **settings: Any) -> Path:
    folder = save_draft(make_draft(target, objective, **settings), tmp_path / "draft")
    return export_draft(folder, engine, out=tmp_path / "out").folder


def test_maps_of_each_id_to_itself_are_a_fault_for_vllm_alone(tmp_path: Path) -> None:
    """Its loader has no parameter for d2t if the draft's vocabulary is the target's, and stops with a ValueError."""
    for engine in ("vllm", "sglang", "speculators"):
        folder = made(tmp_path / engine, MadeTarget(draft_size=VOCAB), engine)
        report = check_draft(planted(folder, tmp_path / engine / "maps", identity_maps), engine)  # type: ignore[arg-type]
        assert reports(report, "d2t") == (engine == "vllm") and report.ok == (engine != "vllm"), report.table()


def test_norms_of_query_and_key_heads_are_right_in_vllm_and_named_for_sglang(tmp_path: Path) -> None:
    folder = made(tmp_path, MadeTarget(), "vllm", **QWEN3)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Eagle3Qwen3ForCausalLM"] and config["model_type"] == "qwen3"
    assert check_draft(folder, "vllm").ok
    wrong = planted(folder, tmp_path / "wrong", config_is(architectures=["LlamaForCausalLMEagle3"]))
    assert reports(check_draft(wrong, "vllm"), "architectures")
    without = planted(folder, tmp_path / "without", lambda c, t: t.pop("midlayer.self_attn.q_norm.weight"))
    assert reports(check_draft(without, "vllm"), "q_norm")
    assert reports(check_draft(folder, "sglang"), "q_norm, k_norm")


def test_parallel_draft_is_checked_for_its_class_and_mask_token(tmp_path: Path) -> None:
    folder = made(tmp_path, MadeTarget(), "vllm", "peagle", mask_token_id=3)
    for name, plant, word in (
        ("class", config_is(architectures=["PEagleDraftModel"]), "architectures"),
        ("mask", config_is(mask_token_id=VOCAB, pard_token=VOCAB), "no id of the target's vocabulary"),
    ):
        assert reports(check_draft(planted(folder, tmp_path / name, plant), "vllm"), word)


def test_eagle1_draft_of_vllms_own_class_name_is_right(tmp_path: Path) -> None:
    folder = made(tmp_path, MadeTarget(draft_size=VOCAB), "vllm", "eagle1")
    assert check_draft(planted(folder, tmp_path / "own", config_is(architectures=["EagleLlamaForCausalLM"])), "vllm").ok


@pytest.mark.parametrize(("engine", "word"), [("sglang", "final boundary 10"), ("hf", "final boundary 10")])
def test_final_boundary_is_refused_where_sglang_reads(engine: Any, word: str, tmp_path: Path) -> None:
    target = MadeTarget(aux_layer_ids=(2, 5, DEPTH))
    with pytest.raises(DraftError, match=word):
        made(tmp_path, target, engine)
    vllm = export_draft(tmp_path / "draft", "vllm", out=tmp_path / "vllm").folder
    (tmp_path / "target.json").write_text(json.dumps(LLAMA))
    assert check_draft(vllm, "vllm", read_target_facts(tmp_path / "target.json")).ok
    assert reports(check_draft(vllm, "sglang", read_target_facts(tmp_path / "target.json")), "final boundary 10")


@pytest.mark.parametrize(
    ("boundaries", "nested"), [((2, 5, 8), [1, 4, 7]), ((3, 5, 8), [3, 5, 8]), ((1, 5, 8), None)], ids=str
)
def test_ids_for_deepseek_are_those_that_sglang_adds_one_to_or_not(
    boundaries: tuple[int, ...], nested: list[int] | None, tmp_path: Path
) -> None:
    """There it adds 1 to each only if the first id is 1."""
    draft = save_draft(make_draft(MadeTarget(aux_layer_ids=boundaries)), tmp_path / "draft")
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text(json.dumps({**LLAMA, "model_type": "deepseek_v3"}))
    (tmp_path / "target" / "model.safetensors").write_bytes(b"")
    facts = read_target_facts(target)
    out = export_draft(draft, "vllm", out=tmp_path / "vllm").folder
    config = json.loads((out / "config.json").read_text())
    if nested is None:
        assert reports(check_draft(out, "sglang", facts), "so none stand for [1, 5, 8]")
        return
    config["eagle_config"][AUX] = nested
    (out / "config.json").write_text(json.dumps(config))
    (out / "eaglepipe_digests.json").unlink()
    assert not [f for f in check_draft(out, "sglang", facts).errors if "eagle" in f.name]
    captured = [output + 1 for output in nested] if nested[0] == 1 else nested
    assert captured == list(boundaries)


def test_one_aux_layer_of_the_targets_width_is_not_for_sglang(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match="skips fc and fc_norm with one aux layer"):
        made(tmp_path, MadeTarget(aux_layer_ids=(5,)), "sglang")
    assert check_draft(export_draft(tmp_path / "draft", "vllm", out=tmp_path / "vllm").folder, "vllm").ok


def test_facts_of_the_target_name_scaled_positions_and_targets_without_aux_states(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    (tmp_path / "target.json").write_text(
        json.dumps({**LLAMA, "rope_parameters": yarn, "architectures": ["Gemma2ForCausalLM"]})
    )
    report = check_draft(exported["vllm"], "vllm", read_target_facts(tmp_path / "target.json"))
    assert reports(report, "captures no aux states of Gemma2ForCausalLM")
    assert any("rope_scaling: none, the target's is yarn (factor 4.0" in f.line() for f in report.findings)


def test_windows_are_written_for_vllm_and_speculators_and_refused_elsewhere(tmp_path: Path) -> None:
    folder = save_draft(make_draft(MadeTarget(), sliding_window=6), tmp_path / "draft")
    for engine in ("vllm", "speculators"):
        out = export_draft(folder, engine, out=tmp_path / engine).folder  # type: ignore[arg-type]
        layer = inner(json.loads((out / "config.json").read_text()))
        assert (layer["sliding_window"], layer["layer_types"]) == (6, ["sliding_attention"])
    for engine in ("sglang", "hf"):
        with pytest.raises(DraftError, match="ignores the draft's sliding_window of 6"):
            export_draft(folder, engine, out=tmp_path / engine)  # type: ignore[arg-type]
    biased = MadeTarget(target_config={**LLAMA, "attention_bias": True})
    with pytest.raises(DraftError, match="SGLang has no biases"):
        export_draft(save_draft(make_draft(biased), tmp_path / "biased"), "hf")
