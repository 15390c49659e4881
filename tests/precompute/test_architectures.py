"""Every architecture that a draft is registered for, from a target of that class to a draft that is read back."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from eaglepipe.eagle.draft_llama_v12 import LlamaEagleDraftModel
from eaglepipe.eagle.registry import EAGLE1_DRAFT_REGISTRY, EAGLE3_DRAFT_REGISTRY
from eaglepipe.eagle.unroll.interface import TrainerInputs
from eaglepipe.errors import DraftError, TargetError
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import run_training
from eaglepipe.training.data.batch import TrainingSource
from eaglepipe.training.data.collate import encode_batch, pack_documents
from eaglepipe.training.data.source import open_caches
from eaglepipe.training.data.supervision_decoder import SupervisionDecoder
from eaglepipe.training.objectives.eagle1 import Eagle1Objective
from eaglepipe.training.run.checkpoint import load_latest
from tests.tiny_architectures import CONFIGS, HIDDEN, LAYERS, SHAPE, VOCAB, YARN

BOUNDARIES = (1, 4, LAYERS)
LENGTHS = (17, 9, 14, 6, 12, 8)
CPU = torch.device("cpu")


def make_target(name: str, folder: Path, **changes: Any) -> PreTrainedModel:
    """A float32 model with weights large enough that every part of it matters, biases and norms included."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])
    config.update(changes)
    model: PreTrainedModel = getattr(transformers, name)(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


def make_recipe(folder: Path, supervision: str) -> Recipe:
    """Rows of token ids whose second half is an answer."""
    generator = np.random.default_rng(0)
    rows = [(generator.integers(3, VOCAB, length).tolist(), [0] * 3 + [1] * (length - 3)) for length in LENGTHS]
    lines = [json.dumps({"input_ids": ids, "loss_mask": mask}) for ids, mask in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return parse_recipe(
        {
            "name": "tiny",
            "target": {"path": str(folder / "target"), "dtype": "float32"},
            "data": {"sources": [{"path": str(folder / "rows.jsonl"), "format": "tokenized"}], "max_length": 32},
            "vocab": {"draft_size": 30},
            "cache": {
                "root": str(folder / "caches"),
                "supervision": supervision,
                "aux_codec": "fp32",
                "hidden_codec": "fp32",
                "probs_codec": "fp32",
                "aux_layer_ids": BOUNDARIES,
                **({"last_hidden": "all", "full_head": True} if supervision == "hidden" else {}),
            },
            "train": {
                "output_dir": str(folder / "run"),
                "dtype": "float32",
                "ttt_steps": 2,
                "max_steps": 2,
                "epochs": 9,
                "batch_tokens": 40,
                "micro_batch_tokens": 40,
                "pack_length": 20,
                "heldout_fraction": 0.0,
            },
        }
    )


def decoded(source: TrainingSource, sample: int) -> TrainerInputs:
    """One sample as the trainer takes it, shifted by one."""
    batch = encode_batch(pack_documents(((source.read(sample),),)), pinned=False, run=lambda copy: copy())
    return SupervisionDecoder(source, device=CPU, dtype=torch.float32).decode(batch)


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The causal LM inside a multimodal model that holds one; else the model itself."""
    inside = getattr(model, "language_model", None)
    is_causal = isinstance(inside, PreTrainedModel) and inside.get_output_embeddings() is not None
    return inside if is_causal else model


def assert_rows_are_the_targets_own(model: PreTrainedModel, folder: Path) -> None:
    """Transformers gives the last boundary after the final norm, the cache before it, and the norm's scale apart."""
    source = open_caches([folder])
    scale = source.start_tensors()["norm.weight"]
    for number in range(len(LENGTHS)):
        row, found = source.read(number), decoded(source, number)
        with torch.no_grad():
            input_ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
            output = text_model(model)(input_ids=input_ids, output_hidden_states=True)
        *aux, before_norm = found.aux_hidden_states[0].split(HIDDEN, dim=-1)
        for boundary, states in zip(BOUNDARIES[:-1], aux, strict=True):
            torch.testing.assert_close(states, output.hidden_states[boundary][0], rtol=1e-4, atol=1e-5)
        normed = before_norm * (before_norm.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * scale
        torch.testing.assert_close(normed, output.hidden_states[LAYERS][0], rtol=1e-3, atol=1e-4)

        logits = output.logits[0].float()
        answered = torch.from_numpy(np.flatnonzero(row.position_mask))
        assert np.array_equal(row.target_top1[row.supervised], logits.argmax(-1).numpy()[row.supervised])
        wanted = torch.softmax(logits[answered][:, source.vocab.selected_token_ids], dim=-1)
        torch.testing.assert_close(found.target_probs, wanted, rtol=1e-4, atol=1e-6)


def test_every_registered_architecture_has_a_tiny_target() -> None:
    assert set(CONFIGS) == set(EAGLE3_DRAFT_REGISTRY)


@pytest.mark.parametrize("name", CONFIGS)
def test_from_a_target_to_a_draft_that_is_read_back(name: str, tmp_path: Path) -> None:
    model = make_target(name, tmp_path / "target")
    recipe = make_recipe(tmp_path, "hidden")
    folder = Path(run_precompute(recipe, report=lambda _: None).folder)
    assert_rows_are_the_targets_own(model, folder)

    assert run_training(recipe, [folder]).steps == 2
    saved = load_latest(tmp_path / "run" / "checkpoints", pytest.fail)
    assert saved is not None
    draft = EAGLE3_DRAFT_REGISTRY[name].draft_cls.from_pretrained(tmp_path / "run" / "draft")
    state = draft.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in saved.draft_tensors().items())
    inputs = decoded(open_caches([folder]), 0)
    states = draft(inputs.batch.input_ids, draft.project_hidden_states(inputs.aux_hidden_states))
    assert draft.compute_logits(states).isfinite().all()
    assert torch.equal(draft.get_input_embeddings().weight, model.get_input_embeddings().weight)

    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 3})})
    assert run_training(longer, [folder]).steps == 3
    if name in EAGLE1_DRAFT_REGISTRY:
        assert_an_eagle1_draft_trains(model, recipe, folder, tmp_path / "run-eagle1")


