"""What stored last hidden states are shows in the tokens that they predict, if the target predicts any."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.cache.reader import Cache
from eaglepipe.precompute.imported.command import import_overrides
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import load_recipe
from tests.cache.derived import samples
from tests.precompute.imported.foreign_files import States, write_specforge
from tests.tiny_project import TinyProject

LENGTH, SAMPLES = 40, 6


@pytest.fixture(scope="module")
def target(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's target with a head of rows long enough to be sure of a token."""
    folder = tmp_path_factory.mktemp("sure") / "target"
    shutil.copytree(project.target, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def predicting(target: Path, number: int) -> States:
    """A sample whose state at each token has the direction of the next token's row, and a length of its own."""
    head = load_file(target / "model.safetensors")["lm_head.weight"]
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(5, 300, (LENGTH,), generator=generator)
    last = torch.nn.functional.normalize(head[ids.roll(-1)], dim=-1) * 0.05
    mask = torch.ones_like(ids)
    mask[:4] = 0
    aux = torch.randn(LENGTH, 3, 32, generator=generator)
    return States(input_ids=ids, loss_mask=mask, aux=aux, before_norm=last, after_norm=last)


def test_states_before_the_norm_and_those_of_other_tokens_are_told(
    project: TinyProject, target: Path, tmp_path: Path
) -> None:
    stored = [predicting(target, number) for number in range(SAMPLES)]
    stored[2] = replace(stored[2], input_ids=stored[4].input_ids)
    folder, lines = write_specforge(tmp_path / "tool", stored), list[str]()
    settings = [f"cache.root={tmp_path / 'caches'}", f"target.path={target}", "data.max_drop_fraction=0.5"]
    recipe = load_recipe(project.recipe_file, import_overrides("specforge", folder, settings))
    cache = Path(run_precompute(recipe, report=lines.append).folder)
    assert "before the final norm, as the tokens that follow show" in lines[0]
    (drop,) = [json.loads(line) for line in (cache / "drops.jsonl").read_text().splitlines()]
    assert drop["reason"] == "other_tokens" and drop["where"].endswith("data_2.ckpt")
    assert Cache.open(cache).num_samples == SAMPLES - 1
    for sample in samples(cache).values():
        assert (sample.target_top1[4:-1] == sample.input_ids[5:]).all()
