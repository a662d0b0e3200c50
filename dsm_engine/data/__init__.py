"""From published sources to packed batches."""
