"""`stem_tail`: what a fleet does that says nothing by itself, read from its streams and result records.

| module | concern |
| --- | --- |
| `config`, `events` | what an operator writes, and what the agent says |
| `positions` | how far each stream was read; pure |
| `flight`, `judge` | one task under way, and what a change of its record means; pure |
| `flights` | which tasks are under way, and whose record is to be read when; pure |
| `fleet` | which queues and workers there are, what was given up, whom other agents hear; pure |
| `hold` | facts in their order, those of a new worker a moment later; pure |
| `session` | all of these together: entries and records in, facts out; pure |
| `notes` | all of these as bytes, for whoever goes on; pure |
| `journal`, `memory` | when notes are written, and where |
| `listener`, `records` | keyspace notifications, and reading records at a pace |
| `receiver` | the shell: reads while it leads |
"""
