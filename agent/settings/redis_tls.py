"""TLS towards Redis, by Stem's own variables."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from agent.settings.model import Env
from agent.settings.tls import CA_FILE, CERT_FILE, INSECURE_SKIP_VERIFY, KEY_FILE, ClientTls
from agent.settings.types import Flag


def _as_stem_reads_it(value: Any) -> Any:
    """Stem takes `1` for true in this variable (`packages/stem/lib/src/security/tls.dart`)."""
    return {"1": "true", "0": "false"}.get(value, value) if isinstance(value, str) else value


class RedisTls(ClientTls):
    """TLS towards Redis, used when the URL says `rediss://`."""

    ca_file: Annotated[str | None, Env("STEM_TLS_CA_CERT")] = CA_FILE
    cert_file: Annotated[str | None, Env("STEM_TLS_CLIENT_CERT")] = CERT_FILE
    key_file: Annotated[str | None, Env("STEM_TLS_CLIENT_KEY")] = KEY_FILE
    insecure_skip_verify: Annotated[Flag, Env("STEM_TLS_ALLOW_INSECURE"), BeforeValidator(_as_stem_reads_it)] = (
        INSECURE_SKIP_VERIFY
    )
