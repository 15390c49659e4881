"""Folders of other tools' samples, written by their documented layouts from the states that a tiny target gives."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file

from eaglepipe.cache.reader import Cache
from eaglepipe.target.capture import load_target_model
from tests.tiny_project import TinyProject


@dataclass(frozen=True, kw_only=True)
class States:
    """All that a tool may store of one sample: T tokens, A aux layers, Ht wide."""

    input_ids: torch.Tensor  # int64 [T]
    loss_mask: torch.Tensor  # int64 [T]
    aux: torch.Tensor  # [T, A, Ht]
    before_norm: torch.Tensor  # [T, Ht]
    after_norm: torch.Tensor  # [T, Ht]


def states_of(project: TinyProject, cache: Path, **overrides: object) -> list[States]:
    """Run the target over each sample of a cache of its own, by itself."""
    opened, depth = Cache.open(cache), 8
    layers = (*opened.manifest.spec.aux_layer_ids, depth)
    model = load_target_model(project.recipe(**overrides).target, layers, "cpu")
    made = []
    for number in range(opened.num_samples):
        sample = opened.read(number)
        states = model.capture_tokens([sample.input_ids])
        made.append(
            States(
                input_ids=torch.from_numpy(sample.input_ids.astype(np.int64)),
                loss_mask=torch.from_numpy(sample.loss_mask.astype(np.int64)),
                aux=states.aux[:, :-1].clone(),
                before_norm=states.aux[:, -1].clone(),
                after_norm=states.last_hidden.clone(),
            )
        )
    return made


def write_speculators(folder: Path, samples: list[States], dtype: torch.dtype = torch.float32) -> Path:
    """Write a data folder of speculators."""
    rows = [{"input_ids": s.input_ids.tolist(), "loss_mask": s.loss_mask.tolist()} for s in samples]
    Dataset.from_list([{**row, "seq_len": len(row["input_ids"])} for row in rows]).save_to_disk(str(folder))
    (folder / "hidden_states").mkdir()
    for number, sample in enumerate(samples):
        states = torch.cat([sample.aux, sample.before_norm[:, None]], dim=1).to(dtype)
        tensors = {"token_ids": sample.input_ids, "hidden_states": states}
        save_file(tensors, folder / "hidden_states" / f"hs_{number}.safetensors")
    return folder


def write_specforge(folder: Path, samples: list[States]) -> Path:
    """Write a folder of SpecForge."""
    for number, sample in enumerate(samples):
        path = folder / "rows_0-5000" / f"data_{number}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"input_ids": sample.input_ids, "loss_mask": sample.loss_mask}
        tensors |= {"hidden_state": sample.after_norm[None], "aux_hidden_state": sample.aux.flatten(1)[None]}
        torch.save(tensors, path)
    return folder


def write_modelopt(folder: Path, samples: list[States], *, mask: bool = True) -> Path:
    """Write a folder of ModelOpt."""
    folder.mkdir(parents=True)
    for number, sample in enumerate(samples):
        stored = {"input_ids": sample.input_ids, "hidden_states": sample.after_norm}
        stored |= {"aux_hidden_states": sample.aux.flatten(1), "conversation_id": f"talk-{number}"}
        torch.save(stored | ({"loss_mask": sample.loss_mask} if mask else {}), folder / f"talk-{number}.pt")
    return folder


def write_nemo(folder: Path, samples: list[States], probs: list[torch.Tensor], manifest: dict[str, Any]) -> Path:
    """Write a cache folder of Automodel, four samples a shard.

    Args:
        probs: over the draft vocabulary, of each sample, float32 [T, D + 1]; the last: the target's choice is in it.
    """
    folder.mkdir(parents=True)
    fields = {"format_version": 2, "num_samples": len(samples), "shard_size": 4, "dtype": "fp32", **manifest}
    (folder / "manifest.json").write_text(json.dumps(fields))
    longest = max(len(sample.input_ids) for sample in samples)
    for shard in range(0, len(samples), 4):
        rows = [
            {
                "input_ids": left(sample.input_ids, longest),
                "attention_mask": padded(torch.ones_like(sample.input_ids), longest),
                "loss_mask": left(sample.loss_mask, longest),
                "aux_hidden_states": padded(sample.aux.flatten(1), longest),
                "position_mask": left(of_sample[:, -1:] * sample.loss_mask[:, None], longest).bool(),
                "target_probs": left(of_sample[:, :-1], longest),
            }
            for sample, of_sample in zip(samples[shard : shard + 4], probs[shard : shard + 4], strict=True)
        ]
        stacked = {name: torch.stack([row[name] for row in rows]).contiguous() for name in rows[0]}
        save_file(stacked, folder / f"shard-{shard // 4:06d}.safetensors")
    return folder


def padded(rows: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])


def left(rows: torch.Tensor, length: int) -> torch.Tensor:
    """Rows moved left by one, with a tail of 0."""
    return padded(rows[1:], length)
