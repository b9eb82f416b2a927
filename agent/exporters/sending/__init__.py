"""What every exporter to a network has in common: batch, seal, queue, send with retry, account.

    consume -> batch (by items, bytes, age) -> seal (serialise and compress once, in a thread)
            -> queue (bounded in bytes, oldest dropped first) -> send, retry with back-off -> ledger

| module | what it decides |
| --- | --- |
| `config` | what an operator writes |
| `batcher` | when a batch is full, and what goes into one: pure |
| `outcome` | what an attempt can come to: values |
| `delivery` | what an outcome means for the batch, when to try again: pure |
| `sealed` | the unit of queueing, retry and accounting |
| `queue` | where sealed batches wait: in memory, or on a disk |
| `watch` | how deliveries and queues are doing, for the status |
| `events` | what is told of it |
| `sender` | the queue of one exporter and one kind, with the tasks that empty it |

There is one sender per exporter and kind, so that one slow destination never holds up another.
"""
