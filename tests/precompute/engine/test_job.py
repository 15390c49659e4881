"""The job of an engine's connector, from one process to another."""

import pytest

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.kind import EntryRule
from eaglepipe.cache.supervision.sampled import SampledRule
from eaglepipe.cache.supervision.sparse import SparseRule
from eaglepipe.precompute.engine.job import CaptureJob
from eaglepipe.recipe.config import TargetConfig

RULES: dict[str, EntryRule] = {
    "sampled": SampledRule(draws=4, draw_seed=3),
    "sparse": SparseRule(tolerance=0.1, max_entries=4, end_of_turn=2),
}


@pytest.mark.parametrize("supervision", RULES)
def test_a_job_reads_back_from_its_text(supervision: str) -> None:
    spec = ShardSpec(
        supervision=supervision,
        aux_codec="rot4",
        supervision_codec="fp16",
        aux_layer_ids=(1, 2),
        hidden_size=64,
        vocab_size=99,
        draft_vocab_size=9,
    )
    job = CaptureJob(
        folder="folder",
        identity="identity",
        spec=spec,
        rule=RULES[supervision],
        target=TargetConfig(path="target"),
        num_layers=4,
        head_chunk_rows=5,
    )
    assert CaptureJob.from_text(job.to_text()) == job
