"""What an operator writes about `file_storage`."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from agent.settings.directory import nearest_there, unusable
from agent.settings.model import Config, Env
from agent.settings.types import ByteSize, Duration


class FileStorageConfig(Config):
    """Keep sealed batches, and what components know, in a directory: they survive a restart and a kill."""

    directory: Annotated[str, Env("STEM_AGENT_DIRECTORY")] = Field(
        "/var/lib/stem-agent", min_length=1, description="where; made if it is missing. One agent at a time uses it"
    )
    max_size: ByteSize = Field(
        1 << 30, ge=16 << 20, description="size of the file at the most; beyond it the oldest batches are dropped"
    )
    max_age: Duration = Field(72 * 3600.0, gt=0, description="batches older than this are dropped")
    sync: Literal["batch", "interval", "off"] = Field(
        "interval",
        description="what a power cut may cost: nothing that was sealed, the last `sync_interval`, or what the system "
        "had not written yet; a killed process loses nothing that was sealed in any case",
    )
    sync_interval: Duration = Field(0.5, gt=0, description="how often the disk is made to write, with `sync: interval`")

    def missing_here(self) -> Iterator[str]:
        """Yield why the directory cannot be used; whether another agent uses it is seen by a start alone."""
        directory = Path(self.directory)
        if reason := unusable(directory, "STEM_AGENT_DIRECTORY"):
            yield reason
        # What an agent that runs has taken there already is within max_size.
        elif (free := shutil.disk_usage(nearest_there(directory)).free + _size_below(directory)) < self.max_size:
            yield f"{directory} has {free >> 20} MiB free, less than max_size, which is {self.max_size >> 20} MiB"


def _size_below(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*") if file.is_file())
