"""The recipes of the families that draft a block of masked tokens in one forward."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from eaglepipe.recipe.family_settings import check_windows
from eaglepipe.recipe.numbers import Depth, NonNegative, PositiveInt, Size, TokenId
from eaglepipe.recipe.section import Section
from eaglepipe.recipe.training import DraftConfig, TrainConfig
from eaglepipe.recipe.tree import Recipe

BlockSize = Annotated[int, Field(ge=2, le=256, strict=True)]
_GAMMAS = ((8, 4.0), (12, 5.0))
_GAMMA_OF_LONG_BLOCKS = 7.0


class DflashDraftConfig(DraftConfig):
    """Shape of a DFlash draft: Qwen3 layers under the target's embeddings and head, which stay frozen."""

    num_hidden_layers: Depth = 5
    aux_layer_ids: tuple[int, ...] | None = Field(
        None, description="boundaries that the draft reads, among the cache's; default: all of them"
    )
    mask_token_id: TokenId | None = Field(
        None, description="target id of the tokens to guess; default: pad, or another that the corpus lacks"
    )
    sliding_window: Size | None = Field(
        None, description="context slots before the anchor that a layer attends to; default: all"
    )
    full_attention_layers: tuple[int, ...] = Field((), description="the draft's layers, from 0, without that window")
    sliding_window_non_causal: bool = Field(
        False, description="layers with a window read their whole block, as layers without one do"
    )

    @model_validator(mode="after")
    def _fits_the_target(self) -> Self:
        check_windows(self.sliding_window, self.full_attention_layers, self.num_hidden_layers)
        if self.sliding_window_non_causal and self.sliding_window is None:
            raise ValueError("sliding_window_non_causal serves layers with a window; set sliding_window too")
        if not self.freeze_embeddings:
            raise ValueError("freeze_embeddings: the draft shares the target's embeddings and head; leave it true")
        return self

    @property
    def aux_boundaries(self) -> tuple[int, ...] | None:
        return self.aux_layer_ids

    @property
    def heads(self) -> dict[str, Any]:
        """Settings of the draft's config beside a DFlash draft's."""
        return {}


class BlockLoss(Section):
    """Weights of the terms of a block's loss; a term's name alone stands for a weight of 1."""

    ce: NonNegative = Field(0.0, description="cross-entropy of the label")
    kl: NonNegative = Field(0.0, description="KL divergence from the target's distribution")
    tv: NonNegative = Field(0.0, description="total variation distance from it, 1 less the acceptance rate")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | BlockLoss):
            raise ValueError("must be ce, kl or tv, or the weight of each: {ce: 0.1, tv: 0.9}")
        return {value: 1.0} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_term(self) -> Self:
        if not any(self.terms.values()):
            raise ValueError("needs a term with a weight above 0: ce, kl or tv")
        return self

    @property
    def terms(self) -> dict[str, float]:
        """The weight of every term."""
        return {"ce": self.ce, "kl": self.kl, "tv": self.tv}

    @property
    def reads_supervision(self) -> bool:
        """Whether a term needs the target's whole distribution."""
        return self.kl > 0.0 or self.tv > 0.0


