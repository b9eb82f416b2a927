"""What the agent says about itself: events (a log line and a counter in one), log format, self metrics."""
