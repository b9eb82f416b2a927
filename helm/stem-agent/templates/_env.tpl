{{/* Who this pod is; no rights are needed for it. `STEM_EMITTER`: the name by which the pod's worker speaks. */}}
{{- define "stem-agent.downward" -}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
{{- end -}}

{{- define "stem-agent.emitter" -}}
- {name: STEM_EMITTER, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- end -}}

{{/* Public. For the worker's container: `env: {{ include "stem-agent.env" . | nindent 12 }}`. */}}
{{- define "stem-agent.env" -}}
{{ include "stem-agent.downward" . }}
{{ include "stem-agent.emitter" . }}
{{- end -}}

{{/* Where Redis is: each URL from a value, or from a key of the secret. */}}
{{- define "stem-agent.redisEnv" -}}
{{- $redis := .Values.redis -}}
{{- range $key, $name := dict "brokerUrl" "STEM_BROKER_URL" "resultBackendUrl" "STEM_RESULT_BACKEND_URL" "scheduleStoreUrl" "STEM_SCHEDULE_STORE_URL" "workflowStoreUrl" "STEM_WORKFLOW_STORE_URL" }}
{{- if and $redis.existingSecret (index $redis.secretKeys $key) }}
- {name: {{ $name }}, valueFrom: {secretKeyRef: {name: {{ $redis.existingSecret }}, key: {{ index $redis.secretKeys $key | quote }}}}}
{{- else if index $redis $key }}
- {name: {{ $name }}, value: {{ index $redis $key | quote }}}
{{- end }}
{{- end }}
{{- with .Values.redis.tls }}
{{- if .existingSecret }}
{{- range $key, $name := dict "caKey" "STEM_TLS_CA_CERT" "certKey" "STEM_TLS_CLIENT_CERT" "keyKey" "STEM_TLS_CLIENT_KEY" }}
{{- with index $redis.tls $key }}
- {name: {{ $name }}, value: {{ printf "/etc/stem-agent/redis-tls/%s" . | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* `OTEL_RESOURCE_ATTRIBUTES`: percent-encoded, for one bad character voids all of it (resource SDK specification). */}}
{{- define "stem-agent.resourceAttributes" -}}
{{- $pairs := list -}}
{{- range $key, $value := .Values.resourceAttributes -}}
{{- $pairs = append $pairs (printf "%s=%s" (urlquery $key | replace "+" "%20") (urlquery $value | replace "+" "%20")) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/*
All of the agent's variables but those that users add; takes a dict of `agent`, `shape` ("sidecar", "gateway") and
`instance`, which is the service.instance.id where the pod's uid is none that lasts.
*/}}
{{- define "stem-agent.agentEnv" -}}
{{ include "stem-agent.downward" .agent }}
{{- if eq .shape "sidecar" }}
{{ include "stem-agent.emitter" .agent }}
{{- end }}
- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: CONTAINER_NAME, value: stem-agent}
- {name: STEM_WORKER_NAMESPACE, value: {{ .agent.Values.workerNamespace | quote }}}
{{ include "stem-agent.redisEnv" .agent | trim }}
{{- with .agent.Values.otlp }}
{{- with .endpoint }}
- {name: STEM_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .headersSecret.name }}
- {name: OTEL_EXPORTER_OTLP_HEADERS, valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.agent.Values.otlp.headersSecret.key | quote }}}}}
{{- end }}
{{- end }}
{{- $attributes := compact (list (include "stem-agent.resourceAttributes" .agent) .instance) | join "," }}
{{- with $attributes }}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: {{ . | quote }}}
{{- end }}
{{- end -}}
