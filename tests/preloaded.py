"""Everything that a child of `tests.processes` would import, imported once in their server."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pkgutil
from importlib import import_module

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - the class of tiny targets

import eaglepipe

torch.set_num_threads(1)
for module in pkgutil.walk_packages(eaglepipe.__path__, "eaglepipe."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
