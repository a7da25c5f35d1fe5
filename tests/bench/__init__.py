"""Paired timings: each compares two ways of doing one thing in one run, since absolute times drift."""
