"""TLS: the same options wherever the agent is the client, and the same wherever it is the server."""

import ssl
from collections.abc import Callable

from pydantic import Field, model_validator

from agent.core.errors import StartupError
from agent.settings.model import Config
from agent.settings.reloading import Reloading
from agent.settings.types import Duration, Flag, expected

# Shared so that a component can name its own variables for a field and keep everything else.
CA_FILE = Field(None, description="PEM file of the certificate authorities to trust; the system's when absent")
CERT_FILE = Field(None, description="PEM file of the client's certificate")
KEY_FILE = Field(None, description="PEM file of the client's private key")
INSECURE_SKIP_VERIFY = Field(default=False, description="accept any certificate; for tests only")


class ClientTls(Config):
    """What to trust, and what to show. The server's certificate is verified by default."""

    ca_file: str | None = CA_FILE
    cert_file: str | None = CERT_FILE
    key_file: str | None = KEY_FILE
    insecure_skip_verify: Flag = INSECURE_SKIP_VERIFY

    def context(self) -> ssl.SSLContext:
        """Build the TLS context; raises `StartupError` naming the files that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ValueError) as error:
            raise StartupError(f"failed to load tls files {', '.join(self.files)}: {error}") from error
        if self.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are named."""
        return tuple(filter(None, (self.ca_file, self.cert_file, self.key_file)))

    def reloading(self, interval: float, on_failure: Callable[[str], None]) -> Reloading[ssl.SSLContext]:
        """Return the TLS context, made anew when its files change; raises `StartupError` as `context` does."""
        return Reloading(self.files, self.context, interval=interval, on_failure=on_failure)


class ServerTls(Config):
    """What to show to those who connect to us, and whom to let in. Without a certificate there is no TLS."""

    cert_file: str | None = Field(None, description="PEM file of the certificate, with those above it; absent: no TLS")
    key_file: str | None = Field(None, description="PEM file of the private key; absent: `cert_file` has it, too")
    client_ca_file: str | None = Field(
        None, description="PEM file of the certificate authorities whose clients are let in; absent: all are"
    )
    reload_interval: Duration = Field(
        10.0, gt=0, description="how often the files are looked at; changed ones are used by new connections"
    )

    @model_validator(mode="after")
    def _has_a_certificate(self) -> "ServerTls":
        if self.cert_file is None and (self.key_file or self.client_ca_file):
            raise expected("cert_file beside key_file and client_ca_file")
        return self

    def context(self) -> ssl.SSLContext:
        """Build the TLS context; raises `StartupError` naming the files that cannot be used."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.cert_file or "", self.key_file)
            if self.client_ca_file:
                context.load_verify_locations(self.client_ca_file)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:
            raise StartupError(f"failed to load tls files {', '.join(self.files)}: {error}") from error
        return context

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are named."""
        return tuple(filter(None, (self.cert_file, self.key_file, self.client_ca_file)))

    def reloading(self, on_failure: Callable[[str], None]) -> Reloading[ssl.SSLContext]:
        """Return the TLS context, made anew when its files change; raises `StartupError` as `context` does."""
        return Reloading(self.files, self.context, interval=self.reload_interval, on_failure=on_failure)
