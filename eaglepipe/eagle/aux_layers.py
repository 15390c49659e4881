"""Target layers that a draft reads, as boundaries: boundary b is `output_hidden_states[b]`, the output of layer b-1."""


def default_boundaries(num_layers: int) -> tuple[int, int, int]:
    """Return the boundaries that engines take if a draft's config names none: [2, n//2, n-3] of n layers."""
    return 2, num_layers // 2, num_layers - 3
