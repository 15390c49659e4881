"""The recipes of the families: `draft` and `train` with the settings that each family has of its own.

`Family.recipe` names the class, so `train.objective` chooses the settings that can be given at all.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from eaglepipe.recipe.numbers import Depth, NonNegative, PositiveInt, Share, Size, TokenId
from eaglepipe.recipe.training import DraftConfig, TrainConfig
from eaglepipe.recipe.tree import Recipe


def check_windows(window: int | None, full: tuple[int, ...], num_layers: int) -> None:
    """Check that the layers with full attention are a draft's, and that others have a window.

    Raises:
        ValueError: naming the setting.
    """
    if full and window is None:
        raise ValueError("full_attention_layers are those without the window; set sliding_window too")
    if strays := [index for index in full if not 0 <= index < num_layers]:
        raise ValueError(f"full_attention_layers: the draft has layers 0 to {num_layers - 1}, not {strays[0]}")


class Eagle3DraftConfig(DraftConfig):
    """Shape of an EAGLE-3 draft, which reads aux hidden states."""

    aux_layer_ids: tuple[int, ...] | None = Field(
        None, description="boundaries that the draft reads, among the cache's; default: all of them"
    )
    fc_norm: bool = Field(False, description="EAGLE-3.1: one RMSNorm for each aux chunk before fc")
    norm_output: bool = Field(False, description="EAGLE-3.1: carry the normalised state between steps")
    norm_before_fc: bool = Field(False, description="one RMSNorm over all aux chunks before fc; excludes fc_norm")
    norm_before_residual: bool = Field(
        False, description="the first layer's residual is its normed state; not served by SGLang"
    )
    qk_norm: bool = Field(False, description="RMSNorm of each query and key head, as in Qwen3; not served by SGLang")
    sliding_window: Size | None = Field(
        None, description="slots that a layer attends to, its own included; default: all; not served by SGLang"
    )
    full_attention_layers: tuple[int, ...] = Field(
        (), description="the draft's layers, from 0, without that window; no engine serves layers that differ in it"
    )
    lm_head_init: Literal["target", "random"] = Field(
        "target", description="the target's rows; after the demo's 200 steps, 3.94 tokens accepted, at random 3.51"
    )

    @model_validator(mode="after")
    def _norms_and_windows_agree(self) -> Self:
        if self.norm_before_fc and self.fc_norm:
            raise ValueError("norm_before_fc and fc_norm exclude each other; set one of them to false")
        check_windows(self.sliding_window, self.full_attention_layers, self.num_hidden_layers)
        return self

    @property
    def aux_boundaries(self) -> tuple[int, ...] | None:
        return self.aux_layer_ids


class Eagle3TrainConfig(TrainConfig):
    """Training of EAGLE-3: TTT steps, each conditioned on the draft's own states."""

    objective: Literal["eagle3"] = "eagle3"
    ttt_steps: Depth = Field(7, description="depths trained")
    step_decay: Share = Field(0.8, description="weight of a step per depth")
    loss: Literal["ce", "alpha", "lambda"] = Field(
        "ce", description="soft cross-entropy, or an LK loss, which trains acceptance itself (arXiv 2602.23881)"
    )
    lk_scale: NonNegative = Field(1.0, description="loss lambda: weight of cross-entropy while nothing is accepted")
    lk_decay: NonNegative = Field(3.0, description="loss lambda: how fast that weight falls with the mean acceptance")
    eval_depth: Depth | None = Field(None, description="TTT steps of evaluations; default: ttt_steps")
    chunk_tokens: PositiveInt = Field(
        16384, description="tokens that take all TTT steps together: bounds the memory of long samples, changes nothing"
    )

    @field_validator("lk_scale", "lk_decay")
    @classmethod
    def _serves_lambda_alone(cls, value: float, info: ValidationInfo) -> float:
        loss = info.data.get("loss", "lambda")
        if loss != "lambda" and value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(f"train.loss {loss} ignores it (it serves lambda); remove it")
        return value

    @property
    def summary(self) -> str:
        return f"{self.objective}, {self.ttt_steps} TTT steps, decay {self.step_decay}"

    @property
    def reads_whole_distribution(self) -> str | None:
        return None if self.loss == "ce" else f"train.loss={self.loss} measures acceptance"

    @property
    def evaluated(self) -> Self:
        """Soft cross-entropy whatever was trained, over `eval_depth` steps."""
        return self.model_copy(update={"loss": "ce", "ttt_steps": self.eval_depth or self.ttt_steps})


class Eagle3Recipe(Recipe):
    """A pipeline that trains an EAGLE-3 draft."""

    draft: Eagle3DraftConfig = Eagle3DraftConfig()
    train: Eagle3TrainConfig = Eagle3TrainConfig()


class Eagle1DraftConfig(DraftConfig):
    """Shape of an EAGLE-1 or EAGLE-2 draft."""

    input_norm: bool = Field(False, description="RMSNorm before the first layer's attention, which no engine serves")
    final_norm: bool = Field(False, description="RMSNorm of the features that come out, which no engine serves")


class Eagle1TrainConfig(TrainConfig):
    """Training of EAGLE-1/2, at depth 0 alone."""

    objective: Literal["eagle1", "eagle2"] = "eagle1"
    ttt_steps: Depth = Field(7, description="depths of the chain in evaluations")
    feature_noise: NonNegative = Field(0.1, description="input features get U(-x, x) while training")


class Eagle1Recipe(Recipe):
    """A pipeline that trains an EAGLE-1 or EAGLE-2 draft."""

    draft: Eagle1DraftConfig = Eagle1DraftConfig()
    train: Eagle1TrainConfig = Eagle1TrainConfig()


class PeagleDraftConfig(Eagle3DraftConfig):
    """Shape of a P-EAGLE draft: EAGLE-3 with a mask token."""

    mask_token_id: TokenId | None = Field(
        None,
        description="target id that stands for unknown tokens; default: pad, or another that the corpus lacks",
    )


class PeagleTrainConfig(TrainConfig):
    """Training of P-EAGLE: all depths in one forward, thinned by COD sampling."""

    objective: Literal["peagle"] = "peagle"
    peagle_depths: Depth = Field(8, description="tokens drafted in one forward")
    cod_ratio: Share = Field(0.7, description="share of the elements kept at each depth")
    cod_min_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.2, description="share kept at least")
    sequence_partitions: Depth = Field(1, description="forwards that share a sequence, for memory")

    @property
    def reads_whole_distribution(self) -> str | None:
        return "train.objective=peagle measures a KL"

    @property
    def summary(self) -> str:
        return f"{self.objective}, {self.peagle_depths} depths in one forward"


class PeagleRecipe(Recipe):
    """A pipeline that trains a P-EAGLE draft."""

    draft: PeagleDraftConfig = PeagleDraftConfig()
    train: PeagleTrainConfig = PeagleTrainConfig()
