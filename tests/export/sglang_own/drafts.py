"""Serves a draft folder with SGLang's own classes: its loading of weights, its forward, its choice of layers."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from tests.export.sglang_own.loading import own_function
from tests.export.sglang_own.modules import SPEC

MODE = SimpleNamespace(is_decode=lambda: False, is_extend=lambda: False, is_idle=lambda: False)


@dataclass(frozen=True, kw_only=True)
class Served:
    """What came out of a draft of SGLang's."""

    logits: list[torch.Tensor]  # of each step, [T, D]
    target_ids: torch.Tensor  # of the draft ids
    initial: list[str]  # parameters that kept their initial values
    boundaries: tuple[int, ...] | None = None


class Chain:
    """A batch of one row, whose slot t drafts a chain from the text up to t."""

    forward_mode = MODE
    mm_input_embeds = None
    residual: Any = None

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self.spec_info = SimpleNamespace(hidden_states=None)

    def contains_mm_inputs(self) -> bool:
        return False

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Slot t reads the first step's slots up to t, and its own slot of every later step."""
        seen = self.seen.setdefault(layer.layer_id, [])
        seen.append((key, value))
        slots, repeats = len(query), layer.num_heads // layer.num_kv_heads
        keys, values = (torch.cat([step[part] for step in seen]).repeat_interleave(repeats, dim=1) for part in (0, 1))
        slot = torch.arange(slots)
        readable = torch.cat([slot[:, None] >= slot, *[slot[:, None] == slot] * (len(seen) - 1)], dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, keys) * layer.scaling
        weights = scores.masked_fill(~readable, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values)


def own(module: str) -> Any:
    return importlib.import_module(f"sglang.srt.{module}")


def build(folder: Path) -> tuple[Any, Any, list[str]]:
    """Return config, model and the names that kept their initial values, of the class that `architectures` names."""
    config = AutoConfig.from_pretrained(folder)
    modules = {
        "LlamaForCausalLMEagle3": "models.llama_eagle3",
        "LlamaForCausalLMEagle": "models.llama_eagle",
        "DFlashDraftModel": "models.dflash",
        "Qwen3DSparkModel": "models.dspark",
    }
    (name,) = config.architectures
    if name not in modules:
        raise ValueError(f"SGLang has no draft of class {name}")
    torch.manual_seed(0)
    with torch.no_grad():
        model = getattr(own(modules[name]), name)(config)
        before = {key: value.clone() for key, value in model.named_parameters()}
        model.load_weights(sorted(load_file(folder / "model.safetensors").items()))
        initial = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    return config, model, initial


def share(sglang: Path, model: Any, method: str, embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor | None:
    """Give the draft what SGLang's worker gives it of the target's, and return the ids that it maps draft ids to."""
    target = torch.nn.Parameter(embeddings.clone()), torch.nn.Parameter(head.clone())
    worker = SimpleNamespace(
        speculative_algorithm=SimpleNamespace(is_eagle3=lambda: method == "eagle3"),
        draft_runner=SimpleNamespace(model=model),
        hot_token_id=None,
        target_worker=SimpleNamespace(model_runner=SimpleNamespace(model=SimpleNamespace(lm_head=None))),
        _resolve_shared_embed_and_head=lambda: target,
    )
    own_function(sglang, "speculative/eagle_worker_v2.py", "init_lm_head")(worker)
    ids: torch.Tensor | None = worker.hot_token_id
    return ids


def captured_ids(config: Any, target: dict[str, Any]) -> tuple[bool, list[int] | None]:
    """Return whether SGLang reads aux states for a draft's config, and the ids that it gives to the target's model."""
    module = own("model_executor.model_runner_components.spec_aux_hidden_state")
    draft = SimpleNamespace(
        hf_config=config,
        num_nextn_predict_layers=None,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_layers=config.num_hidden_layers,
        is_hybrid_swa=False,
        is_deepseek_v4_arch=False,
    )
    module.ModelConfig = SimpleNamespace(from_server_args=lambda *args, **kwargs: draft)
    module.get_spec = lambda: SPEC
    features = SimpleNamespace(aux_hidden_state_capture=None)
    module.get_exec = lambda: SimpleNamespace(features=features)
    kind = {"DFlashDraftModel": "dflash", "Qwen3DSparkModel": "dspark"}.get(config.architectures[0], "eagle3")
    algorithm = SimpleNamespace(
        is_none=lambda: False,
        is_eagle=lambda: kind == "eagle3",
        is_eagle3=lambda: kind == "eagle3",
        is_standalone=lambda: False,
        is_dspark=lambda: kind == "dspark",
        is_dflash_family=lambda: kind != "eagle3",
    )
    text = SimpleNamespace(num_hidden_layers=target["num_hidden_layers"], model_type=target["model_type"])
    resolved = module.resolve_spec_aux_hidden_state_config(
        server_args=None,
        model_config=SimpleNamespace(hf_text_config=text, hf_config=text),
        spec_algorithm=algorithm,
        is_draft_worker=False,
    )
    if kind == "eagle3":
        return resolved.eagle_use_aux_hidden_state, resolved.eagle_aux_hidden_state_layer_ids
    return resolved.dflash_use_aux_hidden_state, resolved.dflash_target_layer_ids


def serve_chain(
    sglang: Path,
    folder: Path,
    *,
    target: dict[str, Any],
    capture: Callable[[str, bool, list[int] | None], tuple[int, ...]],
    embeddings: torch.Tensor,
    head: torch.Tensor,
    ids: torch.Tensor,
    states: list[torch.Tensor],
    steps: int,
) -> Served:
    """Serve an EAGLE draft for a target whose boundaries hold `states`; EAGLE-1/2 reads `states[-1]`, normed already.

    Raises whatever SGLang raises.
    """
    config, model, initial = build(folder)
    method = "eagle3" if config.architectures[0].endswith("Eagle3") else "eagle"
    hot = share(sglang, model, method, embeddings, head)
    batch, boundaries = Chain(), None
    if method == "eagle3":
        uses_aux, layer_ids = captured_ids(config, target)
        boundaries = capture(target["model_type"], uses_aux, layer_ids)
        batch.spec_info.hidden_states = torch.cat([states[boundary] for boundary in boundaries], dim=-1)
    else:
        batch.spec_info.hidden_states = states[-1]
    logits = []
    for step in range(steps):
        output = model(ids, torch.arange(len(ids)) + step, batch)
        logits.append(output.logits)
        batch.spec_info.hidden_states = output.states
        ids = torch.cat([ids[1:], torch.zeros(1, dtype=ids.dtype)])
    target_ids = torch.arange(logits[0].shape[-1]) if hot is None else hot
    return Served(logits=logits, target_ids=target_ids, initial=initial, boundaries=boundaries)


def stored_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config
