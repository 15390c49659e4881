"""What engines compute with a draft that they have loaded, slot by slot, in plain torch."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from tests.export.engine_loaders import Served


def chain(draft: Served, ids: torch.Tensor, hidden_states: list[torch.Tensor], steps: int) -> list[torch.Tensor]:
    """Logits [T, D] of each step: ids [T] roll left, the state is carried, keys of earlier steps stay (one row)."""
    state = project(draft, torch.cat([hidden_states[boundary] for boundary in draft.boundaries], dim=-1))
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(draft.sizes["num_hidden_layers"])]
    logits = []
    for step in range(steps):
        positions = torch.arange(len(ids)) + step
        state = layers(draft, ids, state, positions, seen)
        normed = rms_norm(draft, state, "norm")
        logits.append(normed @ draft.weights["lm_head.weight"].T)
        state = normed if draft.norm_output else state
        ids = torch.cat([ids[1:], torch.zeros(1, dtype=ids.dtype)])
    return logits


def project(draft: Served, aux: torch.Tensor) -> torch.Tensor:
    if "input_norm.weight" in draft.weights:
        aux = rms_norm(draft, aux, "input_norm")
    if draft.fc_norm:
        chunks = aux.chunk(len(draft.boundaries), dim=-1)
        aux = torch.cat([rms_norm(draft, chunk, f"fc_norm.{i}") for i, chunk in enumerate(chunks)], dim=-1)
    return aux @ draft.weights["fc.weight"].T


def layers(
    draft: Served,
    ids: torch.Tensor,
    state: torch.Tensor,
    positions: torch.Tensor,
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]],
) -> torch.Tensor:
    for layer in range(draft.sizes["num_hidden_layers"]):
        name = f"layers.{layer}"
        if layer == 0:
            embeds = rms_norm(draft, draft.weights["embed_tokens.weight"][ids], f"{name}.input_layernorm")
            inputs = torch.cat([embeds, rms_norm(draft, state, f"{name}.hidden_norm")], dim=-1)
        else:
            inputs = rms_norm(draft, state, f"{name}.{draft.deeper_norm}")
        state = state + attend(draft, name, inputs, positions, seen[layer])
        state = state + mlp(draft, name, rms_norm(draft, state, f"{name}.post_attention_layernorm"))
    return state


def attend(
    draft: Served,
    name: str,
    inputs: torch.Tensor,
    positions: torch.Tensor,
    seen: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Slot t reads step 0's slots up to t, and its own slot of every later step."""
    heads, groups, dim = (draft.sizes[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    query = rotate(_linear(draft, f"{name}.self_attn.q_proj", inputs).view(-1, heads, dim), positions, draft)
    key = rotate(_linear(draft, f"{name}.self_attn.k_proj", inputs).view(-1, groups, dim), positions, draft)
    value = _linear(draft, f"{name}.self_attn.v_proj", inputs).view(-1, groups, dim)
    seen.append((key, value))
    num_slots = len(inputs)
    output = torch.empty(num_slots, heads, dim)
    for slot in range(num_slots):
        keys = torch.cat([seen[0][0][: slot + 1], *(step[0][slot : slot + 1] for step in seen[1:])])
        values = torch.cat([seen[0][1][: slot + 1], *(step[1][slot : slot + 1] for step in seen[1:])])
        for head in range(heads):
            group = head * groups // heads
            scores = keys[:, group] @ query[slot, head] / math.sqrt(dim)
            output[slot, head] = scores.softmax(0) @ values[:, group]
    return _linear(draft, f"{name}.self_attn.o_proj", output.flatten(1))


def mlp(draft: Served, name: str, inputs: torch.Tensor) -> torch.Tensor:
    gate, up = (_linear(draft, f"{name}.mlp.{part}_proj", inputs) for part in ("gate", "up"))
    return _linear(draft, f"{name}.mlp.down_proj", F.silu(gate) * up)


def _linear(draft: Served, name: str, inputs: torch.Tensor) -> torch.Tensor:
    output = inputs @ draft.weights[f"{name}.weight"].T
    return output + draft.weights[f"{name}.bias"] if f"{name}.bias" in draft.weights else output


def rms_norm(draft: Served, states: torch.Tensor, name: str) -> torch.Tensor:
    scale = (states.square().mean(-1, keepdim=True) + draft.sizes["rms_norm_eps"]).rsqrt()
    return states * scale * draft.weights[f"{name}.weight"]


def rotate(states: torch.Tensor, positions: torch.Tensor, draft: Served) -> torch.Tensor:
    """[T, heads, dim]: default and YaRN positions, by their papers."""
    dim, rope = states.shape[-1], draft.rope
    frequencies = rope["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    scale = 1.0
    if rope["rope_type"] == "yarn":
        frequencies = _yarn(frequencies, dim, rope)
        scale = 0.1 * math.log(rope["factor"]) + 1.0
    else:
        assert rope["rope_type"] == "default"
    angles = positions[:, None].double() * frequencies
    cos, sin = ((scale * table).float()[:, None] for table in (angles.cos(), angles.sin()))
    first, second = states[..., : dim // 2], states[..., dim // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _yarn(frequencies: torch.Tensor, dim: int, rope: dict[str, Any]) -> torch.Tensor:
    def dimension(turns: float) -> float:
        length = rope["original_max_position_embeddings"]
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = dimension(rope["beta_fast"]), dimension(rope["beta_slow"])
    assert rope["truncate"] is False
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return frequencies / rope["factor"] * ramp + frequencies * (1 - ramp)


def chain_of_features(
    draft: Served, ids: torch.Tensor, features: torch.Tensor, head: torch.Tensor, steps: int
) -> list[torch.Tensor]:
    """Logits [T, V] of each step through the target's lm_head; the feature that comes out goes in next."""
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(draft.sizes["num_hidden_layers"])]
    logits = []
    for step in range(steps):
        positions = torch.arange(len(ids)) + step
        features = _linear(draft, "fc", torch.cat([draft.weights["embed_tokens.weight"][ids], features], dim=-1))
        for layer, keys in enumerate(seen):
            name = f"layers.{layer}"
            inputs = features if layer == 0 else rms_norm(draft, features, f"{name}.{draft.deeper_norm}")
            features = features + attend(draft, name, inputs, positions, keys)
            features = features + mlp(draft, name, rms_norm(draft, features, f"{name}.post_attention_layernorm"))
        logits.append(features @ head.T)
        ids = torch.cat([ids[1:], torch.zeros(1, dtype=ids.dtype)])
    return logits
