"""The order in which packs are trained on."""

from dsm_engine import _core
from dsm_engine.data.pack_index import check_word
from dsm_engine.errors import DsmError


class PackOrder:
    """The order of the packs, stateless: position p is in epoch p // num_packs.

    Every epoch is a permutation of its own; any rank of any layout asks for any position in O(1).
    Raises DsmError where there is no pack to order.
    """

    def __init__(self, num_packs: int, seed: int) -> None:
        if not 0 < num_packs < 1 << 63:
            raise DsmError(f"an order of packs needs at least one pack, found {num_packs}")
        self.num_packs = num_packs
        self.seed = check_word("seed", seed)
        self._core = _core.PackOrder(num_packs, seed)

    def pack_at(self, position: int) -> int:
        """The pack at `position`, 0 to 2^63 - 1. Raises DsmError outside."""
        if not 0 <= position < 1 << 63:
            raise DsmError(f"a pack's position is at least 0 and below 2^63, found {position}")
        return self._core.pack_at(position)
