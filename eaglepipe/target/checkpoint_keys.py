"""What transformers reports about the tensors of a checkpoint that it has loaded."""

from typing import Any

from eaglepipe.errors import TargetError


def check_all_loaded(info: dict[str, Any], path: str) -> None:
    """Check that every weight of the model at `path` came from its checkpoint.

    Raises:
        TargetError: some are missing or of another shape.
    """
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        wrong = sorted(_described(key) for key in info.get(kind) or ())
        if wrong:
            shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
            raise TargetError(
                f"target {path!r}: the checkpoint does not fit its config: {kind.replace('_', ' ')}: {shown}"
            )


def _described(key: Any) -> str:
    """A key of the checkpoint; with its two shapes if they differ."""
    if isinstance(key, tuple):
        return f"{key[0]} is {list(key[1])}, not {list(key[2])}"
    return str(key)
