"""What an operator writes about `health`."""

from typing import Annotated, Literal

from pydantic import Field

from agent.settings.model import Config, Env
from agent.settings.types import Duration, HostPort, ListenAddress


class HealthConfig(Config):
    """Answer `/livez`, `/readyz` and `/status` over HTTP."""

    endpoint: Annotated[ListenAddress, Env("STEM_HEALTH_ENDPOINT")] = Field(
        default_factory=lambda: HostPort("127.0.0.1", 13133),
        description="`host:port` to listen on; Kubernetes' probes need `${env:POD_IP}:13133`",
    )
    ready_needs: Literal["none", "receivers", "exporters", "all"] = Field(
        "none",
        description="which components must be healthy for `/readyz`; a native sidecar's readiness is the whole pod's",
    )
    unhealthy_after: Duration = Field(
        15.0, ge=0, description="a component counts as unhealthy after this long without a break"
    )
    healthy_after: Duration = Field(
        5.0, ge=0, description="a component counts as healthy again after this long without a break"
    )
    loop_timeout: Duration = Field(
        10.0, gt=0, description="`/livez` fails when the event loop has not turned for this long"
    )
