"""The sections of the commands in which the target writes data: answers to prompts, and prompts themselves."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from eaglepipe.recipe.config import KEEP_UNFINISHED, SourceConfig, without_default_of_keep_unfinished
from eaglepipe.recipe.endpoints import Endpoints, RequestFields, VariableName
from eaglepipe.recipe.numbers import NonNegative, PositiveInt, Seed, Share
from eaglepipe.recipe.scalars import json_object
from eaglepipe.recipe.section import Section
from eaglepipe.recipe.texts import FileText

ENDPOINT_FIELDS = (
    "endpoint",
    "api_key_env",
    "model",
    "concurrency",
    "timeout_s",
    "retries",
    "backoff_s",
    "max_failed_fraction",
    "request",
)


def _of_rows(sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
    for source in sources:
        if source.has_states:
            raise ValueError(f"source {source.path} holds states of {source.format}, no prompts")
    return sources


class RegenerateConfig(Section):
    """Settings of `eaglepipe data regenerate`, in which the target answers the prompts of its sources itself."""

    sources: Annotated[tuple[SourceConfig, ...], AfterValidator(_of_rows)] = Field(min_length=1)
    output: FileText = Field(description="JSONL file of token ids as read and written, and their messages")
    max_new_tokens: PositiveInt = 512
    temperature: NonNegative = 0.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    batch_size: PositiveInt = 64
    seed: Seed = 0
    keep_unfinished: bool = KEEP_UNFINISHED
    endpoint: Endpoints | None = Field(
        None, description="servers of the target that answer by OpenAI's protocol, instead of the target loaded here"
    )
    api_key_env: VariableName | None = Field(None, description="environment variable that holds the endpoints' key")
    model: str | None = Field(None, min_length=1, description="name of the target there; default: target.path")
    concurrency: PositiveInt = Field(64, description="requests to all endpoints at a time")
    timeout_s: Annotated[float, Field(gt=0.0, le=1e6)] = Field(1800.0, description="for one answer")
    retries: Annotated[int, Field(ge=0, le=100, strict=True)] = Field(5, description="of a request that failed")
    backoff_s: NonNegative = Field(1.0, description="wait before the first retry; doubled each time, up to a minute")
    max_failed_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="share of rows that may be left out because their requests failed to the end"
    )
    request: Annotated[RequestFields, BeforeValidator(json_object)] = Field(
        {}, description="further fields of each request, such as top_k"
    )

    @model_validator(mode="after")
    def _has_an_endpoint(self) -> "RegenerateConfig":
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        unused = sorted(name for name in ENDPOINT_FIELDS if getattr(self, name) != defaults[name])
        if self.endpoint is None and unused:
            raise ValueError(f"{', '.join(unused)} need regenerate.endpoint")
        return self

    def sampling_fields(self) -> dict[str, Any]:
        """Return the settings that decide the answers, for the identity of the output."""
        fields = self.model_dump(mode="json", exclude={"sources", "output", *ENDPOINT_FIELDS})
        fields = without_default_of_keep_unfinished(fields)
        if self.endpoint is None:
            return fields
        del fields["batch_size"]
        return fields | ({"request": self.request} if self.request else {})


class SynthesizeConfig(Section):
    """Settings of `eaglepipe data synthesize`, in which the target writes users' turns itself."""

    output: FileText = Field(description="JSONL file of prompts as messages, for sources of `regenerate` or `data`")
    count: PositiveInt = Field(1000, description="prompts that are wanted")
    max_draws: PositiveInt | None = Field(None, description="draws at most; default: 10 for each prompt")
    system: tuple[str, ...] = Field((), description="system messages, taken in turn; default: the template's own")
    max_new_tokens: PositiveInt = 256
    temperature: Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)] = 1.0
    top_p: Share = 1.0
    min_tokens: PositiveInt = Field(4, description="of a prompt; shorter ones are left out")
    max_tokens: PositiveInt | None = Field(None, description="of a prompt; longer ones are left out")
    max_repetition: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.3, description="share of a prompt's token 4-grams that occurred in it before"
    )
    max_similarity: Share = Field(
        0.7, description="Jaccard similarity of character 5-grams at which a prompt repeats an earlier one; 1: never"
    )
    batch_size: PositiveInt = 64
    seed: Seed = 0

    @model_validator(mode="after")
    def _lengths_leave_room(self) -> "SynthesizeConfig":
        longest = min(self.max_new_tokens, self.max_tokens or self.max_new_tokens)
        if self.min_tokens > longest:
            raise ValueError(f"min_tokens is {self.min_tokens}, and no prompt has more than {longest} tokens")
        if self.max_draws is not None and self.max_draws < self.count:
            raise ValueError(f"max_draws is {self.max_draws}, fewer than count, {self.count}")
        return self

    @property
    def most_draws(self) -> int:
        """The number of draws after which there are no more, whatever was kept."""
        return self.max_draws or 10 * self.count
