"""`stem_tail`: what a fleet does that says nothing by itself, read from its streams and result records.

config.py         what an operator writes
positions.py      how far each stream was read, pure
flights.py        which tasks are under way, whose record is to be read when, and what a change of it means; pure
state.py          both as bytes, from one process to the next; pure
listener.py       keyspace notifications, where the server sends them
receiver.py       the shell: reads while it leads

Not registered yet, so no configuration can name it: `correlate` does not take its facts (`agent.stem.wire.Tailed`).
"""
