"""Versions, devices, free disk and environment of this machine, in one look before a long run."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from eaglepipe import __version__
from eaglepipe.cache.storage import ROOT_VARIABLE, default_root
from eaglepipe.files.publish import free_bytes
from eaglepipe.vllm_engine.requirements import SUPPORTED_VLLM, installed_vllm, is_supported

_OPTIONAL_EXTRAS = ("plots", "trackers", "wandb", "trackio", "ray", "gguf", "s3", "gcs")


def examine() -> dict[str, str]:
    """Return one line for each fact about this machine, by name."""
    import torch

    root = default_root()
    return {
        "eaglepipe": __version__,
        "python": platform.python_version(),
        **package_versions(),
        "vllm": vllm_version(),
        "cpu threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        "cuda": ", ".join(_cuda_devices()) or "none; everything runs on the CPU",
        "cuda kernels": _cuda_kernels(),
        "train.dtype auto": _train_dtype(),
        "target.dtype auto": _target_dtype(),
        "cache root": f"{root} ({ROOT_VARIABLE} {'set' if ROOT_VARIABLE in os.environ else 'not set'})",
        "free for caches": f"{free_bytes(root) / 1e9:,.1f} GB",
        "free for runs": f"{free_bytes(Path.cwd()) / 1e9:,.1f} GB",
        "hub": "offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else "online, for Hub ids in recipes",
    }


def package_versions() -> dict[str, str]:
    """Return the installed version of every dependency, with the tested range if the version is outside it."""
    versions = {}
    for requirement, extra in _requirements():
        name = requirement.name.replace("-", "_")
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = f"absent: pip install 'eaglepipe[{extra}]'" if extra else "absent"
            continue
        bounds = sorted(map(str, requirement.specifier), key=lambda bound: bound.startswith("<"))
        is_tested = requirement.specifier.contains(version, prereleases=True)
        versions[name] = version if is_tested else f"{version} (tested: {','.join(bounds)})"
    return versions


def vllm_version() -> str:
    """Return the installed version of vLLM, with the supported range if the version is outside it."""
    if (version := installed_vllm()) is None:
        return "absent: needed by target.engine=vllm alone, in an environment of its own (make engine)"
    return version if is_supported(version) else f"{version} (supported: {SUPPORTED_VLLM})"


def _requirements() -> Iterator[tuple[Requirement, str | None]]:
    """Yield the requirements of eaglepipe, then those of its optional extras, each with the extra's name."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("eaglepipe") or ()]
    yield from ((requirement, None) for requirement in requirements if requirement.marker is None)
    for extra in _OPTIONAL_EXTRAS:
        for requirement in requirements:
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                yield requirement, extra


def _cuda_devices() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{device.name} {device.total_memory / 2**30:.0f} GiB" for device in devices]


def _train_dtype() -> str:
    """Return the dtype of new runs and the reason."""
    from eaglepipe.devices import auto_dtype, resolve_device
    from eaglepipe.training.run.precision import NARROW

    device = resolve_device("auto")
    name, reason = auto_dtype(device)
    narrow = device.type == "cpu" and name == "bfloat16"
    return f"{name}: {reason}" + (f" (float32 for drafts narrower than {NARROW})" if narrow else "")


def _target_dtype() -> str:
    """Return the rule of stage 1, whose dtype is part of a cache's identity, so no processor may decide it."""
    from eaglepipe.devices import auto_dtype, resolve_device

    fast, _ = auto_dtype(resolve_device("auto"))
    return f"the checkpoint's own, on every machine, as a cache depends on it; {fast} is the fastest here"


def _cuda_kernels() -> str:
    """Return which fused kernels work on the first device; training does without the others, with a warning."""
    import torch

    if not torch.cuda.is_available():
        return "none to try"
    from eaglepipe.eagle.kernels.available import try_kernels

    results = try_kernels(torch.device("cuda", 0))
    return ", ".join(f"{name} {'works' if works else 'FAILS'}" for name, works in results.items())
