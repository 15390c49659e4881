"""Runs SGLang's own loops over a target's layers, to see which boundaries it gives to a draft."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch

from tests.export.sglang_own.drafts import MODE, own
from tests.export.sglang_own.modules import RANK

TARGETS = {
    "llama": ("models.llama", "LlamaForCausalLM", "LlamaModel"),
    "qwen2": ("models.qwen2", "Qwen2ForCausalLM", "Qwen2Model"),
    "qwen3": ("models.qwen3", "Qwen3ForCausalLM", "Qwen3Model"),
    "deepseek_v3": ("models.deepseek_v2", "DeepseekV3ForCausalLM", "DeepseekV2Model"),
    "gpt_oss": ("models.gpt_oss", "GptOssForCausalLM", "GptOssModel"),
}


def captured(model_type: str, ids: list[int] | None, *, depth: int, blocks: bool = False) -> tuple[int, ...]:
    """Return the boundaries whose states the target gives out; a layer adds 1 to states that begin as 0.

    Raises whatever SGLang raises.
    """
    module, outer, inner = TARGETS[model_type]
    module = own(module)

    def layer(positions: Any, states: torch.Tensor, *args: Any, capture_output: Any = None, **kwargs: Any) -> Any:
        if capture_output is not None:
            capture_output(states)
        if (captures := kwargs.get("captured_last_layer_outputs")) is not None:
            captures.append(states)
        return (states + 1, None) if model_type == "deepseek_v3" else states + 1

    model = SimpleNamespace(
        config=SimpleNamespace(num_hidden_layers=depth),
        pp_group=RANK,
        embed_tokens=lambda ids: torch.zeros(len(ids), 1),
        layers=[layer] * depth,
        start_layer=0,
        end_layer=depth,
        norm=lambda states: states,
        layers_to_capture=[],
        _dsa_forward_uses_topk=lambda: False,
        use_dsa=False,
        llama_4_scaling_config=None,
        next_full_attention_layer_id={},
        first_k_dense_replace=0,
    )
    wrapper = SimpleNamespace(config=model.config, pp_group=RANK, model=model, capture_aux_hidden_states=False)
    choose = "set_dflash_layers_to_capture" if blocks else "set_eagle3_layers_to_capture"
    getattr(getattr(module, outer), choose)(wrapper, ids)
    assert wrapper.capture_aux_hidden_states
    batch = MagicMock(can_run_tbo=False, forward_mode=MODE)
    output = getattr(module, inner).forward(model, torch.zeros(2, dtype=torch.long), torch.arange(2), batch)
    if isinstance(output, torch.Tensor):
        return ()
    states = output[1]
    found = states[0].tolist() if isinstance(states, torch.Tensor) else [float(state[0, 0]) for state in states]
    return tuple(int(value) for value in found)
