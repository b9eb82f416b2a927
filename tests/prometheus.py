"""Debian's Prometheus and promtool, where they are: unpacked into the environment by `make`, or on the PATH."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from agent.demo.valkey import free_port

_UNPACKED = Path(sys.prefix) / "debian" / "usr" / "bin"
PATIENCE_SECONDS = 30.0
SCRAPE = """
global: {{scrape_interval: 500ms, scrape_timeout: 400ms}}
scrape_configs:
  - job_name: {name}
    honor_labels: true
    metrics_path: {path}
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def binary(name: str) -> str | None:
    """Return the path of `prometheus` or `promtool`; None where there is none."""
    return shutil.which(name, path=os.pathsep.join((str(_UNPACKED), *os.get_exec_path())))


async def lint(exposition: str) -> str:
    """Return what promtool has to say about an exposition in the text format; nothing if it is content."""
    process = await asyncio.create_subprocess_exec(
        *(str(binary("promtool")), "check", "metrics"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate(exposition.encode())
    return said.decode() + (f"exit code {process.returncode}" if process.returncode else "")


class Prometheus:
    """A server that scrapes, and can be asked."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self._url = f"http://127.0.0.1:{port}/api/v1"

    async def ask(self, what: str, **parameters: str) -> Any:
        """Return the data of an answer of its API; an error is one of the test's."""
        async with self._session.get(f"{self._url}/{what}", params=parameters) as answer:
            said = json.loads(await answer.read())
        assert said["status"] == "success", (parameters, said)
        return said["data"]

    async def until(self, query: str) -> list[dict[str, Any]]:
        """Ask until the answer is not empty."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with contextlib.suppress(aiohttp.ClientError, json.JSONDecodeError):
                    if found := (await self.ask("query", query=query))["result"]:
                        return list(found)
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def scraping(folder: Path, port: int, *paths: str) -> AsyncIterator[Prometheus]:
    """Run a Prometheus that scrapes these paths of a port, as long as the context lasts."""
    own_port, config = free_port(), folder / "prometheus.yml"
    jobs = [SCRAPE.format(name=path.strip("/").replace("/", "_"), path=path, port=port) for path in paths]
    config.write_text(jobs[0] + "".join(job.partition("scrape_configs:")[2] for job in jobs[1:]))
    process = await asyncio.create_subprocess_exec(
        *(str(binary("prometheus")), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{own_port}", "--enable-feature=exemplar-storage", "--log.level=error"),
        cwd=folder,
    )
    try:
        async with aiohttp.ClientSession() as session:
            yield Prometheus(session, own_port)
    finally:
        process.kill()
        await process.wait()
