"""The EAGLE-3 draft for gpt-oss: the Llama draft under gpt-oss's YaRN positions, with heads that do not split H.

Its MLP is dense and its attention has no sinks; only positions have to agree with the target's.
"""

from typing import Any

from eaglepipe.eagle.completed_config import single_rope
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.layers.rope import Eagle3LlamaRotaryEmbedding
from eaglepipe.errors import DraftError


class GptOssYarnRotaryEmbedding(Eagle3LlamaRotaryEmbedding):
    """The YaRN of gpt-oss: whole heads, frequencies not rounded to whole dimensions, cos and sin scaled.

    Raises:
        DraftError: for partial rotary, which gpt-oss does not have.
    """

    def __init__(self, config: Any) -> None:
        part = single_rope(config).get("partial_rotary_factor", 1.0)
        if part != 1.0:
            raise DraftError(
                f"partial_rotary_factor is {part}, but gpt-oss turns whole heads; take it out of the rope parameters "
                "in the target's config"
            )
        super().__init__(config)


class GptOssEagle3DraftModel(LlamaEagle3DraftModel):
    """`LlamaEagle3DraftModel` for gpt-oss targets, with the same modules and state names.

    `config.head_dim` is explicit: gpt-oss has 64 heads of 64 at H = 2,880.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.rotary_emb = GptOssYarnRotaryEmbedding(self.config)
