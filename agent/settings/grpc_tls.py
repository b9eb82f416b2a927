"""TLS as grpc wants it. Imports grpc, so it is itself imported only where it is used."""

import ssl
from pathlib import Path

import grpc

from agent.core.errors import StartupError
from agent.settings.tls import ClientTls


def credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """Read the files; raises `StartupError` for those that cannot be used."""
    tls.context()  # grpc itself would only say, much later, that connecting failed
    try:
        return grpc.ssl_channel_credentials(
            root_certificates=_read(tls.ca_file or _system_authorities()),
            private_key=_read((tls.key_file or tls.cert_file) if tls.cert_file else None),
            certificate_chain=_read(tls.cert_file),
        )
    except OSError as error:
        raise StartupError(f"failed to load tls files {', '.join(tls.files)}: {error}") from error


def _read(file: str | None) -> bytes | None:
    return Path(file).read_bytes() if file else None


def _system_authorities() -> str | None:
    """Return the system's bundle, which grpc would not use by itself; None for grpc's own."""
    paths = ssl.get_default_verify_paths()
    candidates = (paths.cafile, f"{paths.capath}/ca-certificates.crt" if paths.capath else None)
    return next((file for file in candidates if file and Path(file).is_file()), None)
