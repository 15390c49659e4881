"""The whole recipe: one typed tree of settings."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from eaglepipe.recipe.config import CacheConfig, DataConfig, PrecomputeConfig, TargetConfig, VocabConfig
from eaglepipe.recipe.generation import RegenerateConfig, SynthesizeConfig
from eaglepipe.recipe.section import Section
from eaglepipe.recipe.training import DraftConfig, TrainConfig


class Recipe(Section):
    """A whole pipeline; each family has a subclass with its own `draft` and `train`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    target: TargetConfig
    data: DataConfig
    vocab: VocabConfig = VocabConfig()
    cache: CacheConfig = CacheConfig()
    precompute: PrecomputeConfig = PrecomputeConfig()
    draft: DraftConfig = DraftConfig()
    train: TrainConfig
    regenerate: RegenerateConfig | None = None
    synthesize: SynthesizeConfig | None = None

    @model_validator(mode="after")
    def _rows_fit_their_budget(self) -> Self:
        if self.train.micro_batch_tokens > self.train.batch_tokens:
            raise ValueError("train.micro_batch_tokens is larger than train.batch_tokens")
        return self

    @model_validator(mode="after")
    def _cache_serves_the_family(self) -> Self:
        """Refuse a cache that the family could not learn from before it is made; given caches are checked later."""
        if self.train.caches is not None:
            return self
        cache = self.cache.model_dump()
        if self.vocab.draft_size is None:
            cache["full_head"] = True  # the draft's rows are all of them
        if unmet := self.train.family.unmet_needs(cache):
            raise ValueError(f"train.objective {self.train.objective} needs a cache with {' and '.join(unmet)}")
        if self.cache.supervision == "sampled" and (reader := self.train.reads_whole_distribution) is not None:
            raise ValueError(
                f"{reader}, which entries drawn by cache.supervision=sampled do not give, not even in the mean; take "
                "cache.supervision=hidden, dense or sparse"
            )
        return self
