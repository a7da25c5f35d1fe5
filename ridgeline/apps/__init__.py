"""Thin launchers, one file a verb."""
