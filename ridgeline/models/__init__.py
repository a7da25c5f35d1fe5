"""Families as data, and their lowering to Megatron-core modules."""
