"""The chart, rendered by the real Helm engine; its pods, started on this machine."""
