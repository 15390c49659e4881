"""The tokens that end an answer."""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.errors import TargetError
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.target.load import LoadedTarget


def stop_ids(target: LoadedTarget, chat: ChatTokenizer | None) -> frozenset[int]:
    """Return the ends of an answer by the template, the tokenizer and the model's own generation config.

    A template may close earlier turns by a token that stands inside a last one, as gpt-oss's `<|end|>` between two
    channels: only the end of a last turn counts.

    Raises:
        TargetError: the generation config names something else than ids.
    """
    return _stop_ids(target.folder, getattr(target.model, "generation_config", None), chat)


def stop_ids_of_folder(folder: Path, config: PretrainedConfig, chat: ChatTokenizer | None) -> frozenset[int]:
    """Return the same of a target in a local folder that is not loaded.

    Args:
        config: the target's.
    """
    with explained_library_errors(TargetError, f"{folder}: its generation config cannot be read"):
        own = (folder / "generation_config.json").exists()
        generation = GenerationConfig.from_pretrained(folder) if own else GenerationConfig.from_model_config(config)
    return _stop_ids(folder, generation, chat)


def _stop_ids(folder: Path, generation: Any, chat: ChatTokenizer | None) -> frozenset[int]:
    own: Any = getattr(generation, "eos_token_id", None)
    named = own if isinstance(own, list) else [own]
    if wrong := [end for end in named if end is not None and (type(end) is not int or end < 0)]:
        raise TargetError(f"{folder}: eos_token_id of its generation config is {wrong[0]!r:.80}, not a token id")
    ends = set(named)
    if chat is not None:
        ends |= {chat.tokenizer.eos_token_id, chat.end_of_turn}
    return frozenset(end for end in ends if end is not None)
