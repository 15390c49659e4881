"""The one typed tree of settings: a YAML recipe plus `section.key=value` overrides.

`target`, `data`, `vocab` and `cache` decide a cache's bytes and so its identity; `precompute`, `draft`, `train` and
`regenerate` never do. Unknown keys are errors that name the nearest key, and all errors are reported at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, model_validator

from eaglepipe.errors import ConfigError
from eaglepipe.recipe.explain import explain
from eaglepipe.recipe.objectives import check_objective_settings
from eaglepipe.recipe.yaml_file import apply_override, read_yaml

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
StateCodec = Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4"]
Profile = Literal["exact", "compact", "tiny"]
Objective = Literal["eagle3", "eagle1", "eagle2", "peagle"]
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
TokenId = Annotated[int, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


class Section(BaseModel):
    """One section of a recipe: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class TargetConfig(Section):
    """The model that is drafted for."""

    path: str = Field(min_length=1, description="local folder, or a Hub id (fetched through huggingface_hub)")
    revision: str | None = None
    dtype: DType = "auto"
    trust_remote_code: bool = False


class SourceConfig(Section):
    """One source of conversations."""

    path: str = Field(min_length=1, description="local file or folder (jsonl, json, parquet), or a Hub dataset id")
    name: str | None = Field(None, description="label in reports; default: the file's stem or the dataset's name")
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    format: Literal["auto", "messages", "sharegpt", "prompt_completion", "tokenized"] = "auto"
    max_samples: PositiveInt | None = None


class DataConfig(Section):
    """Conversations and how they become token ids and a loss mask."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    max_length: Annotated[int, Field(ge=2, strict=True)] = 2048
    on_long: Literal["truncate", "drop"] = "truncate"
    mask: Literal["auto", "generation", "prefix"] = Field("auto", description="where the assistant mask comes from")
    supervise: Literal["all", "last"] = Field("all", description="which assistant turns carry a loss")
    chat_template: str | None = Field(None, description="path of a Jinja file; default: the tokenizer's own")
    chat_template_kwargs: dict[str, Any] = {}


class VocabConfig(Section):
    """The draft vocabulary."""

    draft_size: Annotated[int, Field(strict=True)] | None = Field(None, description="absent or >= V: the target's own")


PROFILES: dict[str, dict[str, Any]] = {
    "exact": {"supervision": "hidden", "aux_codec": "bf16", "hidden_codec": "bf16"},
    "compact": {"supervision": "hidden", "aux_codec": "int4", "hidden_codec": "int8"},
    "tiny": {"supervision": "sparse", "aux_codec": "int4", "tolerance": 0.01, "max_entries": 256},
}
DEFAULT_PROFILE: Profile = "compact"
"""What a recipe gets that names no profile; `profile: null` leaves the fields' own defaults, those of `exact`."""


