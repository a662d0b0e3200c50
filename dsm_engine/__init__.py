"""dsm_engine: fine-tunes Llama-architecture models on mathematical instruction data."""

__version__ = "0.1.0"
