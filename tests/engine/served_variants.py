"""Drafts of every kind that vLLM serves, trained for minutes on a target's own greedy answers to prompts that ship.

They know the text that they are asked for, so that guesses are accepted at every position and faults of serving show.
"""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from eaglepipe.decoding.decode import StoppingCriteria, speculate
from eaglepipe.decoding.text_drafters import no_drafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.resources import shipped_prompts
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import load_target
from eaglepipe.target.steps.stepping import SteppingTarget
from eaglepipe.train import run_training

DEPTH, ROWS_A_SET, ANSWER_TOKENS, DRAFT_VOCABULARY = 3, 6, 48, 2048
PEAGLE = {"train.objective": "peagle", "train.peagle_depths": DEPTH, "train.ttt_steps": None}
DFLASH = {  # a step of it costs little and teaches little
    "train.objective": "dflash",
    "train.block_size": DEPTH + 1,
    "train.ttt_steps": None,
    "train.epochs": 80,
    "train.max_steps": 300,
}
WHOLE_VOCABULARY = {"vocab.draft_size": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "EAGLE-3": {},
    "EAGLE-3.1": {"draft.fc_norm": True, "draft.norm_output": True},
    "P-EAGLE": PEAGLE,
    "P-EAGLE, two layers": {**PEAGLE, "draft.num_hidden_layers": 2},
    "EAGLE-1": {"train.objective": "eagle1", **WHOLE_VOCABULARY},
    "DFlash": {**DFLASH, "draft.num_hidden_layers": 1},
    "two layers": {"draft.num_hidden_layers": 2},
    "D = V": WHOLE_VOCABULARY,
    "other width": {
        "draft.hidden_size": 384,
        "draft.num_attention_heads": 6,
        "draft.num_key_value_heads": 2,
        "draft.freeze_embeddings": False,
        "draft.lm_head_init": "random",
    },
    "one aux layer": {"draft.aux_layer_ids": [-1]},
    "norm_before_fc": {"draft.norm_before_fc": True},
    "norm_before_residual": {"draft.norm_before_residual": True},
    "qk_norm": {"draft.qk_norm": True},
    "sliding window": {"draft.sliding_window": 32},
}


def write_own_answers(target: Path, file: Path) -> None:
    """Let the target answer the first prompts of each set that ships, as tokenised rows."""
    loaded = load_target(TargetConfig(path=str(target), dtype="float32"), "cpu")
    tokenizer = AutoTokenizer.from_pretrained(target)
    prompts = []
    for prompt_set in shipped_prompts().values():
        with prompt_set.open() as stream:
            rows = [json.loads(line)["messages"][:1] for line in islice(stream, ROWS_A_SET)]
        prompts += [
            tokenizer.apply_chat_template(row, add_generation_prompt=True, return_dict=True, return_tensors="np")
            for row in rows
        ]
    ids = [prompt["input_ids"][0].astype("int32") for prompt in prompts]
    answers = speculate(
        SteppingTarget(HFEagle3TargetModel(loaded, [2])),
        no_drafter(torch.device("cpu")),
        ids,
        rule=SamplingRule(),
        criteria=StoppingCriteria(max_new_tokens=ANSWER_TOKENS),
        batch_size=len(ids),
        generator=torch.Generator(),
    ).answers
    with file.open("w") as stream:
        for number, (prompt, answer) in enumerate(zip(ids, answers, strict=True)):
            mask = [0] * len(prompt) + [1] * len(answer.token_ids)
            row = {"id": str(number), "input_ids": [*prompt.tolist(), *answer.token_ids], "loss_mask": mask}
            stream.write(json.dumps(row) + "\n")


def variant_recipe(target: Path, folder: Path, name: str) -> Recipe:
    """Return the recipe of a variant, whose run folder has its name."""
    layers = AutoConfig.from_pretrained(target).num_hidden_layers
    settings: dict[str, Any] = {
        "target.path": str(target), "target.dtype": "float32",
        "data.sources": [{"path": str(folder / "own.jsonl"), "format": "tokenized"}],
        "vocab.draft_size": DRAFT_VOCABULARY,
        "cache.root": str(folder / "caches"), "cache.profile": "exact", "cache.aux_codec": "fp32",
        "cache.hidden_codec": "fp32", "cache.last_hidden": "all", "cache.full_head": True,
        "draft.intermediate_size": 576,
        "train.output_dir": str(folder / name.replace(" ", "_")), "train.ttt_steps": DEPTH, "train.dtype": "bfloat16",
        "train.learning_rate": 3e-3, "train.warmup_ratio": 0.05, "train.epochs": 14, "train.max_steps": 60,
        "train.batch_tokens": 256,
        "train.micro_batch_tokens": 256, "train.heldout_fraction": 0.1, "train.early_stop_patience": None,
        "train.log_every_steps": 20,
        **VARIANTS[name],
    }  # fmt: skip
    if settings.get("draft.aux_layer_ids") == [-1]:
        settings["draft.aux_layer_ids"] = [layers - 3]
    tree: dict[str, Any] = {"name": "served"}
    for key, value in settings.items():
        section, _, field = key.partition(".")
        if key != "train.ttt_steps" or value is not None:
            tree.setdefault(section, {})[field] = value
    return parse_recipe(tree)


def trained(target: Path, folder: Path, name: str, report: Callable[[str], None] = print) -> Path:
    """Return the run folder of a variant, trained first unless it is there."""
    recipe = variant_recipe(target, folder, name)
    run = Path(str(recipe.train.output_dir))
    if not (run / "draft" / "model.safetensors").exists():
        if not (own := folder / "own.jsonl").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_own_answers(target, own)
        cache = Path(run_precompute(recipe, report=report).folder)
        run_training(recipe, [cache])
    return run
