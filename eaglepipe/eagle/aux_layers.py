"""Which target layers a draft reads, as boundaries: boundary b is `output_hidden_states[b]`, what layer b-1 gives."""


def default_boundaries(num_layers: int) -> tuple[int, int, int]:
    """What every engine takes where a draft's config names none: [2, n//2, n-3] of n layers, distinct or not."""
    return 2, num_layers // 2, num_layers - 3
