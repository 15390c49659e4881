"""Trial of kernels that not every device and torch has, on a small problem before anything relies on them."""

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

Computation = Callable[[], tuple[torch.Tensor, ...]]


def agrees(name: str, fast: Computation, plain: Computation, *, tolerance: float) -> bool:
    """Return whether `fast` runs and agrees with `plain`; if not, warn once, and the caller takes the plain form.

    Args:
        name: of `fast`, for the warning.
        tolerance: of each result, the largest deviation over the largest magnitude. Waits for the device.
    """
    try:
        results = fast()
    except (RuntimeError, TypeError, AttributeError) as error:  # a missing kernel or argument
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logger.warning("%s does not run here (%s); the plain form is taken", name, reason)
        return False
    for actual, expected in zip(results, plain(), strict=True):
        deviation = float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
        if not deviation <= tolerance:
            logger.warning("%s deviates by %.1e from the plain form, which is taken instead", name, deviation)
            return False
    return True
