"""The model: Megatron-Core layer specs, attention over packs, loss, Hugging Face weights."""
