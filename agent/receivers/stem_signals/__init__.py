"""`stem_signals`: Stem's lifecycle signals from Redis pub/sub.

| module | what it decides |
| --- | --- |
| `config` | what an operator writes |
| `session` | the RESP conversation, without I/O: handshake, messages, named ends |
| `connection` | the socket: one attempt to connect, and everything the session says goes down the wire |
| `canary` | whether what is published still comes back |
| `backlog` | raw messages waiting to be decoded, bounded in bytes, and outages in their place between them |
| `sequence` | holes and repeats in an emitter's numbering |
| `state` | how that numbering is kept from one process to the next |
| `receiver` | reconnects, decodes, hands on |

Own protocol code on hiredis, because redis-py's pub/sub costs ten times as much per message and reconnects without
telling (both measured): we must know about every gap.
"""