def assert_an_eagle1_draft_trains(model: PreTrainedModel, recipe: Recipe, folder: Path, run: Path) -> None:
    """From the same cache: two steps and back, and a frozen head that says what the target says at every token."""
    raw = recipe.model_dump(mode="json")
    eagle1 = parse_recipe({**raw, "train": {**raw["train"], "objective": "eagle1", "output_dir": str(run)}})
    assert run_training(eagle1, [folder]).steps == 2
    source = open_caches([folder])
    draft = LlamaEagleDraftModel.from_pretrained(run / "draft")
    assert torch.equal(draft.embed_tokens.weight, model.get_input_embeddings().weight)
    head = Eagle1Objective(eagle1.train).make_module(draft, source).head
    row = source.read(0)
    assert row.last_hidden_payload is not None
    stored = torch.from_numpy(row.last_hidden_payload.copy()).view(torch.float32)
    with torch.no_grad():
        input_ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        logits = text_model(model)(input_ids=input_ids).logits[0].float()
        torch.testing.assert_close(head.logits(stored), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "GraniteForCausalLM"])
def test_stored_probabilities_have_the_targets_cap_and_scale_too(name: str, tmp_path: Path) -> None:
    model = make_target(name, tmp_path / "target")
    assert_rows_are_the_targets_own(
        model, Path(run_precompute(make_recipe(tmp_path, "dense"), report=lambda _: None).folder)
    )


def test_partial_rotary_on_gpt_oss_is_refused_before_a_step(tmp_path: Path) -> None:
    """Its model ignores the factor under plain rope and fails under YaRN; the draft cannot follow either."""
    plain = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    make_target("GptOssForCausalLM", tmp_path / "target", rope_parameters=plain)
    recipe = make_recipe(tmp_path, "hidden")
    folder = Path(run_precompute(recipe, report=lambda _: None).folder)
    with pytest.raises(DraftError, match=r"partial_rotary_factor is 0\.5, but gpt-oss"):
        run_training(recipe, [folder])
    assert not (tmp_path / "run").exists()

    make_target("GptOssForCausalLM", tmp_path / "target", rope_parameters={**YARN, "partial_rotary_factor": 0.5})
    with pytest.raises(TargetError, match="GptOssForCausalLM: its own forward fails"):
        run_precompute(recipe, report=lambda _: None)


def test_an_architecture_without_a_draft_is_refused_before_a_step(tmp_path: Path) -> None:
    transformers.Cohere2ForCausalLM(transformers.Cohere2Config(**SHAPE)).save_pretrained(tmp_path / "target")
    recipe, said = make_recipe(tmp_path, "hidden"), list[str]()
    folder = Path(run_precompute(recipe, report=said.append).folder)
    assert any("will refuse this cache: no EAGLE-3 draft for target architectures (Cohere2" in line for line in said)
    with pytest.raises(DraftError, match=r"Cohere2ForCausalLM.*known:.*GptOssForCausalLM.*LlamaForCausalLM"):
        run_training(recipe, [folder])
    assert not (tmp_path / "run").exists()
