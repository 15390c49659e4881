"""The `speculators` package, whose training steps are compared with ours where it is installed."""

from importlib.metadata import version
from importlib.util import find_spec

import torch

from eaglepipe.errors import ConfigError


def require_speculators() -> str:
    """Return the name and version of the installed package.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("speculators") is None:
        raise ConfigError(
            "bench step --peers compares with the package speculators, which this environment lacks; install it "
            "(pip install speculators), or leave --peers out"
        )
    return f"speculators {version('speculators')}"


def attentions(device: torch.device) -> tuple[str, ...]:
    """Return the attentions that it can train with on a device."""
    return ("simple_flex_attention",) if device.type == "cuda" else ("sdpa", "eager")


def loss_implementation(device: torch.device) -> str:
    """Return the implementation of its losses that runs on a device; the fused one needs Triton."""
    return "fused" if device.type == "cuda" else "eager"
