"""The sample files are what they say: they need the variables that they name, and none has a secret in it."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from agent.configuration import load
from agent.core.errors import ConfigError
from agent.otlp.batch import Kind
from tests.samples import CONFIG, GATEWAY, REQUIRED, ROOT, SIDECAR, VENDORS, vendor_file

README = (ROOT / "README.md").read_text(encoding="utf-8")
COLLECTORS = sorted(CONFIG.rglob("*.collector.yaml"))
EVERY = pytest.mark.parametrize("file", REQUIRED, ids=lambda file: str(file.relative_to(CONFIG)))


def head_of(file: Path) -> str:
    """Return the comment that a file begins with."""
    return "\n".join(re.match(r"(#.*\n)+", file.read_text(encoding="utf-8"))[0].splitlines()[1:])  # type: ignore[index]


def test_every_file_is_tested() -> None:
    assert {*REQUIRED, *COLLECTORS} == set(CONFIG.rglob("*.yaml"))


@EVERY
def test_a_file_is_valid_with_its_variables(file: Path) -> None:
    assert load(file, REQUIRED[file]).warnings == []


@pytest.mark.parametrize(
    ("file", "variable"),
    [pytest.param(file, name, id=f"{file.stem}-{name}") for file, names in REQUIRED.items() for name in names],
)
def test_a_variable_that_is_not_set_is_named(file: Path, variable: str) -> None:
    environ = {name: value for name, value in REQUIRED[file].items() if name != variable}
    with pytest.raises(ConfigError) as caught:
        load(file, environ)
    assert f"environment variable {variable} is not set and has no default" in str(caught.value)


@EVERY
def test_a_file_says_what_to_set_what_to_run_and_what_comes_of_it(file: Path) -> None:
    if file.name == "default.yaml":
        return
    head, text = head_of(file), file.read_text(encoding="utf-8")
    assert f"stem-agent run --config config/{file.relative_to(CONFIG)}\n" in head
    assert "# You see: " in head
    assert all(f"export {name}=" in head for name in REQUIRED[file])
    assert not [value for value in REQUIRED[file].values() if value in text.replace(head, "")]
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", VENDORS)
def test_the_readme_has_a_row_for_each_vendor_with_all_its_variables(name: str) -> None:
    (row,) = re.findall(rf"^\| .*\(config/vendors/{name}\.yaml\).*$", README, re.MULTILINE)
    used = set(re.findall(r"\$\{env:(\w+)", vendor_file(name).read_text(encoding="utf-8")))
    told = re.findall(r"(\[?)`([A-Z_]+)`", row)
    assert {variable for _, variable in told} - {"GOOGLE_CLOUD_PROJECT"} == used
    assert {variable for bracket, variable in told if not bracket} - {"GOOGLE_CLOUD_PROJECT"} == set(VENDORS[name])


@pytest.mark.parametrize("over", [GATEWAY, SIDECAR], ids=lambda file: file.stem)
@pytest.mark.parametrize("name", VENDORS)
def test_a_vendors_file_goes_below_the_other_two(name: str, over: Path) -> None:
    environ = {**VENDORS[name], **REQUIRED[over]}
    alone, both, other = (load(files, environ) for files in (vendor_file(name), [vendor_file(name), over], over))
    mine, merged = (config.components["exporters"]["otlp_http"] for config in (alone, both))
    assert [mine.route(kind) for kind in Kind] == [merged.route(kind) for kind in Kind]  # type: ignore[attr-defined]
    assert mine.temporality == merged.temporality  # type: ignore[attr-defined]
    assert both.components["extensions"] == other.components["extensions"]
    assert both.service == other.service
    assert merged.sending_queue.storage == ("file_storage" if over == GATEWAY else None)  # type: ignore[attr-defined]


def test_new_relics_requests_stay_below_a_megabyte_before_compression() -> None:
    exporter: Any = load(vendor_file("new-relic"), VENDORS["new-relic"]).components["exporters"]["otlp_http"]
    assert exporter.sending_queue.batch.max_bytes < 10**6


@pytest.mark.parametrize("file", COLLECTORS, ids=lambda file: file.stem)
def test_a_collectors_file_listens_where_the_agent_sends_and_names_what_it_has(file: Path) -> None:
    found: Any = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    beside = load(file.with_name(file.name.replace(".collector", "")), {}).components["exporters"]["otlp_http"]
    listens = found["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert beside.endpoint == f"http://{listens}"  # type: ignore[attr-defined]
    used: dict[str, set[str]] = {"extensions": set(found["service"].get("extensions", ()))}
    for pipeline in found["service"]["pipelines"].values():
        for section, names in pipeline.items():
            used.setdefault(section, set()).update(names)
    assert {section: names for section, names in used.items() if names} == {
        section: set(components) for section, components in found.items() if section != "service"
    }
    assert set(found["service"]["pipelines"]) == set(Kind)
