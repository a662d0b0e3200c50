"""What a training run will take, before it begins: memory, communication, time. No GPU, no torch.

docs/planning.md has the formulas, their sources and the assumptions.
"""
