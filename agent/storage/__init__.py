"""`file_storage`: sealed batches, and what components know, in a SQLite file that survives a restart and a kill.

    sender -> queue of one exporter and kind -> FileStorage (event loop) -> Disk (one thread) -> Database (SQLite)

| module | what it decides |
| --- | --- |
| `config` | what an operator writes |
| `rows` | what a row is, what it costs, and whether it is what was written: pure |
| `database` | one SQLite file: every method is one transaction |
| `salvage` | what becomes of a file that cannot be read |
| `disk` | what happens while the disk cannot be used, or is somebody else's |
| `file_storage` | the extension: the disk for those who live in the event loop |

A batch is a row from the moment it was sealed to the moment it was accepted, refused or given up; in the same
transaction the books of its queue move, so that they add up after a kill at any instruction.
"""
