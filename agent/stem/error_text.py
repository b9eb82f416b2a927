"""From the text of an error to its type: low in cardinality, as `error.type` must be.

Stem forwards `error.toString()`, and Dart's core errors print a phrase where others print their class.
"""

import re

OTHER = "_OTHER"
_MAX_TYPE_LENGTH = 80

# Dart SDK, `sdk/lib/core/errors.dart` and `sdk/lib/core/exceptions.dart`: what `toString` begins with.
_DART_PHRASES = (
    ("Bad state", "StateError"),
    ("Invalid argument", "ArgumentError"),
    ("RangeError", "RangeError"),
    ("Null check operator", "TypeError"),
    ("type '", "TypeError"),
    ("Unsupported operation", "UnsupportedError"),
    ("UnimplementedError", "UnimplementedError"),
    ("Concurrent modification", "ConcurrentModificationError"),
    ("NoSuchMethodError", "NoSuchMethodError"),
    ("Stack Overflow", "StackOverflowError"),
    ("Out of Memory", "OutOfMemoryError"),
    ("TimeoutException", "TimeoutException"),
    ("Assertion failed", "AssertionError"),
)
_CLASS = re.compile(r"\s*(?:[a-z_][\w]*\.)*([A-Z]\w*)(?:<[^>\n]*>)?\s*(?:[:(]|$|\n)")


def error_type(text: str | None) -> str:
    """Return the class that an error's text names, or `_OTHER`.

    `SocketException: Connection refused` gives `SocketException`; `Bad state: No element` gives `StateError`.
    """
    if not text:
        return OTHER
    for phrase, name in _DART_PHRASES:
        if text.startswith(phrase):
            return name
    match = _CLASS.match(text)
    return match[1] if match and len(match[1]) <= _MAX_TYPE_LENGTH else OTHER
