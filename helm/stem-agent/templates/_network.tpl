{{/*
What pods of the agent need and nothing else: names, Redis and the backend outwards; scrapes inwards. Probes come from
the node, which no policy holds up. Takes a dict of `agent`, `component`, `policy`.
*/}}
{{- define "stem-agent.networkPolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "stem-agent.name" .agent }}-{{ .component }}
  namespace: {{ .agent.Release.Namespace }}
  labels:
    {{- include "stem-agent.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "stem-agent.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- if .agent.Values.prometheus.enabled }}
  ingress:
    - ports:
        - {protocol: TCP, port: {{ .agent.Values.prometheus.port }}}
      {{- with .policy.scrapers }}
      from:
        {{- toYaml . | nindent 8 }}
      {{- end }}
  {{- else }}
  ingress: []
  {{- end }}
  egress:
    - ports:
        - {protocol: UDP, port: 53}
        - {protocol: TCP, port: 53}
    - ports:
        {{- range concat .policy.redisPorts .policy.otlpPorts | uniq }}
        - {protocol: TCP, port: {{ . }}}
        {{- end }}
    {{- with .policy.egress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* The port of a URL, or what its scheme means without one. */}}
{{- define "stem-agent.port" -}}
{{- $parts := urlParse . -}}
{{- $default := index (dict "http" "80" "https" "443" "redis" "6379" "rediss" "6379") $parts.scheme -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $parts.host) | default $default -}}
{{- end -}}

{{/* Addresses that a policy would not let the agent reach; takes a dict of `agent`, `policy`, `at`. */}}
{{- define "stem-agent.networkProblems" -}}
{{- $ports := dict "redis" (list) "otlp" (list) -}}
{{- range .policy.redisPorts }}{{- $_ := set $ports "redis" (append $ports.redis (toString .)) }}{{- end }}
{{- range .policy.otlpPorts }}{{- $_ := set $ports "otlp" (append $ports.otlp (toString .)) }}{{- end }}
{{- range $key := list "brokerUrl" "resultBackendUrl" "scheduleStoreUrl" "workflowStoreUrl" }}
{{- with index $.agent.Values.redis $key }}
{{- $port := include "stem-agent.port" . }}
{{- if not (has $port $ports.redis) }}
redis.{{ $key }} has port {{ $port }}, which {{ $.at }}.networkPolicy.redisPorts does not let the agent reach: add it there
{{- end }}
{{- end }}
{{- end }}
{{- with .agent.Values.otlp.endpoint }}
{{- $port := include "stem-agent.port" . }}
{{- if not (has $port $ports.otlp) }}
otlp.endpoint has port {{ $port }}, which {{ $.at }}.networkPolicy.otlpPorts does not let the agent reach: add it there
{{- end }}
{{- end }}
{{- end -}}
