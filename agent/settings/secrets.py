"""Finding the secrets of a configuration, so that no text ever shows them."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr

from agent.settings.types import RedisUrl


def secrets_of(value: Any) -> Iterator[str]:
    """Yield every secret in a configuration model, however deep; of a URL, its password alone too."""
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        yield secret
        if "://" in secret:
            yield unquote(urlsplit(secret).password or "")
    elif isinstance(value, RedisUrl):
        yield value.password or ""
    else:
        for part in _parts(value):
            yield from secrets_of(part)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, BaseModel):
        yield from (getattr(value, name) for name in type(value).model_fields)
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
