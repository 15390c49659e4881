"""The sections of a recipe that describe a cache, and how stage 1 makes it.

`target`, `data`, `vocab` and `cache` decide a cache's bytes and so its identity; no other section of a recipe does.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ByteSize, Field, model_validator

from eaglepipe.recipe.engine_args import check_engine_args, content_args
from eaglepipe.recipe.numbers import AtLeastTwo, Depth, Fraction, NonNegative, PositiveInt, Seed, Share
from eaglepipe.recipe.scalars import json_object
from eaglepipe.recipe.section import Section
from eaglepipe.recipe.texts import LocationText, PathText

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
StateCodec = Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4", "rot2", "rot3", "rot4", "rot5", "rot6"]
Profile = Literal["exact", "compact", "lean", "tiny"]
StateFormat = Literal["speculators", "specforge", "nemo", "modelopt"]
"""Tools whose stored hidden states can take the place of the target's forward."""


class TargetConfig(Section):
    """The target model."""

    path: PathText = Field(
        min_length=1, description="local folder or GGUF file, or a Hub id (fetched through huggingface_hub)"
    )
    revision: str | None = None
    dtype: DType = Field("auto", description="auto: the checkpoint's own, on every machine, as a cache depends on it")
    trust_remote_code: bool = False
    engine: Literal["transformers", "vllm"] = Field("transformers", description="library that runs the target")
    engine_args: Annotated[dict[str, Any], BeforeValidator(json_object)] = Field(
        {},
        description="arguments of vLLM's engine, as it names them: tensor_parallel_size, quantization, max_model_len, "
        "gpu_memory_utilization and others",
    )

    @model_validator(mode="after")
    def _engine_takes_its_args(self) -> "TargetConfig":
        if self.engine_args and self.engine != "vllm":
            raise ValueError(f"engine_args needs engine: vllm, not {self.engine}")
        check_engine_args(self.engine_args)
        return self

    @property
    def engine_fields(self) -> dict[str, Any]:
        """Engine and arguments by which states are told apart; none of transformers, whose states came first."""
        if self.engine == "transformers":
            return {}
        return {"engine": self.engine, "engine_args": content_args(self.engine_args)}


class SourceConfig(Section):
    """One source of conversations."""

    path: PathText = Field(
        min_length=1, description="local file, folder or pattern (`data/**/*.jsonl.gz`), or a Hub dataset id"
    )
    name: str | None = Field(None, description="label in reports; default: the file's stem or the dataset's name")
    config: str | None = Field(
        None, description="of a dataset on the Hub or in a folder; a sub-folder, or of README.md"
    )
    split: str = Field("train", description="of a dataset on the Hub or in a folder, by the names of its files")
    revision: str | None = Field(None, description="of a dataset on the Hub")
    format: Literal["auto", "messages", "sharegpt", "prompt_completion", "tokenized"] | StateFormat = Field(
        "auto", description="of rows; or the tool that computed the states in this folder, which is then the one source"
    )
    max_samples: PositiveInt | None = Field(None, description="limit of rows, of which the first are taken")
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="share of the rows that is taken, evenly spread; repeat samples by the weights of train.caches"
    )

    @property
    def has_states(self) -> bool:
        """Whether its rows are samples of another tool, with the target's states."""
        return self.format in get_args(StateFormat)

    @property
    def is_tokenized(self) -> bool:
        """Whether its rows are token ids already."""
        return self.has_states or self.format == "tokenized"


KEEP_UNFINISHED = Field(
    False,
    description="keep answers that have not ended after max_new_tokens, without the turns after them; they are "
    "left out otherwise, and a draft learns from short answers only",
)


class GenerateConfig(Section):
    """How the target answers the prompts of `data.sources` itself, while its states are captured."""

    max_new_tokens: PositiveInt = Field(512, description="of one answer; what becomes of longer ones: keep_unfinished")
    temperature: NonNegative = Field(0.0, description="0: greedy")
    top_p: Share = 1.0
    n: Annotated[int, Field(gt=0, le=1000, strict=True)] = Field(1, description="answers to each prompt")
    seed: Seed = 0
    keep_unfinished: bool = KEEP_UNFINISHED

    @model_validator(mode="after")
    def _answers_differ(self) -> "GenerateConfig":
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n is {self.n}, and at temperature 0 all answers to a prompt are the same")
        return self

    def identity_fields(self) -> dict[str, Any]:
        """Return the settings that decide the answers, for the identity of a cache."""
        return without_default_of_keep_unfinished(self.model_dump(mode="json"))


def without_default_of_keep_unfinished(fields: dict[str, Any]) -> dict[str, Any]:
    """Return settings as they were hashed before `keep_unfinished` was one of them, if it is off."""
    return {name: value for name, value in fields.items() if name != "keep_unfinished" or value}


