"""Readers of published sources, one file each: from a file's rows to examples."""
