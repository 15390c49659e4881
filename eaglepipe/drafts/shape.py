"""The shape of a draft apart from any engine: its sizes and flags, and the tensors that follow from them.

Canonical names have no `model.` prefix and call the first layer `layers.0`; layouts rename them for an engine.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from eaglepipe.drafts.block_shape import BlockShape, head_shapes, norm_shapes
from eaglepipe.families import Family

_LAYER = re.compile(r"layers\.([0-9]+)\.")
_MAX_DIGITS = 3
Shapes = dict[str, tuple[int, ...]]

FUSED_NORMS = ("hidden_norm", "input_layernorm", "post_attention_layernorm")
"""Norms of a layer. Deeper EAGLE-3 layers have one input norm under two names: vLLM reads one, SGLang the other."""
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAP_DTYPES = {"d2t": (torch.int64, torch.int32), "t2d": (torch.bool, torch.uint8)}
_ROLES = {"d2t": "offsets", "t2d": "masks"}
SGLANG_FC_NORMS = {"aux_norm_low": "fc_norm.0", "aux_norm_mid": "fc_norm.1", "aux_norm_high": "fc_norm.2"}


@dataclass(frozen=True, kw_only=True)
class DraftShape:
    """Sizes and flags of a draft. V target vocabulary, D draft vocabulary, H draft hidden, Ht target hidden, A aux."""

    family: Family
    vocab_size: int
    draft_vocab_size: int
    hidden_size: int
    target_hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_aux: int = 3
    fc_norm: bool = False
    norm_output: bool = False
    norm_before_fc: bool = False
    norm_before_residual: bool = False
    qk_norm: bool = False  # RMSNorm of each query and key head
    input_norm: bool = False  # of the first layer, in drafts that read no aux states
    final_norm: bool = False  # likewise, of the states that come out
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    windows: tuple[int | None, ...] = ()  # of attention, one a layer; () if all layers read everything
    block: BlockShape | None = None  # of families that draft blocks

    @property
    def sliding_window(self) -> int | None:
        """The window of the layers that have one."""
        return max((window for window in self.windows if window is not None), default=None)

    @property
    def full_attention_layers(self) -> tuple[int, ...]:
        """Layers without a window, if others have one."""
        return tuple(index for index, window in enumerate(self.windows) if window is None)

    @property
    def fc_inputs(self) -> int:
        """Input width of `fc`, which reads the aux states or, in EAGLE-1, embedding and last hidden state."""
        states = self.target_hidden_size
        return states * self.num_aux if self.family.reads_aux else self.hidden_size + states

    @property
    def has_own_width(self) -> bool:
        """Whether its hidden size is not the target's."""
        return self.hidden_size != self.target_hidden_size

    @property
    def has_vocab_map(self) -> bool:
        """Whether its vocabulary is smaller than the target's."""
        return self.draft_vocab_size < self.vocab_size


def tensor_shapes(shape: DraftShape) -> Shapes:
    """Return the shape of every tensor that such a draft may have, by canonical name; layouts write some of them."""
    hidden, states = shape.hidden_size, shape.target_hidden_size
    shapes: Shapes = {"embed_tokens.weight": (shape.vocab_size, hidden), "fc.weight": (hidden, shape.fc_inputs)}
    if not shape.family.reads_aux:
        shapes["fc.bias"] = (hidden,)
        if shape.final_norm:
            shapes["norm.weight"] = (hidden,)
    else:
        shapes |= {"norm.weight": (hidden,), "lm_head.weight": (shape.draft_vocab_size, hidden)}
        if shape.has_vocab_map:
            shapes |= {"d2t": (shape.draft_vocab_size,), "t2d": (shape.vocab_size,)}
        if shape.norm_before_fc:
            shapes["input_norm.weight"] = (shape.fc_inputs,)
        if shape.block is not None:
            heads = {"hidden": hidden, "vocab_size": shape.vocab_size, "draft_vocab_size": shape.draft_vocab_size}
            shapes |= {"hidden_norm.weight": (hidden,), **dict(head_shapes(shape.block, **heads))}
        if shape.fc_norm:
            shapes |= {f"fc_norm.{index}.weight": (states,) for index in range(shape.num_aux)}
    if shape.family.has_mask_token:
        shapes["mask_hidden"] = (1, 1, shape.fc_inputs)
    for layer in range(shape.num_hidden_layers):
        shapes |= {f"layers.{layer}.{name}": size for name, size in _layer_shapes(shape, layer)}
    return shapes


