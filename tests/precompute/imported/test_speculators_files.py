"""Files that speculators' own code wrote (see `speculators/generate.py`), plain and in FP8."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.precompute.imported.command import import_overrides
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import load_recipe
from eaglepipe.target.head_only import load_head_only
from tests.stage_one import quiet
from tests.tiny_project import TinyProject

FOLDERS = Path(__file__).parent / "speculators"


def expected_states(path: Path) -> torch.Tensor:
    """States as the reader of `hs_connectors` gives them to speculators' trainer."""
    stored = load_file(path)
    states = stored["hidden_states"]
    if (scales := stored.get("hidden_states_scales")) is not None:
        states = states.to(torch.bfloat16) * scales.to(torch.bfloat16)
    assert states.dtype == torch.bfloat16
    return states


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_a_cache_holds_the_states_that_speculators_reads(project: TinyProject, tmp_path: Path, kind: str) -> None:
    settings = [f"cache.root={tmp_path}", "cache.profile=exact", "cache.last_hidden=all"]
    recipe = load_recipe(project.recipe_file, import_overrides("speculators", FOLDERS / kind, settings))
    cache = Cache.open(Path(run_precompute(recipe, report=quiet).folder))
    assert cache.num_samples == 3 and verify_cache(cache.folder, full=True).ok
    head = load_head_only(recipe.target)
    for number in range(3):
        sample = cache.read(number)
        states = expected_states(FOLDERS / kind / "hidden_states" / f"{sample.sample_id.split(':')[1]}.safetensors")
        aux = cache.spec.decode_aux(EncodedRows(payload=torch.from_numpy(np.copy(sample.aux_payload))))
        assert torch.equal(aux, states[:, :-1])
        last = torch.from_numpy(np.copy(sample.last_hidden_payload))
        assert torch.equal(
            cache.spec.rows.decode(EncodedRows(payload=last)), head.final_norm(states[:, -1].float()).bfloat16()
        )
        assert sample.loss_mask.tolist() == [False] * 3 + [True] * (len(states) - 3)
