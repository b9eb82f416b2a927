"""The fixtures of the integration tests that pods need."""

from tests.integration.conftest import start

__all__ = ["start"]
