"""Everything that a forked child would import, imported once in its parent; nothing here may start a thread."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import _strptime  # noqa: F401 - what numpy, pyarrow and matplotlib import at their first use
import pkgutil
from contextlib import suppress
from importlib import import_module

import numpy.ctypeslib  # noqa: F401
import pandas  # noqa: F401
import pyarrow.compute
import pyarrow.pandas_compat  # noqa: F401
import pytest  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - the class of tiny targets

import eaglepipe

torch.set_num_threads(1)
modules = [module.name for module in pkgutil.walk_packages(eaglepipe.__path__, "eaglepipe.")]
for name in ("matplotlib.backends.backend_agg", *modules):
    if not name.endswith("__main__"):
        with suppress(ModuleNotFoundError):  # a package of an extra
            import_module(name)
eaglepipe.precompute.layout._product_rate(torch.device("cpu"), torch.float32)  # by the server, not by every child
gc.collect()
gc.freeze()  # a child's collections neither look at what lies here nor copy its pages
