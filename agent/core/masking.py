"""The last guard of secrets: every text that is written or shown passes through it."""

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

MASK = "***"
MIN_LENGTH = 6
"""Shorter ones are left: a password such as `redis` would mask half of every line, and hides nothing anyway."""


class Masker:
    """Replaces configured secrets wherever they occur, also as JSON, `repr` and URLs write them.

    Nothing of ours writes a secret. A peer may: a server that quotes the key it refuses, a proxy that does not know
    `AUTH` and repeats its arguments.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Hide these too from now on, such as a key that was rotated; what was known stays hidden."""
        # Of `Bearer abc` a peer may quote `abc` alone.
        words = {word for secret in secrets for word in (secret, secret.rpartition(" ")[2])}
        self._known |= {word for word in words if len(word) >= MIN_LENGTH}
        # Twice: a text that has it escaped may itself be written as JSON.
        forms = {again for secret in self._known for form in _forms(secret) for again in _forms(form)}
        # In any case: what libraries say is told in lower case here and there.
        longest_first = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if forms else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        return self._pattern.sub(MASK, text) if self._pattern else text


def _forms(secret: str) -> set[str]:
    escaped = json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]
    return {secret, *escaped, quote(secret, safe=""), quote(secret)}
