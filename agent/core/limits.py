"""How much of a text is kept, in characters: foreign text must not cost memory without bound."""

MAX_NAME = 255
"""Of a task's, queue's, worker's or workflow's name: names are kept for every series."""
MAX_MESSAGE = 4096
"""Of an error's message."""
MAX_STACK = 16 * 1024
"""Of a stack trace."""
