"""Values made from files: reloaded when a file changed, looked at no more often than asked."""

from pathlib import Path

import pytest

from agent.core.errors import StartupError
from agent.settings.reloading import Reloading


class Kept:
    """A value of two files, and what was told about it."""

    def __init__(self, directory: Path, interval: float = 10.0) -> None:
        self.key, self.certificate = directory / "key", directory / "certificate"
        self.key.write_text("1")
        self.certificate.write_text("1")
        self.loads = 0
        self.failures: list[str] = []
        files = [str(self.key), None, str(self.certificate)]
        self.value = Reloading(files, self.load, interval=interval, on_failure=self.failures.append)

    def load(self) -> str:
        self.loads += 1
        try:
            return f"{self.key.read_text()}+{self.certificate.read_text()}"
        except OSError as error:
            raise StartupError(f"cannot read {error.filename}") from error


def test_a_changed_file_is_used_by_the_next_look(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    assert kept.value.get(0.0) == "1+1"
    kept.key.write_text("22")
    assert kept.value.get(9.9) == "1+1", "nobody looks before the interval is over"
    assert kept.value.get(10.0) == "22+1"
    assert kept.value.get(20.0) == "22+1"
    assert kept.loads == 2, "what did not change is not read again"


def test_a_file_that_is_replaced_by_one_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    kept = Kept(tmp_path, interval=0.0)
    for version in "2345":
        fresh = tmp_path / "fresh"
        fresh.write_text(version)
        fresh.replace(kept.key)
        assert kept.value.get(0.0) == f"{version}+1"


def test_the_swap_of_a_directory_link_is_noticed_as_kubernetes_does_it(tmp_path: Path) -> None:
    for version in ("a", "b"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "key").write_text(version)
    link = tmp_path / "data"
    link.symlink_to(tmp_path / "a")
    file = link / "key"
    value = Reloading([str(file)], file.read_text, interval=0.0, on_failure=pytest.fail)
    assert value.get(0.0) == "a"
    (tmp_path / "next").symlink_to(tmp_path / "b")
    (tmp_path / "next").replace(link)
    assert value.get(0.0) == "b"


def test_a_file_that_vanishes_is_told_every_interval_and_its_last_value_stays(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.value.get(0.0)
    kept.key.unlink()
    assert [kept.value.get(now) for now in (10.0, 15.0, 20.0)] == ["1+1"] * 3
    assert kept.failures == [f"cannot read {kept.key}"] * 2
    kept.key.write_text("1")
    assert kept.value.get(30.0) == "1+1"
    assert len(kept.failures) == 2


def test_what_cannot_be_loaded_at_the_start_raises(tmp_path: Path) -> None:
    def load() -> str:
        raise StartupError("no such file")

    with pytest.raises(StartupError, match="no such file"):
        Reloading([str(tmp_path / "key")], load, interval=1.0, on_failure=pytest.fail)
