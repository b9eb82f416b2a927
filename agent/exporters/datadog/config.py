"""What an operator writes about `datadog`."""

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from agent.settings.model import Config, Env
from agent.settings.types import Duration, expected, split_url

_SOCKETS = ("unix", "unixgram", "unixstream")


def _parse_url(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    wanted = expected("udp://host:port, unix:///path/of/the/socket, unixgram:// or unixstream://")
    scheme, _, path = value.partition("://")
    if scheme in _SOCKETS:
        if not path.startswith("/"):
            raise wanted
        return value
    if split_url(value, {"udp"}, wanted).port is None:
        raise wanted
    return value


class DatadogConfig(Config):
    """Send metrics to a Datadog agent, by DogStatsD; `otlp_http` reaches Datadog without one."""

    url: Annotated[str | None, BeforeValidator(_parse_url), Env("DD_DOGSTATSD_URL", unless="host")] = Field(
        None, description="`udp://host:port` or `unix:///path/of/the/socket`; absent: `host` and `port`"
    )
    host: Annotated[str, Env("DD_AGENT_HOST")] = Field("localhost", min_length=1, description="where the agent listens")
    port: Annotated[int, Env("DD_DOGSTATSD_PORT")] = Field(8125, gt=0, le=65535, description="its UDP port")
    timeout: Duration = Field(
        1.0, gt=0, description="how long a socket may take nothing before the rest of a batch is given up"
    )
    tags: tuple[str, ...] = Field((), description="sent with everything, as `key:value`")
    resource_tags: tuple[str, ...] = Field(
        ("service.name", "service.version", "deployment.environment.name"),
        description="resource attributes that become tags; those that Datadog knows get its names "
        "(`service`, `version`, `env`, `kube_namespace`, ...)",
    )

    @property
    def address(self) -> str:
        """Where it goes, as a URL."""
        return self.url or f"udp://{self.host}:{self.port}"

    @property
    def udp(self) -> tuple[str, int] | None:
        """Host and port; None for a socket."""
        parts = urlsplit(self.address)
        return (parts.hostname or "", parts.port or 0) if parts.scheme == "udp" else None
