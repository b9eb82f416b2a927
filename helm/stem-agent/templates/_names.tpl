{{/*
Every public template takes `.` of whoever includes it: of this chart, or of one that has it as a dependency.
There the agent's own scope (values, files, version) is `.Subcharts`' entry; with an `alias`, hand that entry over:
{{ include "stem-agent.sidecar" (index .Subcharts "my-alias") }}.
*/}}

{{/* Name of the chart's objects, before what tells them apart (at most 10 characters). */}}
{{- define "stem-agent.name" -}}
{{- $own := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- .Values.fullnameOverride | default $own | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that never change, for selectors; takes a dict of `agent` and `component`. */}}
{{- define "stem-agent.selector" -}}
app.kubernetes.io/name: stem-agent
app.kubernetes.io/instance: {{ .agent.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* All labels; takes the same. */}}
{{- define "stem-agent.labels" -}}
{{ include "stem-agent.selector" . }}
app.kubernetes.io/version: {{ .agent.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .agent.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .agent.Chart.Name .agent.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The image, by digest where there is one. */}}
{{- define "stem-agent.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end -}}
