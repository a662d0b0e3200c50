"""Devices, process groups, and what Megatron-Core needs to run on a CPU."""
