"""The training loop: packs in, checkpoints and metrics out."""
