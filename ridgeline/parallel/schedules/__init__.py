"""Generators of schedules, one a module, and the table of them by name."""
