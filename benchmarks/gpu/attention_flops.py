"""The one formula by which the floating-point operations of packed attention are counted."""

from collections.abc import Iterable


def attention_flops(lengths: Iterable[int], num_heads: int, head_dim: int) -> tuple[int, int]:
    """Operations of block-diagonal causal attention over documents, forward and backward.

    A document of L tokens has L (L + 1) / 2 pairs of a query and a key it attends to. Forward, a
    pair costs a head two products of length head_dim, query by key and probability by value, of a
    multiplication and an addition each: 4 * head_dim. Backward, five such products take the place
    of the two (the scores once more, and the gradients of probabilities, values, queries and
    keys): 2.5 times as many. Softmax is not counted, nor is what a kernel computes outside the
    mask: a kernel that computes more gains nothing by it. Groups of shared keys change nothing.
    """
    num_pairs = sum(length * (length + 1) // 2 for length in lengths)
    product = 2 * num_heads * head_dim * num_pairs
    return 2 * product, 5 * product
