"""What the connector of an engine needs to fill the shards of one cache: plain values, as a text."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eaglepipe.cache.consistency import VOCAB_FILE, load_vocab
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.kind import EntryRule, rule_type
from eaglepipe.precompute.encode import StateEncoder
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.head_only import HeadOnlyTarget, load_head_only

JOB = "eaglepipe_job"
"""Key of the job in `kv_connector_extra_config`."""


@dataclass(frozen=True, kw_only=True)
class CaptureJob:
    """A planned cache whose vocabulary is published, and how states become its columns."""

    folder: str
    identity: str
    spec: ShardSpec
    rule: EntryRule
    target: TargetConfig
    num_layers: int
    head_chunk_rows: int

    @classmethod
    def of(cls, inputs: Stage1Inputs, folder: Path, identity: str) -> "CaptureJob":
        """Return the job of filling the cache in `folder`."""
        return cls(
            folder=str(folder),
            identity=identity,
            spec=inputs.spec,
            rule=inputs.entry_rule,
            target=inputs.recipe.target,
            num_layers=int(inputs.text_config.num_hidden_layers),
            head_chunk_rows=inputs.recipe.precompute.head_chunk_rows,
        )

    @property
    def boundaries(self) -> list[int]:
        """Boundaries whose states the engine gives, ascending; the last is the end of the last layer."""
        aux = list(self.spec.aux_layer_ids)
        return aux if aux[-1] == self.num_layers else [*aux, self.num_layers]

    def to_text(self) -> str:
        fields = {name: value for name, value in vars(self).items() if name not in ("spec", "rule", "target")}
        parts = {"spec": asdict(self.spec), "rule": asdict(self.rule), "target": self.target.model_dump(mode="json")}
        return json.dumps(fields | parts)

    @classmethod
    def from_text(cls, text: str) -> "CaptureJob":
        fields: dict[str, Any] = json.loads(text)
        spec = fields.pop("spec")
        return cls(
            spec=ShardSpec(**{**spec, "aux_layer_ids": tuple(spec["aux_layer_ids"])}),
            rule=rule_type(spec["supervision"])(**fields.pop("rule")),
            target=TargetConfig(**fields.pop("target")),
            **fields,
        )

    def head(self, device: str) -> HeadOnlyTarget:
        """Load the target's final norm and lm_head onto a device."""
        return load_head_only(self.target, device)

    def encoder(self, head: HeadOnlyTarget) -> StateEncoder:
        """Return the encoder of states, on the head's device."""
        return StateEncoder(
            head_logits=head.narrow_logits,
            vocab=load_vocab(Path(self.folder) / VOCAB_FILE, self.spec),
            spec=self.spec,
            rule=self.rule,
            head_chunk_rows=self.head_chunk_rows,
        )
