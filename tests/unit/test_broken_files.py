"""Files with the mistakes that people make, and exactly what the agent tells of each: place, found, expected, remedy.

`tests/fixtures/broken/NAME.yaml` has beside it NAME.expected, a message a line. A first line `# environ: A=b C=d` gives
variables. `python -m tests.unit.test_broken_files --write` writes what is told now: read the difference.
"""

import re
import sys
from pathlib import Path

import pytest

from agent.configuration import load
from agent.core.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "fixtures" / "broken"
FILES = sorted(FOLDER.glob("*.yaml"))
# Where it is, and what is to be done: a key, a value, a place to look at.
_PLACED = re.compile(r"^([a-z-]+\.yaml:\d+:\d+|environment variable \w+): ")
_REMEDY = re.compile(
    r"expected |did you mean|known here|is not set and has no default; set it|name it|leave (it|one) out|move it"
    r"|keep one|add `|indent it|give it a value|; a \w+ pipeline takes|write |quote |is closed|never closed|: name that"
    r"|is one of|here: |is \w+ here|has this anchor|with --config"
)


def told(file: Path) -> str:
    """Return the messages about a file, a line each."""
    variables = re.match(r"# environ: (.*)\n", file.read_text(encoding="utf-8"))
    environ = dict(each.split("=", 1) for each in variables[1].split(" ")) if variables else {}
    with pytest.raises(ConfigError) as refused:
        load(file, environ)
    return "".join(f"{problem}\n" for problem in refused.value.problems).replace(f"{FOLDER}/", "")


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_broken_file_is_told_exactly(file: Path) -> None:
    expected = file.with_suffix(".expected").read_text(encoding="utf-8")
    assert told(file).splitlines() == expected.splitlines()


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_each_message_names_its_place_and_a_remedy_and_no_secret(file: Path) -> None:
    for line in file.with_suffix(".expected").read_text(encoding="utf-8").splitlines():
        assert _PLACED.search(line), line
        assert _REMEDY.search(line), line
        assert "hunter2" not in line


def test_there_are_many_and_each_has_its_messages() -> None:
    assert len(FILES) >= 30
    assert {file.stem for file in FILES} == {file.stem for file in FOLDER.glob("*.expected")}


if __name__ == "__main__" and "--write" in sys.argv:
    for each in FILES:
        each.with_suffix(".expected").write_text(told(each), encoding="utf-8")
