"""Ridgeline: LLM training for Ascend NPUs as a functional core over Megatron-core."""
