{{/* The version that the cluster serves, or the one that is to be taken for served. */}}
{{- define "stem-agent.policyVersion" -}}
{{- $served := "" -}}
{{- range list "v1beta1" "v1" -}}
{{- $version := printf "admissionregistration.k8s.io/%s" . -}}
{{- if $.Capabilities.APIVersions.Has (printf "%s/MutatingAdmissionPolicy" $version) }}{{- $served = $version }}{{- end -}}
{{- end -}}
{{- with .Values.injection.apiVersion | default $served -}}
{{ . }}
{{- else -}}
{{- fail "stem-agent: injection.enabled needs a cluster that serves MutatingAdmissionPolicy (Kubernetes 1.36, or 1.34 with its feature gate): where you know that it does, and Helm cannot ask it, set injection.apiVersion to admissionregistration.k8s.io/v1" -}}
{{- end -}}
{{- end -}}

{{/* The sidecar that is told everything by variables and arguments, and mounts nothing; takes a scope. */}}
{{- define "stem-agent.injected" -}}
{{- $values := .agent.Values -}}
name: stem-agent
image: {{ include "stem-agent.image" .agent | quote }}
imagePullPolicy: {{ $values.image.pullPolicy }}
restartPolicy: Always
args:
  - run
  - --set
  - service.shutdown_timeout={{ $values.sidecar.shutdownTimeoutSeconds }}s
  - --set
  - service.telemetry.logs.level={{ $values.logs.level }}
  - --set
  - service.telemetry.logs.format={{ $values.logs.format }}
env:
  {{- include "stem-agent.agentEnv" . | nindent 2 }}
  - {name: STEM_HEALTH_ENDPOINT, value: "$(POD_IP):13133"}
  {{- if $values.prometheus.enabled }}
  - {name: STEM_METRIC_EXPORTERS, value: "otlp,prometheus"}
  - {name: STEM_PROMETHEUS_ENDPOINT, value: "$(POD_IP):{{ $values.prometheus.port }}"}
  {{- end }}
  {{- with $values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - {name: health, containerPort: 13133, protocol: TCP}
  {{- if $values.prometheus.enabled }}
  - {name: metrics, containerPort: {{ $values.prometheus.port }}, protocol: TCP}
  {{- end }}
{{ include "stem-agent.probes" .agent }}
resources:
  {{- toYaml $values.sidecar.resources | nindent 2 }}
securityContext:
  {{- include "stem-agent.containerSecurity" .agent | nindent 2 }}
{{- end -}}

{{- define "stem-agent.injectionProblems" -}}
{{- if .Values.vendor }}
vendor and injection.enabled contradict each other: an injected agent has no file; set otlp.endpoint, and otlp.headersSecret for the key
{{- end }}
{{- if .Values.redis.tls.existingSecret }}
redis.tls.existingSecret and injection.enabled contradict each other: an injected agent mounts nothing; use the templates for your own chart
{{- end }}
{{- if or .Values.sidecar.config .Values.sidecar.storage.enabled }}
{{ ternary "sidecar.config" "sidecar.storage.enabled" (not (empty .Values.sidecar.config)) }} and injection.enabled contradict each other: an injected agent has neither file nor volume; use the templates for your own chart, or another release of this one
{{- end }}
{{- if not .Values.sidecar.native }}
sidecar.native is false, and injection.enabled adds a native sidecar: set one of them otherwise
{{- end }}
{{- end -}}
