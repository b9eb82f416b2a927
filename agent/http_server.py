"""HTTP in: what every component that answers requests does alike.

aiohttp's server is imported when there is one: it is 1.4 MiB that an agent without one does without.
"""

import os
import ssl
import time
from typing import TYPE_CHECKING

from agent.core.errors import StartupError
from agent.settings.reloading import Reloading
from agent.settings.types import HostPort

if TYPE_CHECKING:
    from aiohttp import web


async def listen(
    app: "web.Application",
    endpoint: HostPort,
    *,
    identity: str,
    options: str,
    tls: ssl.SSLContext | None = None,
    goodbye_seconds: float,
) -> "web.AppRunner":
    """Serve `app`, and return what is to be cleaned up in the end; answers under way then have `goodbye_seconds`.

    Raises `StartupError` if the address cannot be had; `options` says where another can be chosen.
    """
    from aiohttp import web  # noqa: PLC0415 - see above

    runner = web.AppRunner(app, access_log=None, shutdown_timeout=goodbye_seconds, handle_signals=False)
    try:
        await runner.setup()
        await web.TCPSite(runner, endpoint.host, endpoint.port, ssl_context=tls).start()
    except OSError as error:
        await runner.cleanup()
        reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
        raise StartupError(
            f"{identity}: failed to listen on {endpoint}: {reason}; choose another endpoint ({options})"
        ) from None
    except BaseException:
        await runner.cleanup()
        raise
    return runner


def renewed(tls: Reloading[ssl.SSLContext]) -> ssl.SSLContext:
    """Return a context that serves every new connection with the certificate as it is then."""
    front = tls.get(time.monotonic())

    def swap(connection: ssl.SSLObject, _name: str, _front: ssl.SSLContext) -> None:
        connection.context = tls.get(time.monotonic())

    # Called for every handshake, whether the client names a server or not.
    front.sni_callback = swap
    return front


def port_of(runner: "web.AppRunner | None") -> int:
    """Return the port that is listened on; 0 for none."""
    return int(runner.addresses[0][1]) if runner and runner.addresses else 0
