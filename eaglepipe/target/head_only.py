"""A target without its layers: embeddings, final norm and lm_head, read from the weight files of a target of any size.

The states come from elsewhere, an inference engine say. The model class of the target is built with layers that hold no
weights, so that names in the checkpoint, tied weights and norm conventions are the library's own.

Shapes: Ht target hidden, V vocabulary, D draft vocabulary, N any rows.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from eaglepipe.devices import resolve_device
from eaglepipe.errors import TargetError, first_line
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.progress import without_library_output
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.checkpoint_keys import check_all_loaded
from eaglepipe.target.hollow.model import find_packing, give_states, hollow_class
from eaglepipe.target.hollow.plain_weights import check_not_quantised
from eaglepipe.target.layers import find_decoder, find_final_norm
from eaglepipe.target.load import LoadedTarget, read_model_config, resolve_folder, text_config_of
from eaglepipe.target.loaded_head import (
    HeadedTarget,
    LoadedHead,
    config_fields,
    explained_forward,
    find_head,
    find_head_spec,
    probe_ids,
    probe_logits,
)


class HeadOnlyTarget(HeadedTarget):
    """All of a `TargetModel` but `capture_tokens`; equal, bit for bit, to that of the whole target."""

    def __init__(self, target: LoadedTarget, device: torch.device, quantization: dict[str, Any] | None) -> None:
        """Raises TargetError if the architecture's last hidden states or logits cannot be reproduced.

        Args:
            target: loaded on the CPU, its layers without weights.
            device: where the final norm and the lm_head go.
            quantization: what the target's config says about weights that were not read.
        """
        self.target = target
        self._device = device
        self._quantization = quantization
        decoder, head = find_decoder(target.model), find_head(target)
        try:
            last_hidden = find_packing(target.model, decoder, probe_ids(target), target.hidden_size)
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise TargetError(
                f"{type(target.model).__name__}: its decoder does not run apart from its layers ({first_line(error)}), "
                "so its final norm and head cannot be used alone; set target.engine: transformers"
            ) from error
        expected = probe_logits(target)
        self._norm = _checked_norm(target, decoder)
        spec = find_head_spec(target, head, last_hidden[0], expected)
        self._head = LoadedHead(target=target, decoder=decoder, module=head, spec=spec)
        self._norm.to(device)
        head.to(device)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the target's states and head."""
        return self.target.dtype

    @property
    def device(self) -> torch.device:
        """Device of the final norm and the head."""
        return self._device

    @torch.no_grad()
    def final_norm(self, states: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states [..., Ht] of states at the last boundary, which is before the final norm."""
        last_hidden: torch.Tensor = self._norm(states)
        return last_hidden

    def config_json(self) -> dict[str, Any]:
        """Return the fields of the target's config.json, its architectures named."""
        fields = config_fields(self.target)
        return fields if self._quantization is None else {**fields, "quantization_config": self._quantization}


def load_head_only(config: TargetConfig, device: str = "cpu") -> HeadOnlyTarget:
    """Load embeddings, final norm and lm_head of a target; of its other weights not a byte is read.

    Raises:
        TargetError: as `load_target`; embeddings or a head that are quantised; as `HeadOnlyTarget`.
        ResourceError: they do not fit.
    """
    torch_device = resolve_device(device)
    folder = resolve_folder(config)
    model_config = read_model_config(folder, config)
    text_config = text_config_of(model_config, config.path)
    model = _load_hollow(folder, model_config, config)
    target = LoadedTarget(model=model, text_config=text_config, folder=folder, device=torch.device("cpu"))
    return HeadOnlyTarget(target, torch_device, model_config.to_dict().get("quantization_config"))


def _load_hollow(folder: Path, model_config: PretrainedConfig, config: TargetConfig) -> PreTrainedModel:
    kind, plain = hollow_class(_without_quantization(model_config), trust_remote_code=config.trust_remote_code)
    with (
        without_library_output(),
        explained_library_errors(TargetError, f"target {config.path!r} cannot be loaded"),
    ):
        loaded, info = kind.from_pretrained(
            folder,
            config=plain,
            dtype=config.dtype,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, in one line
            output_loading_info=True,
        )
    model = cast(PreTrainedModel, loaded)
    check_not_quantised(model, info, folder, config.path)
    check_all_loaded(info, config.path)
    return model.requires_grad_(False).eval()


def _without_quantization(model_config: PretrainedConfig) -> PretrainedConfig:
    """Return a config by which plain weights are loaded: only plain ones are read."""
    plain = deepcopy(model_config)
    for part in (plain, *(getattr(plain, name, None) for name in plain.sub_configs)):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return plain


@torch.no_grad()
def _checked_norm(target: LoadedTarget, decoder: nn.Module) -> nn.Module:
    """Return the module that alone lies between the last layer and the lm_head, as a run of the decoder shows.

    Raises:
        TargetError: more than a norm does.
    """
    ids = probe_ids(target)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(*ids.shape, target.hidden_size, generator=generator).to(target.dtype)
    with explained_forward(target), give_states(target.model, decoder, states):
        expected = decoder(input_ids=ids, use_cache=False).last_hidden_state
    for norm in (find_final_norm(decoder), nn.Identity()):
        if norm is not None and torch.allclose(norm(states), expected, rtol=0, atol=0, equal_nan=True):
            return norm
    raise TargetError(
        f"{type(target.model).__name__}: more than a norm lies between its last layer and its lm_head, so its last "
        "hidden states cannot be computed apart from it; set target.engine: transformers"
    )
