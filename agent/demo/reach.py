"""Whether anybody listens at a URL: asked at once, so that a wrong port is not found out at the end."""

import asyncio
import os
import socket
from urllib.parse import urlsplit

PATIENCE_SECONDS = 2.0
_PORTS = {"http": 80, "https": 443}


async def refusal(url: str) -> str | None:
    """Return why no connection to an HTTP URL is to be had, such as `connection refused`; None if there is one."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or _PORTS[parts.scheme])
    try:
        # In a thread, as asyncio hides the errno of a host with several addresses, such as localhost.
        connection = await asyncio.to_thread(socket.create_connection, address, PATIENCE_SECONDS)
    except TimeoutError:
        return f"no answer within {PATIENCE_SECONDS:g} s"
    except socket.gaierror as error:  # its numbers are not those of the system
        return str(error.strerror).lower()
    except OSError as error:
        return os.strerror(error.errno).lower() if error.errno else str(error).lower()
    connection.close()
    return None