class DflashTrainConfig(TrainConfig):
    """Training of DFlash: blocks of masked tokens behind anchors, guessed in one forward."""

    objective: Literal["dflash"] = "dflash"
    block_size: BlockSize = Field(8, description="slots of a block: the newest token and the masked ones to guess")
    max_anchors: PositiveInt = Field(512, description="blocks drawn from a sample in an epoch, at most")
    loss: BlockLoss = Field(BlockLoss(ce=1.0), description="ce, kl or tv, or the weight of each: {ce: 0.1, tv: 0.9}")
    labels: Literal["data", "top1"] = Field(
        "data", description="label of ce: the data's own token, or the target's likeliest in the draft vocabulary"
    )
    position_weights: Literal["exponential", "dpace"] = Field(
        "exponential", description="exp(-k / decay_gamma) for guess k, or D-PACE, which follows the draft's confidence"
    )
    decay_gamma: Annotated[float, Field(gt=0.0, le=1e6)] | None = Field(
        None, description="default by block_size: 4 up to 8, 5 up to 12, else 7"
    )
    dpace_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.5, description="D-PACE: floor of a confidence")
    sequence_partitions: Depth = Field(1, description="forwards that share a micro-batch's blocks, for memory")

    @model_validator(mode="after")
    def _weights_agree(self) -> Self:
        if self.position_weights == "dpace" and self.decay_gamma is not None:
            raise ValueError("decay_gamma serves position_weights exponential, not dpace; remove it")
        if self.position_weights == "exponential" and self.dpace_alpha != 0.5:
            raise ValueError("dpace_alpha serves position_weights dpace, not exponential; remove it")
        return self

    @property
    def draft_options(self) -> dict[str, Any]:
        return {"block_size": self.block_size}

    @property
    def gamma(self) -> float:
        """The decay of exponential weights."""
        by_size = next((gamma for longest, gamma in _GAMMAS if self.block_size <= longest), _GAMMA_OF_LONG_BLOCKS)
        return by_size if self.decay_gamma is None else self.decay_gamma

    @property
    def summary(self) -> str:
        terms = " + ".join(f"{weight:g} {name}" for name, weight in self.loss.terms.items() if weight)
        return f"{self.objective}, blocks of {self.block_size}, loss {terms}, {self.position_weights} weights"

    @property
    def reads_whole_distribution(self) -> str | None:
        terms = [name for name in ("kl", "tv") if self.loss.terms[name]]
        return f"train.loss has {' and '.join(terms)}" if terms else None

    @property
    def evaluated(self) -> Self:
        """Cross-entropy with exponential weights, whatever was trained."""
        same = {"loss": BlockLoss(ce=1.0), "labels": "data", "position_weights": "exponential"}
        return self.model_copy(update={**same, "decay_gamma": None, "dpace_alpha": 0.5})


class DflashRecipe(Recipe):
    """A pipeline that trains a DFlash draft."""

    draft: DflashDraftConfig = DflashDraftConfig()
    train: DflashTrainConfig = DflashTrainConfig()


class DsparkDraftConfig(DflashDraftConfig):
    """Shape of a DSpark draft: a DFlash draft with a Markov head and a confidence head."""

    markov_rank: Size = Field(256, description="rank of the logits' bias by the token before")
    markov_head_type: Literal["vanilla", "gated"] = Field(
        "vanilla", description="gated: the state scales the bias; vLLM serves vanilla alone"
    )
    enable_confidence_head: bool = Field(True, description="forecast whether a guess is accepted")
    confidence_head_with_markov: bool = Field(True, description="the forecast reads the token before, too")

    @property
    def heads(self) -> dict[str, Any]:
        names = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")
        return {name: getattr(self, name) for name in names}


class DsparkTrainConfig(DflashTrainConfig):
    """Training of DSpark: blocks whose anchor guesses too, each guess told the true token before it."""

    objective: Literal["dspark"] = "dspark"  # type: ignore[assignment]
    block_size: BlockSize = Field(7, description="slots of a block, all of which guess")
    loss: BlockLoss = Field(
        BlockLoss(ce=0.1, tv=1.8), description="ce, kl or tv, or the weight of each; tv is half of |q - p|_1"
    )
    confidence_weight: NonNegative = Field(1.0, description="weight of the confidence head's error; 0: not trained")

    @property
    def reads_whole_distribution(self) -> str | None:
        return super().reads_whole_distribution or (
            "train.confidence_weight trains a forecast of acceptance" if self.confidence_weight else None
        )

    @property
    def evaluated(self) -> Self:
        return super().evaluated.model_copy(update={"confidence_weight": 0.0})


class DsparkRecipe(Recipe):
    """A pipeline that trains a DSpark draft."""

    draft: DsparkDraftConfig = DsparkDraftConfig()
    train: DsparkTrainConfig = DsparkTrainConfig()
