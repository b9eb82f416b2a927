"""What all probes have in common: which stores they ask and how, and what they say when they get no answer."""

import asyncio
import contextlib
import inspect
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from agent.cli.report import tell
from agent.cli.status import EXIT_UNKNOWN
from agent.core.errors import AgentError
from agent.settings.types import parse_bool, parse_duration
from agent.stem.client.errors import UnreachableError

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient

Answer = TypeVar("Answer")
BROKER, BACKEND, SCHEDULES = "STEM_BROKER_URL", "STEM_RESULT_BACKEND_URL", "STEM_SCHEDULE_STORE_URL"
_NAMED_BY = {
    "broker": ("--broker", BROKER),
    "result backend": ("--backend", BACKEND),
    "schedule store": ("--schedules", SCHEDULES),
}
_USAGE = 2
_LINE_END = re.compile(r"(?<!\n)\n(?!\n)")


@contextlib.contextmanager
def _wrong_use_is_unknown() -> Iterator[None]:
    """Give click's `UsageError` (typer may carry its own copy of click) the exit code 3."""
    try:
        yield
    except Exception as error:
        if getattr(error, "exit_code", None) == _USAGE:
            error.exit_code = EXIT_UNKNOWN  # type: ignore[attr-defined]
        raise


class ProbeCommand(TyperCommand):
    """A command whose wrong use is `unknown` to a monitoring system: click's own code, 2, would be `critical`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; raises click's `UsageError` with the exit code 3."""
        with _wrong_use_is_unknown():
            return super().parse_args(ctx, args)


class ProbeGroup(TyperGroup):
    """The same for commands that belong together: a command that is missing, or that there is none of."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; raises click's `UsageError` with the exit code 3."""
        with _wrong_use_is_unknown():
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; raises click's `UsageError` with the exit code 3."""
        with _wrong_use_is_unknown():
            return super().resolve_command(ctx, args)


class BadOption(Exception):  # noqa: N818 - a command's, told and turned into an exit code
    """An option, or a variable, that is not what it should be."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a probe asks, and how its answer is wanted. `timeout` is seconds a round trip."""

    broker: str
    backend: str | None
    schedules: str | None
    namespace: str
    store_namespace: str
    timeout: str
    as_json: bool

    @property
    def timeout_s(self) -> float:
        """Seconds that a round trip may take; raises `BadOption`."""
        return duration_of("--timeout", self.timeout)

    def client(self) -> "StemClient":
        """Return a client that has yet to connect; raises `BadOption`, or an `AgentError` as `connect` does."""
        from agent.stem.client.stem_client import StemClient  # noqa: PLC0415 - pydantic, for those who ask

        return StemClient.connect(
            self.broker,
            results_url=self.backend,
            schedules_url=self.schedules,
            namespace=self.store_namespace,
            worker_namespace=self.namespace,
            timeout=self.timeout_s,
            **tls_options(os.environ),
        )


def tls_options(environ: Any) -> dict[str, Any]:
    """Return the options of TLS that Stem's variables name; raises `BadOption`."""
    insecure = environ.get("STEM_TLS_ALLOW_INSECURE") or "false"
    try:
        skip = parse_bool({"1": "true", "0": "false"}.get(insecure, insecure))  # as RedisTls reads it
    except ValueError as error:
        raise BadOption(f"STEM_TLS_ALLOW_INSECURE: expected {error}") from None
    files = {"ca_file": "STEM_TLS_CA_CERT", "cert_file": "STEM_TLS_CLIENT_CERT", "key_file": "STEM_TLS_CLIENT_KEY"}
    return {"insecure_skip_verify": skip, **{name: environ.get(key) or None for name, key in files.items()}}


def duration_of(option: str, text: str) -> float:
    """Return the seconds of an option such as `5m`; raises `BadOption`."""
    try:
        seconds = float(parse_duration(text))
    except ValueError as error:
        raise BadOption(f"{option}: found {text!r}, expected {error}") from None
    if not seconds:
        raise BadOption(f"{option}: expected a duration above zero")
    return seconds


def _shared(
    broker: Annotated[
        str, typer.Option("--broker", envvar=BROKER, metavar="URL", help="The Redis of the queues.")
    ] = "redis://localhost:6379/0",
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend", envvar=BACKEND, metavar="URL", help="That of results and heartbeats; else the broker."
        ),
    ] = None,
    schedules: Annotated[
        str | None, typer.Option("--schedules", envvar=SCHEDULES, metavar="URL", help="That of the schedules.")
    ] = None,
    namespace: Annotated[
        str,
        typer.Option("--namespace", envvar="STEM_WORKER_NAMESPACE", metavar="NAME", help="The worker namespace."),
    ] = "stem",
    store_namespace: Annotated[
        str, typer.Option("--store-namespace", metavar="NAME", help="What the stores' keys begin with.")
    ] = "stem",
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help="How long to wait for answers.")] = "5s",
    as_json: Annotated[bool, typer.Option("--json", help="JSON, in one line.")] = False,  # noqa: FBT002 - typer's form
) -> None:
    """Declare the options that every probe has."""


def with_stores(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first argument is `stores`, the options of all probes besides its own."""
    shared = inspect.signature(_shared).parameters
    own = [parameter for name, parameter in inspect.signature(command).parameters.items() if name != "stores"]

    @wraps(command)
    def probe(**options: Any) -> None:
        try:
            command(Stores(**{name: options.pop(name) for name in shared}), **options)
        except (BadOption, AgentError) as error:
            fail(error)

    # The help is as wide as the terminal, not as the source.
    probe.__doc__ = _LINE_END.sub(" ", inspect.cleandoc(command.__doc__ or ""))
    parameters = [*own, *shared.values()]
    probe.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    probe.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return probe


def ask(stores: Stores, question: "Callable[[StemClient], Awaitable[Answer]]") -> Answer:
    """Connect, ask, and return the answer; raises `BadOption` or an `AgentError`, which `with_stores` tells."""

    async def answered() -> Answer:
        async with stores.client() as client:
            return await question(client)

    return asyncio.run(answered())


def _elsewhere(error: Exception | str) -> str:
    """Say how to name another server, where one does not answer; a client from Python has no options."""
    if not isinstance(error, UnreachableError) or error.store not in _NAMED_BY:
        return ""
    option, variable = _NAMED_BY[error.store]
    return f"; {option}, or {variable}, names another"


def fail(error: Exception | str) -> None:
    """Tell in one line why there is no answer, and what to look at, and exit with `unknown`."""
    tell(f"error: {error}{_elsewhere(error)}")
    raise typer.Exit(EXIT_UNKNOWN)
