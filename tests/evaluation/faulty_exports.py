"""Faults that exporters have made: each spoils an exported folder in place, and no engine reports it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Spoil = Callable[[Path], None]


def _config(change: Callable[[dict[str, Any]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        config = json.loads(file.read_text())
        change(config)
        file.write_text(json.dumps(config))

    return spoil


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return spoil


def _shift_aux(config: dict[str, Any]) -> None:
    ids = config.get("eagle_aux_hidden_state_layer_ids") or [2, 4, 5]  # the default ones of the tiny targets
    config["eagle_aux_hidden_state_layer_ids"] = [number + 1 for number in ids]


def _other_theta(config: dict[str, Any]) -> None:
    config["rope_theta"] = 3.0
    config["rope_parameters"] = {**config["rope_parameters"], "rope_theta": 3.0}


FAULTS: dict[str, tuple[Spoil, str]] = {
    "aux ids off by one": (_config(_shift_aux), "all off by +1"),
    "missing norm": (_tensors(lambda tensors: tensors.pop("norm.weight")), "norm.weight is missing"),
    "ids in d2t": (
        _tensors(lambda tensors: tensors.update(d2t=tensors["d2t"] + torch.arange(len(tensors["d2t"])))),
        "d2t holds target ids",
    ),
    "wrong rope theta": (_config(_other_theta), "the rotary embedding"),
    "wrong norm_output": (_config(lambda config: config.update(norm_output=False)), "norm_output false"),
}
"""Each with words of the sentence that names it."""
