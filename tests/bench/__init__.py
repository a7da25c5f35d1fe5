"""Paired timings: each compares two ways of doing one thing in the same run, since absolute times drift."""
