"""From a recipe's `target` section to a frozen model on its device; the only place that loads a target's weights.

A local folder never touches the network; a Hub id is fetched whole first and is then a local folder like any other.
"""

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from eaglepipe.devices import resolve_device
from eaglepipe.errors import CorruptError, ResourceError, TargetError, first_line
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.hub.fetch import Repository, from_hub
from eaglepipe.progress import without_library_output
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.adapter import check_no_adapter
from eaglepipe.target.checkpoint_keys import check_all_loaded
from eaglepipe.target.config_values import check_types, check_values
from eaglepipe.target.fingerprint import open_weights, target_weight_files
from eaglepipe.target.gguf.files import find_gguf
from eaglepipe.target.gguf.folder import dequantised_folder

_CONFIG_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_OTHER_FOLDERS = ["[!a]*/*"]  # all but additional_chat_templates/
_WEIGHT_FILES = ["model*.safetensors"]
_counts: dict[tuple[type[PretrainedConfig], str], int] = {}  # of parameters, by the config


@dataclass(frozen=True, kw_only=True)
class LoadedTarget:
    """A causal LM in eval mode, without gradients, on its device."""

    model: PreTrainedModel
    text_config: PretrainedConfig  # of the language model inside, where the model has several parts
    folder: Path
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def vocab_size(self) -> int:
        """V, as the config has it (padding rows of the lm_head included)."""
        return int(self.text_config.vocab_size)

    @property
    def hidden_size(self) -> int:
        """Ht."""
        return int(self.text_config.hidden_size)

    @property
    def num_layers(self) -> int:
        return int(self.text_config.num_hidden_layers)

    @property
    def architectures(self) -> list[str]:
        """Names by which a draft is chosen; a language model taken out of a larger one has none in its config."""
        return list(self.model.config.architectures or [type(self.model).__name__])


def resolve_folder(config: TargetConfig, *, weights: bool = True) -> Path:
    """Return the local folder of a target; a Hub id is downloaded, with its weights only if they are asked for.

    Raises:
        TargetError: no such folder, not a model folder, one with an adapter, or refused by the Hub.
        UnreachableError: the Hub does not answer, and there is no earlier download.
    """
    local = Path(config.path).expanduser()
    if (file := find_gguf(local)) is not None:
        return dequantised_folder(file)
    if local.is_dir():
        check_no_adapter(local, config.path)
        if not (local / "config.json").is_file():
            raise TargetError(f"{local}: not a model folder: it has neither config.json nor a GGUF file")
        return local
    if local.exists():
        raise TargetError(f"{local}: a target is a model folder or a GGUF file, and this file is neither")
    patterns = _CONFIG_FILES + (_WEIGHT_FILES if weights else []) + (["*.py"] if config.trust_remote_code else [])
    repository = Repository(
        name=f"target {config.path!r} (no such folder here)", revision=config.revision, error=TargetError
    )
    folder = from_hub(
        repository, partial(_download, config, patterns), local=partial(_earlier_download, config, patterns, weights)
    )
    check_no_adapter(folder, config.path)
    if not (folder / "config.json").is_file():
        raise TargetError(f"target {config.path!r}: the Hub repository is not a model: it has no config.json")
    return folder


def _download(config: TargetConfig, patterns: list[str], *, local_files_only: bool = False) -> Path:
    try:
        folder = snapshot_download(
            config.path,
            revision=config.revision,
            allow_patterns=patterns,
            ignore_patterns=_OTHER_FOLDERS,
            local_files_only=local_files_only,
        )
    except HFValidationError:
        local = Path(config.path).expanduser()
        raise TargetError(
            f"no model folder at {local}; target.path is a folder or a Hub id such as org/model"
        ) from None
    return Path(folder)


def _earlier_download(config: TargetConfig, patterns: list[str], weights: bool) -> Path | None:
    """Return the folder of a download that was finished before, as far as it can be told."""
    try:
        folder = _download(config, patterns, local_files_only=True)
        if weights:
            target_weight_files(folder)
    except (LocalEntryNotFoundError, TargetError, OSError, ValueError):
        return None
    return folder if (folder / "config.json").is_file() else None


def find_local_weights(config: TargetConfig) -> Path | None:
    """Return the folder of a target whose weights are on this machine; None if they must be downloaded first.

    Raises:
        TargetError: as `resolve_folder`, for a local folder.
    """
    if Path(config.path).expanduser().exists():
        return resolve_folder(config)
    try:
        folder = Path(snapshot_download(config.path, revision=config.revision, local_files_only=True))
        target_weight_files(folder)
    except (LocalEntryNotFoundError, TargetError, OSError, ValueError):
        return None
    return folder


