"""Loads exported drafts with the `speculators` package's own code and records the logits that its modules compute.

    python tests/engine/speculators_logits.py TARGET ROOT

in an environment with speculators 0.9, without eaglepipe. ROOT holds one folder a draft, each with the export in
`draft` and inputs in `inputs.safetensors`; `logits.safetensors` is written beside them, or `refused.txt`, an error.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from speculators import SpeculatorModel
from speculators.losses import resolve_loss_config
from speculators.models.peagle.core import PEagleDraftModel
from speculators.models.peagle.data import generate_cod_sample_indices


def loaded(folder: Path, target: Path) -> Any:
    """Return the draft as the package loads it, with a local target instead of the one that its config names."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["speculators_config"]["verifier"]["name_or_path"] = str(target)
    config["transformer_layer_config"]["_attn_implementation"] = "eager"
    file.write_text(json.dumps(config))
    return SpeculatorModel.from_pretrained(str(folder), dtype=torch.float32).float().eval()


@torch.no_grad()
def record(model: Any, io: dict[str, torch.Tensor], steps: int) -> dict[str, torch.Tensor]:
    logits: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda _module, _args, output: logits.append(output[0].clone()))
    if isinstance(model, PEagleDraftModel):
        total = io["ids"].shape[1]
        mask, settings = torch.ones(1, total), {"num_depths": steps}
        torch.manual_seed(5)
        anchors, depths = generate_cod_sample_indices(total, mask, **settings)
        last_hidden = torch.randn(1, total, model.hidden_size)
        torch.manual_seed(5)  # the model draws the same elements again
        model(io["aux"], io["ids"], io["documents"], loss_mask=mask, loss_config=resolve_loss_config("ce", "eager"),
              verifier_last_hidden_states=last_hidden, **settings)  # fmt: skip
        return {"anchors": anchors, "depths": depths, "logits": torch.stack(logits)}
    model(io["aux"], io["ids"], io["documents"], ttt_steps=steps)
    return {"logits": torch.stack(logits)}


def main(target: Path, root: Path) -> None:
    for inputs in sorted(root.glob("*/inputs.safetensors")):
        folder = inputs.parent
        io = load_file(inputs)
        try:
            recorded = record(loaded(folder / "draft", target), io, int(io.pop("steps")))
        except Exception as error:  # noqa: BLE001 - whatever the loader stops with is its answer
            (folder / "refused.txt").write_text(f"{type(error).__name__}: {error}")
        else:
            save_file({key: value.contiguous() for key, value in recorded.items()}, folder / "logits.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