def _layer_shapes(shape: DraftShape, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, reads_aux = shape.hidden_size, shape.intermediate_size, shape.family.reads_aux
    query, key = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    reads_embedding_beside = layer == 0 and reads_aux and shape.block is None
    inputs = 2 * hidden if reads_embedding_beside else hidden
    has_input_norm = layer > 0 or shape.input_norm
    if shape.block is not None:
        yield from norm_shapes(hidden)
    else:
        for norm in FUSED_NORMS if reads_aux else FUSED_NORMS[1:] if has_input_norm else FUSED_NORMS[2:]:
            yield f"{norm}.weight", (hidden,)
    for norm in ("q_norm", "k_norm") if shape.qk_norm else ():
        yield f"self_attn.{norm}.weight", (shape.head_dim,)
    attention = {"q_proj": (query, inputs), "k_proj": (key, inputs), "v_proj": (key, inputs), "o_proj": (hidden, query)}
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    for part, sizes, has_bias in (("self_attn", attention, shape.attention_bias), ("mlp", mlp, shape.mlp_bias)):
        for name, size in sizes.items():
            yield f"{part}.{name}.weight", size
            if has_bias:
                yield f"{part}.{name}.bias", size[:1]


def tensor_faults(tensors: Mapping[str, torch.Tensor], expected: Shapes, *, optional: Collection[str]) -> Iterator[str]:
    """Yield a line for each tensor that is missing, misshapen or unknown."""
    for name, size in expected.items():
        if name not in tensors:
            if name not in optional:
                yield f"missing {name}"
        elif tuple(tensors[name].shape) != size:
            yield f"{name} is {tuple(tensors[name].shape)}, expected {size}"
        elif tensors[name].dtype not in MAP_DTYPES.get(name, WEIGHT_DTYPES):
            stored = str(tensors[name].dtype).removeprefix("torch.")
            yield f"{name} is stored as {stored}, which is no type of {_ROLES.get(name, 'weights')}"
    yield from (f"unknown {name}" for name in tensors.keys() - expected.keys())


def without_identity_maps(tensors: Mapping[str, torch.Tensor], shape: DraftShape) -> dict[str, torch.Tensor]:
    """Return the tensors without maps that lead from each id to itself; some trainers store them with any draft."""
    if shape.has_vocab_map:
        return dict(tensors)
    identical = {"d2t": lambda offsets: not bool(offsets.any()), "t2d": lambda mask: bool(mask.all())}
    redundant = {
        name
        for name, is_identity in identical.items()
        if name in tensors and tensors[name].shape == (shape.vocab_size,)
        if tensors[name].dtype in MAP_DTYPES[name] and is_identity(tensors[name])
    }
    return {name: tensor for name, tensor in tensors.items() if name not in redundant}


def canonical_name(name: str) -> str:
    """Return the canonical form of a tensor's name in any layout."""
    bare = name.removeprefix("model.")
    if bare.startswith("midlayer."):
        bare = "layers.0." + bare.removeprefix("midlayer.")
    head, _, tail = bare.partition(".")
    return f"{SGLANG_FC_NORMS[head]}.{tail}" if head in SGLANG_FC_NORMS else bare


def canonical_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors by canonical name, the input norm of deeper layers under both of its names."""
    named = {canonical_name(name): tensor for name, tensor in tensors.items()}
    if "layers.0.hidden_norm.weight" not in named:
        return named
    for layer in range(1, count_layers(named)):
        one, other = (f"layers.{layer}.{norm}.weight" for norm in FUSED_NORMS[:2])
        for present, absent in ((one, other), (other, one)):
            if present in named:
                named.setdefault(absent, named[present])
    return named


def count_layers(names: Mapping[str, object]) -> int:
    """Return the number of decoder layers among canonical names: the highest index plus one."""
    return max((int(match[1]) + 1 for name in names if (match := _LAYER.match(name))), default=0)


def faulty_names(names: Iterable[str]) -> Iterator[str]:
    """Yield names that cannot be written again, or are of a layer further up than any draft has."""
    for name in names:
        layer = _LAYER.match(canonical_name(name))
        is_too_deep = layer is not None and len(layer[1]) > _MAX_DIGITS
        if is_too_deep or any("\ud800" <= character <= "\udfff" for character in name):
            yield name
