"""A kernel that not every device and torch has is tried once on a small problem before anything relies on it."""

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

Computation = Callable[[], tuple[torch.Tensor, ...]]


def agrees(name: str, fast: Computation, plain: Computation, *, tolerance: float) -> bool:
    """Whether `fast` runs and gives what `plain` gives; if not, one warning, and the caller takes the plain way.

    Args:
        name: what `fast` is called in the warning.
        tolerance: of each result, the largest deviation over the largest magnitude. Waits for the device.
    """
    try:
        found = fast()
    except (RuntimeError, TypeError, AttributeError) as error:  # a kernel or an argument that is not there
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logger.warning("%s does not run here (%s); the plain form is taken", name, reason)
        return False
    for actual, expected in zip(found, plain(), strict=True):
        deviation = float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
        if not deviation <= tolerance:
            logger.warning("%s deviates by %.1e from the plain form, which is taken instead", name, deviation)
            return False
    return True