def read_model_config(folder: Path, config: TargetConfig) -> PretrainedConfig:
    """Read the config in a target's folder, without touching its weights.

    Raises:
        TargetError: missing, unreadable, or of an architecture that transformers does not know.
    """
    file = folder / "config.json"
    try:
        check_values(read_json_object(file), file)
    except CorruptError as error:
        raise TargetError(str(error)) from None
    with explained_library_errors(TargetError, f"{file}: not a config that can be used"):
        model_config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    if (named := getattr(model_config, "transformers_weights", None)) is not None:
        raise TargetError(
            f"{file}: transformers_weights names {named!r} as the weights; give them their usual name "
            "(model.safetensors, or shards with model.safetensors.index.json) and remove the field"
        )
    check_types(model_config, file)
    return model_config


def text_config_of(model_config: PretrainedConfig, path: str) -> PretrainedConfig:
    """Return the config of the language model inside the target at `path`.

    Raises:
        TargetError: it is no causal language model.
    """
    with explained_library_errors(TargetError, f"target {path!r}: its config holds no causal language model"):
        text_config = model_config.get_text_config(decoder=True)
    for field in ("vocab_size", "num_hidden_layers", "hidden_size"):
        value = getattr(text_config, field, None)
        if not isinstance(value, int):
            raise TargetError(f"target {path!r}: its config has no {field}, so it is no causal language model")
        if value < 1:
            raise TargetError(f"target {path!r}: its config has {field} {value}, so it is no causal language model")
    return text_config


def load_target(config: TargetConfig, device: str = "auto") -> LoadedTarget:
    """Load a target for inference on `device` (auto, cpu, cuda, cuda:N), every weight from the checkpoint.

    Raises:
        TargetError: folder, config or weights that are missing, unreadable or at odds with each other; no CUDA.
        ResourceError: the model does not fit the device.
    """
    torch_device = resolve_device(device)
    folder = resolve_folder(config)
    for file in target_weight_files(folder):
        open_weights(file)
    model_config = read_model_config(folder, config)
    with without_library_output():
        model = _load_weights(folder, model_config, config, torch_device)
    model.requires_grad_(False).eval()
    text_config = text_config_of(model_config, config.path)
    return LoadedTarget(model=model, text_config=text_config, folder=folder, device=torch_device)


def check_tokenizer_fits(vocab_size_tokenizer: int, head_rows: int) -> None:
    """Check that every id of the tokenizer, added tokens left out, has a row in the lm_head.

    Added tokens without embeddings only matter to the rows that hold them.

    Raises:
        TargetError: a tokenizer that is larger, which is another model's.
    """
    if vocab_size_tokenizer > head_rows:
        raise TargetError(
            f"the tokenizer has {vocab_size_tokenizer} tokens, the target's lm_head {head_rows} rows: "
            f"ids from {head_rows} on have no logit; use the target's own tokenizer"
        )


def _load_weights(
    folder: Path, model_config: PretrainedConfig, config: TargetConfig, device: torch.device
) -> PreTrainedModel:
    direct = device.type != "cpu" and importlib.util.find_spec("accelerate") is not None
    try:
        with explained_library_errors(TargetError, f"target {config.path!r} cannot be loaded"):
            model, info = auto_class(model_config).from_pretrained(
                folder,
                config=model_config,
                dtype=config.dtype,
                device_map={"": device} if direct else None,
                local_files_only=True,
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are refused below, in one line
                output_loading_info=True,
            )
            model = model.to(device)
    except MemoryError as error:
        raise ResourceError(f"target {config.path!r} does not fit {device}: {first_line(error)}") from error
    except TargetError as error:
        if isinstance(error.__cause__, torch.OutOfMemoryError):
            raise ResourceError(
                f"target {config.path!r} does not fit {device}: {first_line(error.__cause__)}"
            ) from error
        raise
    check_all_loaded(info, config.path)
    return model


def auto_class(model_config: PretrainedConfig) -> type[AutoModelForCausalLM | AutoModelForImageTextToText]:
    """Return the auto class of a target; some causal LMs come only inside a model that reads images too."""
    kind = type(model_config)
    inside = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if inside else AutoModelForCausalLM


def num_parameters(model_config: PretrainedConfig, trust_remote_code: bool = False) -> int:
    """Count the parameters of a model of this config, none of which is read or allocated; once a process.

    Raises:
        TargetError: no model can be built by this config.
    """
    key = type(model_config), repr(model_config.to_dict())
    if key not in _counts:
        with (
            explained_library_errors(TargetError, "the target's config.json describes no model that can be built"),
            torch.device("meta"),
        ):
            model = auto_class(model_config).from_config(model_config, trust_remote_code=trust_remote_code)
            _counts[key] = sum(parameter.numel() for parameter in model.parameters())
    return _counts[key]
