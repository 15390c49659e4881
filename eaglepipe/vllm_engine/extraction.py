"""Which targets vLLM can take hidden states from, told before an engine starts."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from eaglepipe.errors import ConfigError, TargetError
from eaglepipe.vllm_engine.architectures import (
    MULTI_HEAD_LATENT,
    RECURRENT_WITHOUT_AUX_STATES,
    WITHOUT_AUX_STATES,
)

_INSTEAD = "set target.engine: transformers"


def check_extraction(model_config: PretrainedConfig, engine_args: Mapping[str, Any], *, path: str) -> None:
    """Check that an engine could hand out the hidden states of a target.

    Args:
        model_config: of the whole target.
        engine_args: those of the recipe.
        path: of the target, as the recipe has it.

    Raises:
        TargetError: a class of model, or an attention, whose states vLLM cannot hand out.
        ConfigError: arguments with which it cannot.
    """
    names = _architectures(model_config, engine_args)
    refusal = next((reason for reason in (_class_refusal(names), _latent_refusal(model_config)) if reason), None)
    if refusal is not None:
        raise TargetError(f"target {path!r}: {refusal}; {_INSTEAD}")
    if engine_args.get("model_impl") == "transformers":
        raise ConfigError(
            "target.engine_args: model_impl: transformers: vLLM extracts hidden states by model classes of its own "
            f"only; leave model_impl out, or {_INSTEAD} and drop engine_args"
        )
    stages = engine_args.get("pipeline_parallel_size") or 1
    if stages != 1:
        raise ConfigError(
            f"target.engine_args: pipeline_parallel_size: {stages}: vLLM extracts hidden states from no pipeline of "
            f"stages; use tensor_parallel_size, or {_INSTEAD} and drop engine_args"
        )


def _architectures(model_config: PretrainedConfig, engine_args: Mapping[str, Any]) -> list[str]:
    """Return the names by which vLLM chooses a class."""
    overrides = engine_args.get("hf_overrides")
    named = overrides.get("architectures") if isinstance(overrides, Mapping) else None
    names = named or getattr(model_config, "architectures", None) or []
    return [str(name) for name in names]


def _class_refusal(names: list[str]) -> str | None:
    for name in names:
        if name in RECURRENT_WITHOUT_AUX_STATES:
            return f"{name} has layers with a recurrent state, and vLLM hands out none of its hidden states"
        if name in WITHOUT_AUX_STATES:
            return f"vLLM runs {name}, but hands out none of its hidden states"
    return None


def _latent_refusal(model_config: PretrainedConfig) -> str | None:
    config = model_config.get_text_config(decoder=True)
    if config.model_type not in MULTI_HEAD_LATENT:
        return None
    rank, compressed = getattr(config, "kv_lora_rank", None), hasattr(config, "compress_ratios")
    if rank is None and not compressed:
        return None
    return f"{config.model_type} keeps latent keys and values (MLA), beside which vLLM has no place for hidden states"
