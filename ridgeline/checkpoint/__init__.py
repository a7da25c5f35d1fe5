"""Names, reshard plans, formats."""