class DataConfig(Section):
    """Conversations, and how they are turned into token ids and a loss mask."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    max_length: AtLeastTwo = 2048
    on_long: Literal["truncate", "drop"] = "truncate"
    max_drop_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.05,
        description="share of rows that may be lost to faults: of rows that cannot be read or rendered, or that hold "
        "nothing to learn, and of samples that overflow; what other settings leave out (too long, empty mask, "
        "duplicate) does not count",
    )
    mask: Literal["auto", "generation", "prefix", "all"] = Field(
        "auto",
        description="source of the assistant mask; all: states of another tool without a mask, whose every "
        "token is supervised",
    )
    supervise: Literal["all", "last"] = Field("all", description="which assistant turns carry a loss")
    chat_template: PathText | None = Field(
        None, description="path of a Jinja file, or the name of one of the tokenizer's templates; default: its own"
    )
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(json_object)] = Field({})
    generate: GenerateConfig | None = Field(
        None,
        description="let the target answer every user turn of the sources in the same pass; assistant turns in them "
        "are replaced",
    )

    @model_validator(mode="after")
    def _prompts_are_texts(self) -> "DataConfig":
        if self.generate is None:
            return self
        for source in self.sources:
            if source.is_tokenized:
                raise ValueError(
                    f"generate needs prompts as text, and source {source.path} is `format: {source.format}`: leave "
                    "generate out to capture the states of its token ids"
                )
        return self

    @model_validator(mode="after")
    def _states_come_alone(self) -> "DataConfig":
        with_states = [source for source in self.sources if source.has_states]
        if with_states and len(self.sources) > 1:
            raise ValueError(
                f"source {with_states[0].path} holds states (`format: {with_states[0].format}`), and such a source is "
                "the only one: make a cache of each, and join them with `eaglepipe cache merge` or train.caches"
            )
        if with_states and (with_states[0].max_samples is not None or with_states[0].weight != 1.0):
            raise ValueError(f"max_samples and weight do not apply to `format: {with_states[0].format}`")
        if self.mask == "all" and not with_states:
            raise ValueError("mask: all is for states of another tool, imported without a mask")
        return self

    @property
    def imported(self) -> SourceConfig | None:
        """The source of tokens and states together, if the target is not to be run."""
        return self.sources[0] if self.sources[0].has_states else None


class VocabConfig(Section):
    """The draft vocabulary."""

    draft_size: Annotated[int, Field(strict=True)] | None = Field(None, description="absent or >= V: the target's own")


PROFILES: dict[str, dict[str, Any]] = {
    "exact": {"supervision": "hidden", "aux_codec": "bf16", "hidden_codec": "bf16"},
    "compact": {"supervision": "hidden", "aux_codec": "int4", "hidden_codec": "int8"},
    "lean": {"supervision": "hidden", "aux_codec": "rot4", "hidden_codec": "rot5"},
    "tiny": {"supervision": "sparse", "aux_codec": "rot3", "tolerance": 0.01, "max_entries": 256},
}
DEFAULT_PROFILE: Profile = "lean"
"""Profile of a recipe that names none; `profile: null` keeps the fields' own defaults, those of `exact`."""


class CacheConfig(Section):
    """Columns and codecs of a cache, and its folder; a profile presets the fields that are absent."""

    root: LocationText | None = Field(
        None, description="folder or URL (s3://, gs://, hf://); default: $EAGLEPIPE_CACHE_ROOT, else ./caches"
    )
    local_folder: PathText | None = Field(
        None, description="local copies of caches that are URLs; default: $EAGLEPIPE_LOCAL_CACHE, else in ~/.cache"
    )
    local_bytes: ByteSize | None = Field(
        None, gt=0, le=2**60, description="their bound; default: $EAGLEPIPE_LOCAL_CACHE_BYTES, else 64GiB"
    )
    profile: Profile | None = Field(DEFAULT_PROFILE, description="presets of the fields that are absent")
    supervision: Literal["dense", "sparse", "sampled", "hidden"] = "hidden"
    aux_codec: StateCodec = "bf16"
    hidden_codec: StateCodec = Field("bf16", description="last hidden states, with supervision: hidden")
    probs_codec: Literal["fp16", "fp32"] = Field("fp16", description="probabilities, with supervision: dense")
    tolerance: Fraction = Field(0.01, description="mass that entries may leave to the tail, with supervision: sparse")
    max_entries: AtLeastTwo = Field(256, description="of a token, with supervision: sparse")
    draws: Annotated[int, Field(ge=2, le=4096, strict=True)] = Field(
        8, description="entries of a token at most, with supervision: sampled"
    )
    draw_seed: Seed = Field(0, description="of the entries that are drawn, with supervision: sampled")
    aux_layer_ids: tuple[int, ...] | None = Field(
        None, description="boundaries; default [2, n//2, n-3], in a shallow target [1, n//2, n-1]"
    )
    full_head: bool = Field(False, description="keep all rows of the target's lm_head, as EAGLE-1/2 needs")
    last_hidden: Literal["supervised", "all"] = Field(
        "supervised", description="tokens whose last hidden state is kept, with supervision: hidden; EAGLE-1/2: all"
    )
    shard_bytes: ByteSize = Field(ByteSize(512 * 2**20), gt=0, le=2**50, description="upper size of a shard")

    @model_validator(mode="before")
    @classmethod
    def _from_profile(cls, section: Any) -> Any:
        if not isinstance(section, dict):
            return section
        name = section.get("profile", DEFAULT_PROFILE)
        return {**PROFILES.get(name, {}), **section} if isinstance(name, str) else section

    @model_validator(mode="after")
    def _all_states_are_hidden_supervision(self) -> "CacheConfig":
        if self.last_hidden == "all" and self.supervision != "hidden":
            raise ValueError(f"last_hidden: all needs supervision: hidden, not {self.supervision}")
        return self


class PrecomputeConfig(Section):
    """How stage 1 runs; none of it changes a cache."""

    device: Device = "auto"
    batch_tokens: PositiveInt = Field(
        16384, description="tokens of one target forward at most, with padding; more than the default change nothing"
    )
    chunk_tokens: PositiveInt = Field(
        16384, description="a longer sample is read in pieces of so many tokens, each in a forward of its own"
    )
    head_chunk_rows: PositiveInt = Field(1024, description="supervised rows in one lm_head product")
    queue_batches: Depth = Field(4, description="captured batches that may wait for the disk")
