"""How far plans lie from what others measured: one command, `python -m tests.accuracy`, writes docs/accuracy.md."""
