"""Launch scripts of MindSpeed-LLM and Megatron-LM, read as data and written back as arguments."""
