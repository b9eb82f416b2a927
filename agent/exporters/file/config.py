"""What an operator writes about `file`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from agent.exporters.sending.config import QueueConfig, RetryConfig
from agent.settings.directory import unusable
from agent.settings.model import Config, Env
from agent.settings.types import ByteSize, Duration


class FileConfig(Config):
    """Append OTLP as JSON lines to `traces.jsonl`, `metrics.jsonl` and `logs.jsonl`."""

    directory: Annotated[str, Env("STEM_FILE_DIRECTORY")] = Field(
        "/var/log/stem-agent",
        min_length=1,
        description="where; made if it is missing. One agent at a time writes there",
    )
    max_size: ByteSize = Field(
        100 << 20,
        ge=0,
        description="of a file; the line that would make it larger begins a new one, and the old one becomes "
        "`traces-20260423T100000.123456Z.jsonl`. 0: files grow for ever, or until somebody else moves them away",
    )
    max_backups: int = Field(5, ge=0, description="old files of each kind that are kept, the newest")
    sync: Literal["batch", "interval", "off"] = Field(
        "interval",
        description="what a power cut may cost: nothing that counts as delivered, the last `sync_interval`, or what "
        "the system had not written yet; a killed process loses nothing that counts as delivered in any case",
    )
    sync_interval: Duration = Field(1.0, gt=0, description="how soon the disk is made to write, with `sync: interval`")
    sending_queue: QueueConfig = Field(default_factory=QueueConfig, description="batching and queueing")
    retry_on_failure: RetryConfig = Field(default_factory=RetryConfig, description="retrying, as when the disk is full")

    def missing_here(self) -> Iterator[str]:
        """Yield why the directory cannot be used."""
        if reason := unusable(Path(self.directory), "STEM_FILE_DIRECTORY"):
            yield reason

    @property
    def auth_grace(self) -> float:
        """A file refuses nobody's key."""
        return 0.0

    @property
    def max_requests_per_second(self) -> int:
        """A file is not throttled."""
        return 0
