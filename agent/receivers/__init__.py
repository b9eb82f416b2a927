"""Receivers: where signals come in."""
