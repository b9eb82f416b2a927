{{/*
For the Deployment of another chart that has this one as a dependency:

  template:
    metadata:
      annotations: {{- include "stem-agent.annotations" . | nindent 8 }}
    spec:
      {{- include "stem-agent.podSettings" . | nindent 6 }}
      initContainers: {{- include "stem-agent.sidecar" . | nindent 8 }}
      containers:
        - name: worker
          env: {{- include "stem-agent.env" . | nindent 12 }}
      volumes: {{- include "stem-agent.volumes" . | nindent 8 }}

With `sidecar.native: false` the agent is one of `containers`: an init container that never ends holds up the pod.
*/}}

{{/* Public. A list of one container: of `initContainers` where `sidecar.native`, else of `containers`. */}}
{{- define "stem-agent.sidecar" -}}
{{- $agent := index (.Subcharts | default dict) "stem-agent" | default . -}}
{{- include "stem-agent.check" $agent -}}
{{- include "stem-agent.checkSidecar" $agent -}}
- {{ include "stem-agent.container" (dict "agent" $agent "shape" "sidecar" "instance" "") | nindent 2 | trim }}
  {{- if $agent.Values.sidecar.native }}
  restartPolicy: Always
  {{- else }}
  # Kubernetes stops containers all at once: the worker has this long to end before the agent does.
  lifecycle: {preStop: {sleep: {seconds: {{ $agent.Values.sidecar.workerGraceSeconds }}}}}
  {{- end }}
{{- end -}}

{{/* Public. The items of `volumes` that the sidecar needs. */}}
{{- define "stem-agent.volumes" -}}
{{- $agent := index (.Subcharts | default dict) "stem-agent" | default . -}}
{{- include "stem-agent.podVolumes" (dict "agent" $agent "shape" "sidecar") -}}
{{- end -}}

{{/* Public. Annotations of the pod: new configuration, new pods, for the agent is told to reload nothing by itself. */}}
{{- define "stem-agent.annotations" -}}
{{- $agent := index (.Subcharts | default dict) "stem-agent" | default . -}}
checksum/stem-agent-config: {{ include "stem-agent.files" (dict "agent" $agent "shape" "sidecar") | sha256sum }}
{{- end -}}

{{/*
Public. Keys of the pod's spec: the restricted standard for all of its containers, no token, and the time that the
worker and then the agent need to stop.
*/}}
{{- define "stem-agent.podSettings" -}}
{{- $agent := index (.Subcharts | default dict) "stem-agent" | default . -}}
{{- with $agent.Values.sidecar -}}
automountServiceAccountToken: false
terminationGracePeriodSeconds: {{ add (int .workerGraceSeconds) (int .shutdownTimeoutSeconds) 5 }}
{{- end }}
securityContext:
  {{- include "stem-agent.podSecurity" $agent | nindent 2 }}
{{- with $agent.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
