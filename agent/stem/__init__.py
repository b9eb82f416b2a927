"""What Stem puts on Redis, and what its signals look like on our channel, as pure code; and a client on top of it.

    catalogue.py, keys.py, envelope.py, heartbeat.py, status.py, wire.py ...     the forms themselves
    questions/     what can be asked of Redis without a trace: queues, workers, schedules, one task
    client/        the connection that asks, and `StemClient`
    control/       asking the workers themselves

Facts were read in Stem's source at 0.2.1; where a name or form is surprising, the comment says so.

`from agent.stem import StemClient` is for users. It is loaded when it is asked for: the agent's hot path imports this
package too, and must not pay for pydantic.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient

__all__ = ["StemClient"]


def __getattr__(name: str) -> Any:
    if name != "StemClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agent.stem.client.stem_client import StemClient  # noqa: PLC0415 - see above

    return StemClient
