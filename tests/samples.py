"""The sample files in `config/`, and what they have to be given."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config"
GATEWAY, SIDECAR = CONFIG / "gateway.yaml", CONFIG / "sidecar.yaml"

VENDORS: dict[str, dict[str, str]] = {
    "datadog": {"DD_API_KEY": "dd-secret"},
    "dynatrace": {"DT_ENDPOINT": "https://abc12345.live.dynatrace.com/api/v2/otlp", "DT_API_TOKEN": "dt-secret"},
    "elastic": {"ELASTIC_OTLP_ENDPOINT": "https://otlp.elastic.cloud:443", "ELASTIC_API_KEY": "es-secret"},
    "google-cloud": {},
    "grafana-cloud": {
        "GRAFANA_CLOUD_OTLP_ENDPOINT": "https://otlp-gateway.grafana.net/otlp",
        "GRAFANA_CLOUD_CREDENTIALS": "MTpzZWNyZXQ=",
    },
    "honeycomb": {"HONEYCOMB_API_KEY": "hc-secret"},
    "local-collector": {},
    "new-relic": {"NEW_RELIC_LICENSE_KEY": "nr-secret"},
}
"""By file in `config/vendors/`: the variables that have no default, and a value for each."""

REQUIRED: dict[Path, dict[str, str]] = {
    CONFIG / "default.yaml": {},
    GATEWAY: {},
    SIDECAR: {"STEM_EMITTER": "pod-1"},
    **{CONFIG / "vendors" / f"{name}.yaml": variables for name, variables in VENDORS.items()},
}
"""The same of every file that the agent reads."""


def vendor_file(name: str) -> Path:
    """Return a vendor's file."""
    return CONFIG / "vendors" / f"{name}.yaml"
