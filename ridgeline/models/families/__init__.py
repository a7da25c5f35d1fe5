"""Families of models, one small file of data each."""
