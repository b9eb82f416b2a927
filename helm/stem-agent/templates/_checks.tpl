{{/* Values that contradict each other, or lack what nothing works without: all of them at once, in one message. */}}

{{/* The variables that a vendor's file has no default for. */}}
{{- define "stem-agent.vendorVariables" -}}
datadog: [DD_API_KEY]
dynatrace: [DT_ENDPOINT, DT_API_TOKEN]
elastic: [ELASTIC_OTLP_ENDPOINT, ELASTIC_API_KEY]
google-cloud: []
grafana-cloud: [GRAFANA_CLOUD_OTLP_ENDPOINT, GRAFANA_CLOUD_CREDENTIALS]
honeycomb: [HONEYCOMB_API_KEY]
local-collector: []
new-relic: [NEW_RELIC_LICENSE_KEY]
{{- end -}}

{{- define "stem-agent.redisProblems" -}}
{{- $redis := .Values.redis -}}
{{- if and (not $redis.brokerUrl) (not $redis.existingSecret) }}
redis.brokerUrl is empty: say where the workers' Redis is (redis://redis:6379/0), or name a secret in redis.existingSecret
{{- end }}
{{- range $key := list "brokerUrl" "resultBackendUrl" "scheduleStoreUrl" "workflowStoreUrl" }}
{{- $url := index $redis $key }}
{{- if contains "@" $url }}
redis.{{ $key }} holds a password, which everybody could read in the pod's spec: put the URL into a secret and name it in redis.existingSecret
{{- end }}
{{- if and $url $redis.existingSecret (index $redis.secretKeys $key) }}
redis.{{ $key }} and redis.secretKeys.{{ $key }} of redis.existingSecret are both given: empty one of them
{{- end }}
{{- end }}
{{- if and $redis.existingSecret (not $redis.secretKeys.brokerUrl) (not $redis.brokerUrl) }}
redis.secretKeys.brokerUrl is empty: name the key of secret {{ $redis.existingSecret }} that holds the broker's URL
{{- end }}
{{- if and $redis.tls.existingSecret (ne (empty $redis.tls.certKey) (empty $redis.tls.keyKey)) }}
redis.tls.certKey and redis.tls.keyKey go together: a client's certificate is of no use without its key
{{- end }}
{{- end -}}

{{- define "stem-agent.backendProblems" -}}
{{- $values := .Values -}}
{{- $names := list }}{{- range $values.env }}{{- $names = append $names .name }}{{- end }}
{{- if $values.vendor }}
{{- $wanted := index (include "stem-agent.vendorVariables" . | fromYaml) $values.vendor }}
{{- range $wanted }}
{{- if and (not $values.vendorSecret) (not (has . $names)) }}
vendor {{ $values.vendor }} needs {{ . }}: put it into a secret and name that in vendorSecret, or add the variable to env
{{- end }}
{{- end }}
{{- if and $wanted $values.otlp.endpoint }}
otlp.endpoint and vendor {{ $values.vendor }} contradict each other: the vendor's file has its own endpoint; empty one of them
{{- end }}
{{- if and (eq $values.vendor "datadog") (not $values.otlp.endpoint) $values.otlp.headersSecret.name }}
otlp.headersSecret and vendor datadog contradict each other: the vendor's file has its own headers
{{- end }}
{{- else if not $values.otlp.endpoint }}
otlp.endpoint is empty and no vendor is chosen: nothing would arrive anywhere; set otlp.endpoint (http://collector:4318) or vendor
{{- end }}
{{- range $values.env }}
{{- if and .value (regexMatch "(KEY|TOKEN|PASSWORD|SECRET|CREDENTIALS|HEADERS)$" .name) }}
env {{ .name }} looks like a secret, which everybody could read in the pod's spec: give it by valueFrom.secretKeyRef
{{- end }}
{{- end }}
{{- end -}}

{{- define "stem-agent.envProblems" -}}
{{- $own := list }}
{{- range include "stem-agent.agentEnv" (dict "agent" . "shape" "sidecar" "instance" "x") | fromYamlArray }}{{- $own = append $own .name }}{{- end }}
{{- range .Values.env }}
{{- if has .name $own }}
env {{ .name }} is set by this chart: use the value it comes from (redis, otlp, workerNamespace, resourceAttributes)
{{- end }}
{{- end }}
{{- end -}}

{{- define "stem-agent.problems" -}}
{{- if not .Values.image.repository }}
image.repository is empty: name the repository that you pushed the agent's image to, such as registry.example.com/stem-agent
{{- end }}
{{- include "stem-agent.redisProblems" . }}
{{- include "stem-agent.backendProblems" . }}
{{- include "stem-agent.envProblems" . }}
{{- if .Values.injection.enabled }}
{{- include "stem-agent.injectionProblems" . }}
{{- end }}
{{- if .Values.example.enabled }}
{{- if not .Values.example.image }}
example.image is empty: name the image of a Stem worker that has the signal bridge
{{- end }}
{{- if not .Values.sidecar.enabled }}
sidecar.enabled is false, and example.enabled shows a sidecar: set sidecar.enabled to true
{{- end }}
{{- end }}
{{- $budget := .Values.gateway.podDisruptionBudget }}
{{- if and .Values.gateway.enabled $budget.enabled (gt (int .Values.gateway.replicas) 1) (ge (int $budget.maxUnavailable) (int .Values.gateway.replicas)) }}
gateway.podDisruptionBudget.maxUnavailable {{ $budget.maxUnavailable }} allows all {{ .Values.gateway.replicas }} gateway.replicas to go at once: make it less, or disable the budget
{{- end }}
{{- if and .Values.sidecar.enabled (not .Values.sidecar.native) (semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version) }}
sidecar.native is false, which needs Kubernetes 1.30 or later (a preStop that sleeps), and this is {{ .Capabilities.KubeVersion.Version }}: set it to true
{{- end }}
{{- if not (or .Values.sidecar.enabled .Values.gateway.enabled .Values.injection.enabled) }}
sidecar.enabled, gateway.enabled and injection.enabled are all false: nothing would run; enable one of them
{{- end }}
{{- range $at := list "gateway" "example" }}
{{- $settings := index $.Values $at }}
{{- if and $settings.enabled $settings.networkPolicy.enabled }}
{{- include "stem-agent.networkProblems" (dict "agent" $ "policy" $settings.networkPolicy "at" $at) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Fails with everything that is wrong. */}}
{{- define "stem-agent.check" -}}
{{- with include "stem-agent.problems" . | trim -}}
{{- fail (printf "stem-agent: these values cannot be used:\n%s" .) -}}
{{- end -}}
{{- end -}}

{{- define "stem-agent.checkSidecar" -}}
{{- if not .Values.sidecar.enabled -}}
{{- fail "stem-agent: sidecar.enabled is false, so there is no configuration for a sidecar: set it to true" -}}
{{- end -}}
{{- end -}}
