"""Drafts, and folders of them that differ in one thing, about which SGLang's own code is asked."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from eaglepipe.export.layouts import Engine
from eaglepipe.export.write import export_draft
from tests.export.made_drafts import GPT_OSS, LLAMA, VOCAB, MadeTarget, make_draft, save_draft

Config, Tensors = dict[str, Any], dict[str, torch.Tensor]
Plant = Callable[[Config, Tensors], object]
AUX = "eagle_aux_hidden_state_layer_ids"
YARN = GPT_OSS["rope_parameters"]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A draft to be made."""

    target: MadeTarget = field(default_factory=MadeTarget)
    objective: str = "eagle3"
    scale: float = 0.3
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self) -> PreTrainedModel:
        return make_draft(self.target, self.objective, scale=self.scale, **self.settings)


def _made(target: MadeTarget | None = None, **settings: Any) -> Made:
    return Made(target=target or MadeTarget(), settings=settings)


WHOLE = MadeTarget(draft_size=VOCAB)
DRAFTS: dict[str, Made] = {
    "eagle3": _made(),
    "eagle3.1": _made(fc_norm=True, norm_output=True),
    "norm before fc": _made(norm_before_fc=True),
    "whole vocabulary": _made(WHOLE),
    "four layers": _made(MadeTarget(aux_layer_ids=(1, 4, 6, 9)), fc_norm=True),
    "one layer": _made(MadeTarget(aux_layer_ids=(5,))),
    "one layer, another width": _made(
        MadeTarget(aux_layer_ids=(5,)), hidden_size=24, freeze_embeddings=False, lm_head_init="random"
    ),
    "two layers": _made(num_hidden_layers=2),
    "another width": _made(hidden_size=24, freeze_embeddings=False, lm_head_init="random"),
    "width of the states": _made(hidden_size=48, freeze_embeddings=False, lm_head_init="random"),
    "trained embeddings": _made(freeze_embeddings=False),
    "gpt-oss": _made(MadeTarget(target_config=GPT_OSS)),
    "gpt-oss, final boundary": _made(MadeTarget(target_config=GPT_OSS, aux_layer_ids=(6, 8, 10))),
    "final boundary": _made(MadeTarget(aux_layer_ids=(2, 5, 10))),
    "biases": _made(MadeTarget(target_config={**LLAMA, "attention_bias": True})),
    "q_norm and k_norm": _made(qk_norm=True),
    "residual norm": _made(norm_before_residual=True),
    "window": _made(sliding_window=3),
    "eagle1": Made(target=WHOLE, objective="eagle1", scale=0.15),
    "eagle1, two layers": Made(target=WHOLE, objective="eagle1", scale=0.15, settings={"num_hidden_layers": 2}),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder: the export of a draft, with something changed."""

    draft: str
    plant: Plant = lambda config, tensors: None
    engine: Engine = "sglang"  # exported for
    is_targets_head: bool = False  # the target's head is the draft's


def _set(**values: Any) -> Plant:
    return lambda config, tensors: config.update(values)


def _drop(*names: str) -> Plant:
    return lambda config, tensors: [(config.pop(name, None), tensors.pop(name, None)) for name in names]


def _all(*plants: Plant) -> Plant:
    return lambda config, tensors: [plant(config, tensors) for plant in plants]


def _add(name: str, *shape: int, value: float = 1.0) -> Plant:
    return lambda config, tensors: tensors.update({name: torch.full(shape, value)})


def _rename(old: str, new: str) -> Plant:
    return lambda config, tensors: [tensors.update({n.replace(old, new): tensors.pop(n)}) for n in list(tensors)]


def _prefix(config: Config, tensors: Tensors) -> None:
    for name in list(tensors):
        if name not in ("lm_head.weight", "d2t", "t2d"):
            tensors[f"model.{name}"] = tensors.pop(name)


def _as_ids(config: Config, tensors: Tensors) -> None:
    tensors["d2t"] = tensors["d2t"] + torch.arange(len(tensors["d2t"]))


def _nested(*ids: int, **values: Any) -> Plant:
    return _set(eagle_config={AUX: list(ids), **values})


def _older_names(config: Config, tensors: Tensors) -> None:
    for old, new in enumerate(("low", "mid", "high")):
        tensors[f"aux_norm_{new}.weight"] = tensors.pop(f"fc_norm.{old}.weight")


def _zero_maps(config: Config, tensors: Tensors) -> None:
    tensors["d2t"] = torch.zeros(VOCAB, dtype=torch.int64)


def _as_llama(**values: Any) -> Plant:
    return _set(architectures=["LlamaForCausalLMEagle3"], model_type="llama", **values)


CASES: dict[str, Case] = {
    **{f"export of {name}": Case(draft=name) for name in DRAFTS},
    # Refused by the export, and served as other engines take them.
    **{
        f"for vllm: {name}": Case(draft=name, engine="vllm", plant=_as_llama())
        for name in (
            "one layer", "width of the states", "trained embeddings", "final boundary", "biases",
            "q_norm and k_norm", "residual norm", "window", "two layers",
        )
    },
    "embeddings not said to be trained": Case(
        draft="trained embeddings", engine="vllm", plant=_drop("embed_requires_grad")
    ),
    "no biases in attention": Case(draft="eagle3", plant=_set(attention_bias=True)),
    "names with model.": Case(draft="eagle3", plant=_prefix),
    "model.lm_head": Case(draft="eagle3", plant=_rename("lm_head", "model.lm_head")),
    "model.d2t": Case(draft="eagle3", plant=_rename("d2t", "model.d2t")),
    "names with layers.0": Case(draft="eagle3", plant=_rename("midlayer.", "layers.0.")),
    "missing norm": Case(draft="eagle3", plant=_drop("norm.weight")),
    "missing fc": Case(draft="eagle3", plant=_drop("fc.weight")),
    "missing d2t": Case(draft="eagle3", plant=_drop("d2t")),
    "d2t holds ids": Case(draft="eagle3", plant=_as_ids),
    "zero d2t of the whole vocabulary": Case(draft="whole vocabulary", plant=_zero_maps),
    "no draft_vocab_size": Case(draft="eagle3", plant=_drop("draft_vocab_size")),
    "draft_vocab_size null, no head": Case(
        draft="whole vocabulary",
        plant=_all(_set(draft_vocab_size=None), _drop("lm_head.weight")),
        is_targets_head=True,
    ),
    "draft_vocab_size null, another head": Case(draft="whole vocabulary", plant=_set(draft_vocab_size=None)),
    "draft_vocab_size of the whole, no head": Case(draft="whole vocabulary", plant=_drop("lm_head.weight")),
    "draft_vocab_size null of a part": Case(draft="eagle3", plant=_set(draft_vocab_size=None)),
    "target_hidden_size null": Case(draft="eagle3", plant=_set(target_hidden_size=None)),
    "target_hidden_size of the draft's width": Case(draft="eagle3", plant=_set(target_hidden_size=16)),
    "tied embeddings": Case(draft="eagle3", plant=_set(tie_word_embeddings=True)),
    "tied embeddings of the whole": Case(draft="whole vocabulary", plant=_set(tie_word_embeddings=True)),
    "hidden_act gelu": Case(draft="eagle3", plant=_set(hidden_act="gelu")),
    "bias without tensors": Case(draft="eagle3", plant=_set(bias=True)),
    "bias with a zero fc.bias": Case(draft="eagle3", plant=_all(_set(bias=True), _add("fc.bias", 16, value=0.0))),
    "use_aux_norm for fc_norm": Case(draft="eagle3.1", plant=_all(_drop("fc_norm"), _set(use_aux_norm=True))),
    "use_aux_norm and older names": Case(
        draft="eagle3.1", plant=_all(_drop("fc_norm"), _set(use_aux_norm=True), _older_names)
    ),
    "use_aux_norm and fc_norm false": Case(draft="eagle3.1", plant=_set(fc_norm=False, use_aux_norm=True)),
    "use_aux_norm without tensors": Case(draft="eagle3", plant=_set(use_aux_norm=True)),
    "fc_norm not named": Case(draft="eagle3.1", plant=_drop("fc_norm")),
    "norm_output not named": Case(draft="eagle3.1", plant=_drop("norm_output")),
    "norm_output false": Case(draft="eagle3", plant=_set(norm_output=False)),
    "flags not named": Case(draft="eagle3", plant=_drop("norm_before_fc", "fc_norm", "norm_before_residual")),
    "norm_before_fc in eagle_config": Case(
        draft="norm before fc", plant=_all(_drop("norm_before_fc"), _set(eagle_config={"norm_before_fc": True}))
    ),
    "norm_before_fc false in eagle_config": Case(
        draft="norm before fc", plant=_set(eagle_config={"norm_before_fc": False})
    ),
    "norm_before_fc without tensors": Case(draft="eagle3", plant=_set(norm_before_fc=True)),
    "rope_parameters alone": Case(draft="eagle3", plant=_drop("rope_theta", "rope_scaling")),
    "rope_theta alone": Case(draft="eagle3", plant=_drop("rope_parameters")),
    "no rope_theta": Case(draft="eagle3", plant=_drop("rope_parameters", "rope_theta", "rope_scaling")),
    "yarn in rope_parameters alone": Case(draft="gpt-oss", plant=_drop("rope_theta", "rope_scaling")),
    "yarn in rope_scaling alone": Case(draft="gpt-oss", plant=_drop("rope_parameters")),
    "another rope_scaling": Case(draft="eagle3", plant=_set(rope_scaling=YARN, rope_parameters=YARN)),
    "rope_scaling that contradicts": Case(draft="gpt-oss", plant=_set(rope_scaling={**YARN, "factor": 2.0})),
    "a window that is switched off": Case(
        draft="eagle3", plant=_set(sliding_window=3, use_sliding_window=False)
    ),
    "outputs in eagle_config": Case(draft="eagle3", plant=_nested(1, 4, 6)),
    "boundaries in eagle_config": Case(draft="eagle3", plant=_nested(2, 5, 7)),
    "boundaries at the top alone": Case(draft="four layers", plant=_drop("eagle_config")),
    "four layers, not counted": Case(draft="four layers", plant=_drop("num_aux_hidden_states")),
    "default boundaries at the top": Case(draft="eagle3", plant=_set(**{AUX: [2, 5, 7]})),
    "no aux states": Case(draft="eagle3", plant=_nested(1, 4, 6, use_aux_hidden_state=False)),
    "the target's depth": Case(draft="eagle3", plant=_set(num_hidden_layers=3)),
    "deeper norms named input_layernorm": Case(
        draft="two layers", plant=_rename("layers.1.hidden_norm", "layers.1.input_layernorm")
    ),
    "eagle1 without fc.bias": Case(draft="eagle1", plant=_drop("fc.bias")),
    "eagle1 with a head": Case(draft="eagle1", plant=_add("lm_head.weight", VOCAB, 16)),
    "eagle1 as eagle3": Case(draft="eagle1", plant=_set(architectures=["LlamaForCausalLMEagle3"])),
    "eagle1 of the target's class": Case(draft="eagle1", plant=_set(architectures=["LlamaForCausalLM"])),
    "class of another engine": Case(draft="eagle3", plant=_set(architectures=["Eagle3LlamaForCausalLM"])),
    "model_type qwen3": Case(draft="eagle3", plant=_set(model_type="qwen3")),
}  # fmt: skip


@cache
def draft_of(name: str) -> PreTrainedModel:
    return DRAFTS[name].build()


def write_case(case: Case, folder: Path, exports: Path) -> Path:
    """Write the case's folder, from its draft's export, which is kept under `exports`.

    Raises:
        DraftError: the export refuses the draft.
    """
    source = exports / case.draft
    if not source.exists():
        save_draft(draft_of(case.draft), source)
    made = exports / f"{case.draft} for {case.engine}"
    if not made.exists():
        export_draft(source, case.engine, out=made, dtype="float32")
    config, tensors = json.loads((made / "config.json").read_text()), load_file(made / "model.safetensors")
    case.plant(config, tensors)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
