"""Safetensors files with changed headers, and weights in every other form that a folder may hold."""

import json
import pickle
import random
from pathlib import Path

from tests.fuzz.values import PICKLE, hostile, json_text, mutate, mutate_bytes


def mutate_tensors(path: Path, rng: random.Random) -> None:
    """Change a safetensors file: its header, its bytes, or the form in which a folder stores weights."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    change = rng.randrange(7)
    if change <= 2:
        _write(path, json_text(mutate(header, rng)).encode("utf-8", "surrogatepass"), body)
    elif change == 3:
        path.write_bytes(mutate_bytes(data, rng))
    elif change == 4:
        declared = rng.choice((0, 1, size + 8, 2**31, 2**63, 2**64 - 1))
        path.write_bytes(declared.to_bytes(8, "little") + data[8:])
    elif change == 5:
        values = bytearray(body)
        for _ in range(8):
            at = rng.randrange(max(1, len(values) - 4))
            values[at : at + 4] = bytes.fromhex(rng.choice(("ffffff7f", "0000807f", "ffffffff", "807f807f")))
        _write(path, json.dumps(header).encode(), bytes(values))
    else:
        _other_form(path, rng)


def _write(path: Path, header: bytes, body: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)


def _other_form(path: Path, rng: random.Random) -> None:
    """The weights as parts with an index, or as a pickle."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors, folder = load_file(path), path.parent
    if path.name != "model.safetensors" or rng.random() < 0.4:
        path.unlink()
        target = folder / "pytorch_model.bin"
        choice = rng.randrange(4)
        if choice == 0:
            torch.save(tensors, target)
            target.write_bytes(mutate_bytes(target.read_bytes(), rng))
        elif choice == 1:
            torch.save(rng.choice(({"x": object()}, [1, 2], {"x": 1}, {}, None, {1: torch.zeros(2)})), target)
        elif choice == 2:
            target.write_bytes(PICKLE)
        else:
            target.write_bytes(pickle.dumps({"a": [1, 2]}))
        return
    names = sorted(tensors)
    halves = names[::2], names[1::2]
    weight_map = {}
    for number, half in enumerate(halves, start=1):
        part = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / part)
        weight_map |= dict.fromkeys(half, part)
    path.unlink()
    index = mutate({"metadata": {"total_size": 1}, "weight_map": weight_map}, rng)
    (folder / "model.safetensors.index.json").write_text(json_text(index if rng.random() < 0.9 else hostile(rng)))
