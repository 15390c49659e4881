"""The `draft` and `train` sections as far as all families share them; `family_settings` adds the families' own."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from eaglepipe.families import FAMILIES, Family
from eaglepipe.recipe.config import Device, DType
from eaglepipe.recipe.numbers import Depth, Fraction, NonNegative, PositiveInt, Seed, Size
from eaglepipe.recipe.section import Section
from eaglepipe.recipe.texts import LocationText, PathText


class DraftConfig(Section):
    """The draft's shape; absent values follow the target."""

    num_hidden_layers: Depth = 1
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    attention_bias: bool | None = Field(None, description="biases of q, k, v and o; SGLang's EAGLE-3 loads none")
    freeze_embeddings: bool = True
    init: PathText | None = Field(None, description="folder of a published draft to start from")

    @property
    def aux_boundaries(self) -> tuple[int, ...] | None:
        """Boundaries to read among the cache's, or None for all of them."""
        return None


class TrainCache(Section):
    """A cache to train from; a plain path stands for weight 1."""

    path: LocationText = Field(min_length=1)
    weight: Annotated[float, Field(gt=0.0, le=1000.0, allow_inf_nan=False)] = Field(
        1.0, description="expected passes over each of its samples in an epoch"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


TrackerName = Literal["tensorboard", "wandb", "trackio"]


class TrainConfig(Section):
    """Stage 2."""

    output_dir: PathText | None = Field(None, description="default: runs/<name>")
    caches: tuple[TrainCache, ...] | None = Field(
        None,
        min_length=1,
        description="cache folders, each a path or {path, weight}; default: the one the recipe names",
    )
    objective: str
    epochs: Annotated[int, Field(gt=0, le=10_000, strict=True)] = 1
    max_steps: PositiveInt | None = Field(None, description="limit of optimizer steps, if fewer than the epochs have")
    batch_tokens: PositiveInt = Field(16384, description="tokens of one optimizer step over all ranks")
    micro_batch_tokens: PositiveInt = Field(4096, description="tokens of one forward on one rank: the memory knob")
    pack_length: PositiveInt | None = Field(
        None, description="longest packed row; default: micro_batch_tokens, one row without padding"
    )
    sequence_parallel: Annotated[int, Field(gt=0, le=1024, strict=True)] = Field(
        1, description="ranks that share each sample, for samples too long for one; divides the number of ranks"
    )
    learning_rate: Annotated[float, Field(gt=0.0, le=1000.0, allow_inf_nan=False)] = 1e-4
    min_learning_rate_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    warmup_ratio: Fraction = 0.02
    weight_decay: NonNegative = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 0.5
    device: Device = "auto"
    dtype: DType = Field(
        "auto",
        description="compute dtype; auto: bfloat16 on CUDA and on processors with AMX (for drafts of width "
        "384 and more), else float32, and a run keeps "
        "the one it began with; masters stay float32",
    )
    gradient_checkpointing: bool = False
    shard: bool = Field(
        False, description="several ranks each keep a part of weights, gradients and optimizer state (FSDP2)"
    )
    seed: Seed = 0
    heldout_fraction: Fraction = 0.02
    eval_every_steps: PositiveInt = 500
    eval_max_samples: PositiveInt | None = 512
    early_stop_patience: PositiveInt | None = Field(5, description="evaluations without a better acceptance length")
    checkpoint_every_steps: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    log_every_steps: PositiveInt = 10
    trackers: tuple[TrackerName, ...] = Field(
        (), description="where numbers are drawn besides metrics.jsonl: tensorboard, wandb, trackio; a name or a list"
    )
    prefetch_batches: Depth = 4

    @field_validator("trackers", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, value: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        return tuple(dict.fromkeys(value))

    @model_validator(mode="before")
    @classmethod
    def _named_by_flag(cls, value: Any) -> Any:
        """Read `tensorboard: true`, as recipes wrote it when there was one tracker."""
        if not isinstance(value, Mapping) or not isinstance(flag := value.get("tensorboard"), bool):
            return value
        rest = {key: item for key, item in value.items() if key != "tensorboard"}
        return {**rest, "trackers": ["tensorboard"]} if flag and "trackers" not in rest else rest

    @model_validator(mode="after")
    def _family_splits_sequences(self) -> Self:
        if self.sequence_parallel > 1 and not self.family.splits_sequences:
            able = ", ".join(name for name, family in FAMILIES.items() if family.splits_sequences)
            raise ValueError(
                f"sequence_parallel is {self.sequence_parallel}, but train.objective {self.objective} computes each "
                f"sample on one rank; remove it, or train one of: {able}"
            )
        return self

    @property
    def family(self) -> Family:
        """The family of drafts that this section trains."""
        return FAMILIES[self.objective]

    @property
    def depths(self) -> int:
        """Number of depths that are trained or, with EAGLE-1/2, evaluated."""
        return int(getattr(self, self.family.depths_setting)) - self.family.anchor_slots

    @property
    def draft_options(self) -> dict[str, Any]:
        """The settings of this section that a draft's config holds too."""
        return {}

    @property
    def summary(self) -> str:
        """The objective in a few words, for cards and reports."""
        return self.objective

    @property
    def reads_whole_distribution(self) -> str | None:
        """Why the target's distribution is needed as it is, not right in the mean alone; None if it is not."""
        return None

    @property
    def evaluated(self) -> Self:
        """The settings that evaluations follow, so that runs compare whatever they were trained with."""
        return self
