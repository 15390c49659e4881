"""What matters of this machine before a long run, in one look."""

import importlib.metadata
import os
import platform
from pathlib import Path

from eaglepipe import __version__
from eaglepipe.cache.storage import ROOT_VARIABLE, default_root
from eaglepipe.files.publish import free_bytes

_PACKAGES = ("torch", "transformers", "datasets", "pyarrow", "safetensors", "huggingface_hub")
_OPTIONAL = {"tensorboard": "trackers", "matplotlib": "plots"}


def examine() -> dict[str, str]:
    """Versions, devices, free disk and environment, each as one line."""
    import torch

    versions = {name: _installed(name) for name in _PACKAGES}
    optional = {
        name: _installed(name, f"absent: pip install 'eaglepipe[{extra}]'") for name, extra in _OPTIONAL.items()
    }
    root = default_root()
    return {
        "eaglepipe": __version__,
        "python": platform.python_version(),
        **versions,
        **optional,
        "cpu threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        "cuda": ", ".join(_devices()) or "none; everything runs on the CPU in float32",
        "cuda kernels": _kernels(),
        "cache root": f"{root} ({ROOT_VARIABLE} {'set' if ROOT_VARIABLE in os.environ else 'not set'})",
        "free for caches": f"{free_bytes(root) / 1e9:,.1f} GB",
        "free for runs": f"{free_bytes(Path.cwd()) / 1e9:,.1f} GB",
        "hub": "offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else "online, for Hub ids in recipes",
    }


def _installed(name: str, otherwise: str = "absent") -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return otherwise


def _kernels() -> str:
    """Which fused kernels training will take on the first device; the others are done plainly, as warnings say."""
    import torch

    if not torch.cuda.is_available():
        return "none to try"
    from eaglepipe.eagle.kernels.available import try_kernels

    tried = try_kernels(torch.device("cuda", 0))
    return ", ".join(f"{name} {'works' if works else 'FAILS'}" for name, works in tried.items())


def _devices() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{device.name} {device.total_memory / 2**30:.0f} GiB" for device in found]
