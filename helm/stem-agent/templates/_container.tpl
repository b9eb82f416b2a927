{{/* What the restricted Pod Security Standard asks of a container, and a root file system that nobody writes to. */}}
{{- define "stem-agent.containerSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* The same of a pod; the group owns the volume. */}}
{{- define "stem-agent.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Readiness asks neither for Redis nor for a backend in a sidecar: it is the whole pod's (config/sidecar.yaml). */}}
{{- define "stem-agent.probes" -}}
startupProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 1
  failureThreshold: 30
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 5
livenessProbe:
  httpGet: {path: /livez, port: health}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{/*
What the agent's container has in every shape, as the keys of a mapping; takes a dict of `agent`, `shape`, `instance`.
The last `--config` goes over the ones before it: vendor, shape, then what values ask for.
*/}}
{{- define "stem-agent.container" -}}
{{- $values := .agent.Values -}}
{{- $settings := index $values .shape -}}
name: stem-agent
image: {{ include "stem-agent.image" .agent | quote }}
imagePullPolicy: {{ $values.image.pullPolicy }}
args:
  - run
  {{- if $values.vendor }}
  - --config
  - /etc/stem-agent/config/vendor.yaml
  {{- end }}
  - --config
  - /etc/stem-agent/config/{{ .shape }}.yaml
  - --config
  - /etc/stem-agent/config/values.yaml
env:
  {{- include "stem-agent.agentEnv" . | nindent 2 }}
  {{- with $values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.vendorSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
ports:
  - {name: health, containerPort: 13133, protocol: TCP}
  {{- if $values.prometheus.enabled }}
  - {name: metrics, containerPort: {{ $values.prometheus.port }}, protocol: TCP}
  {{- end }}
{{ include "stem-agent.probes" .agent }}
resources:
  {{- toYaml $settings.resources | nindent 2 }}
securityContext:
  {{- include "stem-agent.containerSecurity" .agent | nindent 2 }}
volumeMounts:
  - {name: stem-agent-config, mountPath: /etc/stem-agent/config, readOnly: true}
  {{- if include "stem-agent.hasDisk" . }}
  - {name: stem-agent-data, mountPath: /var/lib/stem-agent}
  {{- end }}
  {{- if $values.redis.tls.existingSecret }}
  - {name: stem-agent-redis-tls, mountPath: /etc/stem-agent/redis-tls, readOnly: true}
  {{- end }}
{{- end -}}

{{/* Whether there is a directory that the agent writes to: a gateway always has one. Takes the same. */}}
{{- define "stem-agent.hasDisk" -}}
{{- if or (eq .shape "gateway") .agent.Values.sidecar.storage.enabled }}yes{{ end -}}
{{- end -}}

{{/* Size of the volume below the file's limit: SQLite's log, and what was set aside, need room too. Takes MiB. */}}
{{- define "stem-agent.volumeSize" -}}
{{ div (mul (int .) 5) 4 }}Mi
{{- end -}}

{{/* Volumes but a claimed one; takes the same dict, with `claimed`. */}}
{{- define "stem-agent.podVolumes" -}}
- name: stem-agent-config
  configMap: {name: {{ include "stem-agent.name" .agent }}-{{ .shape }}}
{{- if and (include "stem-agent.hasDisk" .) (not .claimed) }}
- name: stem-agent-data
  emptyDir: {sizeLimit: {{ include "stem-agent.volumeSize" (index .agent.Values .shape).storage.maxSizeMiB }}}
{{- end }}
{{- with .agent.Values.redis.tls.existingSecret }}
- name: stem-agent-redis-tls
  secret: {secretName: {{ . }}}
{{- end }}
{{- end -}}
