"""Draft folders as they come from anywhere: to start from, to export, to check, to take a vocabulary from."""

import json
import random
from pathlib import Path

from tests.fuzz.base import ENGINES, Base
from tests.fuzz.safetensors_files import mutate_tensors
from tests.fuzz.values import hostile, json_text, mutate_json_file

_FIELDS = (
    *("architectures", "model_type", "draft_vocab_size", "target_hidden_size", "eagle_config"),
    *("rope_parameters", "eagle_aux_hidden_state_layer_ids", "norm_before_residual", "norm_before_fc"),
    *("fc_norm", "num_hidden_layers", "speculators_model_type", "speculators_config"),
    *("transformer_layer_config", "num_aux_hidden_states", "vocab_size", "mask_token_id", "pard_token"),
    *("rope_scaling", "rope_theta", "hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "max_position_embeddings", "tie_word_embeddings", "hidden_act"),
)


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    draft = base.copy(base.run / "draft" if rng.random() < 0.5 else base.export(rng.choice(ENGINES)), folder / "draft")
    mutate_draft(draft, rng)
    recipe = str(base.write_recipe(folder / "recipe.yaml", train={"output_dir": str(folder / "run")}))
    engine = rng.choice(ENGINES)
    commands = (
        ["train", "--dry-run", recipe, f"draft.init={draft}"],
        ["train", recipe, f"draft.init={draft}", "train.max_steps=1"],
        ["cache", "recode", str(folder / "out"), str(base.cache()), "--vocab-from", str(draft)],
        ["export", "--check", str(draft), "--to", engine, "--target", str(base.target)],
    )
    return [["export", str(draft), "--to", engine, "--out", str(folder / "export")], rng.choice(commands)]


def mutate_draft(draft: Path, rng: random.Random) -> None:
    """Change the config or the weights of a draft folder, which mostly comes without digests that would tell."""
    if rng.random() < 0.9:
        (draft / "eaglepipe_digests.json").unlink()
    choice, config = rng.random(), draft / "config.json"
    if choice < 0.35:
        values = json.loads(config.read_text())
        for _ in range(rng.choice((1, 2))):
            values[rng.choice(_FIELDS)] = hostile(rng)
        config.write_text(json_text(values), errors="surrogatepass")
    elif choice < 0.55:
        mutate_json_file(config, rng)
    elif choice < 0.95:
        mutate_tensors(draft / "model.safetensors", rng)
    else:
        others = [path for path in draft.iterdir() if path.suffix == ".json" and path != config]
        if others:
            mutate_json_file(rng.choice(sorted(others)), rng)
