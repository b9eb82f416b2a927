{{/* What values ask for beyond the shape's file, before `config` goes over it; takes a dict of `agent` and `shape`. */}}
{{- define "stem-agent.valuesConfig" -}}
{{- $values := .agent.Values -}}
{{- $settings := index $values .shape -}}
{{- $logs := dict "level" $values.logs.level "format" $values.logs.format -}}
{{- $service := dict "shutdown_timeout" (printf "%ds" (int $settings.shutdownTimeoutSeconds)) "telemetry" (dict "logs" $logs) -}}
{{- $config := dict "service" $service -}}
{{- if include "stem-agent.hasDisk" . -}}
{{- $_ := set $config "extensions" (dict "file_storage" (dict "directory" "/var/lib/stem-agent" "max_size" (printf "%dMiB" (int $settings.storage.maxSizeMiB)))) -}}
{{- end -}}
{{- if and (eq .shape "sidecar") $settings.storage.enabled -}}
{{- $_ := set $config "receivers" (dict "stem_signals" (dict "storage" "file_storage")) -}}
{{- $_ := set $config "connectors" (dict "correlate" (dict "storage" "file_storage")) -}}
{{- $_ := set $config "exporters" (dict "otlp_http" (dict "sending_queue" (dict "storage" "file_storage"))) -}}
{{- $_ := set $service "extensions" (list "file_storage" "memory_limiter" "ownership" "health") -}}
{{- end -}}
{{- if eq .shape "gateway" -}}
{{- $_ := set $config.extensions "health" (dict "endpoint" "${env:POD_IP}:13133") -}}
{{- end -}}
{{- if $values.prometheus.enabled -}}
{{- $exporters := $config.exporters | default dict -}}
{{- $_ := set $exporters "prometheus" (dict "endpoint" (printf "${env:POD_IP}:%d" (int $values.prometheus.port))) -}}
{{- $_ := set $config "exporters" $exporters -}}
{{- $_ := set $service "pipelines" (dict "metrics" (dict "exporters" (list "otlp_http" "prometheus"))) -}}
{{- end -}}
{{- mergeOverwrite $config (deepCopy $settings.config) | toYaml -}}
{{- end -}}

{{/* The files of a shape, as a ConfigMap's data; takes the same. */}}
{{- define "stem-agent.files" -}}
{{- with .agent.Values.vendor }}
vendor.yaml: |
  {{- $.agent.Files.Get (printf "files/vendors/%s.yaml" .) | nindent 2 }}
{{- end }}
{{ .shape }}.yaml: |
  {{- .agent.Files.Get (printf "files/%s.yaml" .shape) | nindent 2 }}
values.yaml: |
  {{- include "stem-agent.valuesConfig" . | nindent 2 }}
{{- end -}}
