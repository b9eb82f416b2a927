{{/* What the values of a monitor contradict. Takes a dict of `agent` and `kind`. */}}
{{- define "stem-agent.checkMonitor" -}}
{{- $values := .agent.Values }}
{{- if not $values.prometheus.enabled }}
{{- fail (printf "stem-agent: monitoring.%s is enabled, and prometheus is not: there is nothing to scrape; set prometheus.enabled to true" .kind) }}
{{- end }}
{{- if and $values.monitoring.podMonitor.enabled $values.monitoring.serviceMonitor.enabled }}
{{- fail "stem-agent: monitoring.podMonitor and monitoring.serviceMonitor are both enabled: every agent would be scraped twice; enable one of them" }}
{{- end }}
{{- end -}}

{{/* Labels of an object, and those that an operator adds. Takes a dict of `agent` and `labels`. */}}
{{- define "stem-agent.monitoringLabels" -}}
{{- $own := include "stem-agent.labels" (dict "agent" .agent "component" "monitoring") | fromYaml -}}
{{- toYaml (mergeOverwrite $own .labels) }}
{{- end -}}

{{/* Which pods are scraped, by shape: a dict of labels each. Takes a dict of `agent` and `monitor`. */}}
{{- define "stem-agent.scraped" -}}
{{- $scraped := dict }}
{{- if .agent.Values.gateway.enabled }}
{{- $gateway := include "stem-agent.selector" (dict "agent" .agent "component" "gateway") | fromYaml }}
{{- $_ := set $scraped "gateway" $gateway }}
{{- end }}
{{- if .agent.Values.sidecar.enabled }}
{{- $_ := set $scraped "sidecar" (.monitor.sidecars | default (dict "stem-agent/scrape" "true")) }}
{{- end }}
{{- toYaml $scraped }}
{{- end -}}

{{/* Both endpoints of an agent: what it tells of tasks and fleet, and of itself. Takes the values of a monitor. */}}
{{- define "stem-agent.endpoints" -}}
{{- $monitor := . }}
{{- $endpoints := list }}
{{- range list "/metrics" "/metrics/agent" }}
{{- $endpoint := dict "port" "metrics" "path" . "honorLabels" true
  "interval" $monitor.interval "scrapeTimeout" $monitor.scrapeTimeout }}
{{- if eq . "/metrics" }}
{{- /* The fleet is in nobody's pod: its series go on when another agent begins to lead. */}}
{{- $relabelings := list }}
{{- range list "pod" "container" "endpoint" "service" "node" }}
{{- $relabelings = append $relabelings
  (dict "action" "replace" "sourceLabels" (list "instance") "regex" "fleet" "targetLabel" . "replacement" "") }}
{{- end }}
{{- $_ := set $endpoint "metricRelabelings" $relabelings }}
{{- end }}
{{- $endpoints = append $endpoints (mergeOverwrite $endpoint (deepCopy $monitor.endpoint)) }}
{{- end }}
{{- toYaml $endpoints }}
{{- end -}}
