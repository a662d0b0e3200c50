"""Torch operators over csrc, each beside a plain torch reference."""
