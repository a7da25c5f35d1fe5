"""Specs, transforms, errors, serialisation and model arithmetic."""
