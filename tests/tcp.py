"""TCP servers for what a real one cannot be made to do on demand. None leaves a connection behind."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]
"""What is said on one connection, which stays open when nothing more is: until the other end or the server is gone."""


@contextlib.asynccontextmanager
async def serving(speak: Speak, *, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[int]:
    """Serve on a port of this host, a free one if none is given, and yield it."""
    conversations: set[asyncio.Task[Any]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            conversations.add(task)
        try:
            await speak(reader, writer)
            await asyncio.Event().wait()
        finally:
            await _abort(writer)

    server = await asyncio.start_server(converse, "127.0.0.1", port, ssl=tls)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for _ in range(10):  # what was accepted in this very moment gets its conversation, too
            await asyncio.sleep(0)
        for task in conversations:
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)


def passing_on(port: int, *, loses: Callable[[bytes], bool] = lambda _: False) -> Speak:
    """Return a conversation that a server at `port` has with the client, but for the answers that are lost."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def pump(source: asyncio.StreamReader, drain: asyncio.StreamWriter, *, back: bool) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if not (back and loses(data)):
                        drain.write(data)
            drain.close()

        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(pump(reader, inner_writer, back=False), pump(inner_reader, writer, back=True))
        finally:
            await _abort(inner_writer)

    return speak


async def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
