"""Processors: what is changed on the way."""
