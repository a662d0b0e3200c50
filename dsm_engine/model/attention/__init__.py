"""Block-diagonal causal attention over packs: one interface, several backends."""