class CacheConfig(Section):
    """What is stored for each token, and where; a profile presets the fields that are not given."""

    root: str | None = Field(None, description="default: $EAGLEPIPE_CACHE_ROOT, else ./caches")
    profile: Profile | None = Field(DEFAULT_PROFILE, description="a name for presets of the fields that are not given")
    supervision: Literal["dense", "sparse", "hidden"] = "hidden"
    aux_codec: StateCodec = "bf16"
    hidden_codec: StateCodec = Field("bf16", description="last hidden states, with supervision: hidden")
    probs_codec: Literal["fp16", "fp32"] = Field("fp16", description="probabilities, with supervision: dense")
    tolerance: Fraction = Field(0.01, description="mass that entries may leave to the tail, with supervision: sparse")
    max_entries: Annotated[int, Field(ge=2, strict=True)] = Field(
        256, description="of a token, with supervision: sparse"
    )
    aux_layer_ids: tuple[int, ...] | None = Field(None, description="boundaries; default [2, n//2, n-3]")
    full_head: bool = Field(False, description="keep all rows of the target's lm_head, as EAGLE-1/2 needs")
    last_hidden: Literal["supervised", "all"] = Field(
        "supervised",
        description="tokens whose last hidden state is kept, with supervision: hidden; EAGLE-1/2: all",
    )
    shard_bytes: ByteSize = Field(ByteSize(512 * 2**20), gt=0, description="upper size of a shard")

    @model_validator(mode="before")
    @classmethod
    def _from_profile(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("profile", DEFAULT_PROFILE)
        return {**PROFILES.get(name, {}), **given} if isinstance(name, str) else given

    @model_validator(mode="after")
    def _all_states_are_hidden_supervision(self) -> "CacheConfig":
        if self.last_hidden == "all" and self.supervision != "hidden":
            raise ValueError(f"last_hidden: all needs supervision: hidden, not {self.supervision}")
        return self


class PrecomputeConfig(Section):
    """How stage 1 runs; none of it changes what a cache means."""

    device: Device = "auto"
    batch_tokens: PositiveInt = Field(16384, description="tokens in one target forward, padding included")
    head_chunk_rows: PositiveInt = Field(1024, description="supervised rows that go through the lm_head at once")
    queue_batches: PositiveInt = Field(4, description="captured batches that may wait for the disk")


class DraftConfig(Section):
    """The draft's shape; absent values follow the target."""

    aux_layer_ids: tuple[int, ...] | None = Field(
        None, description="boundaries that the draft reads, among the cache's; default: all of them"
    )
    num_hidden_layers: PositiveInt = 1
    hidden_size: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    attention_bias: bool | None = Field(None, description="biases of q, k, v and o; SGLang's EAGLE-3 loads none")
    fc_norm: bool = Field(False, description="EAGLE-3.1: one RMSNorm for each aux chunk before fc")
    norm_output: bool = Field(False, description="EAGLE-3.1: carry the normalised state between steps")
    freeze_embeddings: bool = True
    lm_head_init: Literal["target", "random"] = Field(
        "target", description="the target's rows; after the demo's 200 steps, 3.94 tokens accepted, at random 3.51"
    )
    init: str | None = Field(None, description="folder of a published draft to start from")
    mask_token_id: TokenId | None = Field(
        None, description="P-EAGLE: target id that stands for tokens not known yet; default: pad"
    )


class TrainCache(Section):
    """A cache to train from; a plain path stands for weight 1."""

    path: str = Field(min_length=1)
    weight: Annotated[float, Field(gt=0.0, le=1000.0, allow_inf_nan=False)] = Field(
        1.0, description="times that each of its samples is expected in an epoch"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given


class TrainConfig(Section):
    """Stage 2."""

    output_dir: str | None = Field(None, description="default: runs/<name>")
    caches: tuple[TrainCache, ...] | None = Field(
        None,
        min_length=1,
        description="cache folders, each a path or {path, weight}; default: the one the recipe names",
    )
    objective: Objective = "eagle3"
    ttt_steps: PositiveInt = Field(7, description="depths trained; EAGLE-1/2: depths of the chain in evaluations")
    step_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.8, description="EAGLE-3: weight of a step per depth")
    loss: Literal["ce", "alpha", "lambda"] = Field(
        "ce",
        description="EAGLE-3: soft cross-entropy, or an LK loss, which trains acceptance itself (arXiv 2602.23881)",
    )
    lk_scale: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        1.0, description="loss lambda: weight of cross-entropy while nothing is accepted"
    )
    lk_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        3.0, description="loss lambda: how fast that weight falls with the mean acceptance"
    )
    feature_noise: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.1, description="EAGLE-1/2: input features get U(-x, x) while training"
    )
    peagle_depths: PositiveInt = Field(8, description="P-EAGLE: tokens drafted in one forward")
    cod_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.7, description="P-EAGLE: share kept at each depth")
    cod_min_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.2, description="P-EAGLE: share kept at least")
    sequence_partitions: PositiveInt = Field(1, description="P-EAGLE: forwards that share a sequence, for memory")
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = Field(None, description="optimizer steps; stops earlier than the epochs do")
    batch_tokens: PositiveInt = Field(16384, description="tokens of one optimizer step, over all ranks")
    micro_batch_tokens: PositiveInt = Field(4096, description="tokens of one forward on one rank: the memory knob")
    pack_length: PositiveInt | None = Field(
        None, description="longest packed row; default: micro_batch_tokens, one row without padding"
    )
    learning_rate: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1e-4
    min_learning_rate_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    warmup_ratio: Fraction = 0.02
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 0.5
    device: Device = "auto"
    dtype: DType = Field(
        "auto", description="compute dtype; auto: bfloat16 on CUDA, float32 on CPU; masters stay float32"
    )
    gradient_checkpointing: bool = False
    seed: Seed = 0
    heldout_fraction: Fraction = 0.02
    eval_every_steps: PositiveInt = 500
    eval_max_samples: PositiveInt | None = 512
    eval_depth: PositiveInt | None = Field(None, description="EAGLE-3: TTT steps of evaluations; default: ttt_steps")
    early_stop_patience: PositiveInt | None = Field(5, description="evaluations without a better acceptance length")
    checkpoint_every_steps: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    log_every_steps: PositiveInt = 10
    tensorboard: bool = False
    prefetch_batches: PositiveInt = 4

    @property
    def evaluated(self) -> "TrainConfig":
        """The settings that evaluations follow: soft cross-entropy whatever was trained, to compare runs."""
        return self.model_copy(update={"loss": "ce", "ttt_steps": self.eval_depth or self.ttt_steps})


class RegenerateConfig(Section):
    """`eaglepipe data regenerate`: let the target answer the prompts of its sources itself."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    output: str = Field(description="JSONL file of conversations")
    max_new_tokens: PositiveInt = 512
    temperature: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    batch_size: PositiveInt = 64
    seed: Seed = 0


class Recipe(Section):
    """A whole pipeline."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    target: TargetConfig
    data: DataConfig
    vocab: VocabConfig = VocabConfig()
    cache: CacheConfig = CacheConfig()
    precompute: PrecomputeConfig = PrecomputeConfig()
    draft: DraftConfig = DraftConfig()
    train: TrainConfig = TrainConfig()
    regenerate: RegenerateConfig | None = None

    @model_validator(mode="after")
    def _rows_fit_their_budget(self) -> "Recipe":
        if self.train.micro_batch_tokens > self.train.batch_tokens:
            raise ValueError("train.micro_batch_tokens is larger than train.batch_tokens")
        return self

    @model_validator(mode="after")
    def _settings_serve_the_objective(self) -> "Recipe":
        sections = {"train": self.train, "draft": self.draft, "cache": self.cache, "vocab": self.vocab}
        check_objective_settings(self.train.objective, sections)
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.key=value` overrides, whose values are YAML.

    Raises:
        ConfigError: with one line for each mistake in the file and the overrides together.
    """
    raw = read_yaml(path)
    for override in overrides:
        apply_override(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [f"  {line}" for line in explain(error, Recipe)]
        raise ConfigError(f"{path}: {len(lines)} mistake(s)\n" + "\n".join(lines)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, defaults included."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
