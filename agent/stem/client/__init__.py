"""Asking, with a connection: `reader.py` runs questions, `stem_client.py` answers users with typed values."""
