"""Exporters: where telemetry goes out."""
