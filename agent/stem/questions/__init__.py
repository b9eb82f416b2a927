"""Questions to the Redis of a fleet, and what their answers mean: pure generators, which `client/reader.py` runs.

`query.py` says what a question is. Nothing here writes: the commands are those that leave no trace.
"""
