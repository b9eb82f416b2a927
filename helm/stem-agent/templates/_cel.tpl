{{/*
A value as a literal of the Common Expression Language; takes a dict of `value` and of `type`, the name that Kubernetes
gives the mapping's type: its path in the pod. Kubernetes wants the values of a plain map literal to be of one type, so
mappings are typed objects but for quantities, whose keys need not be names.
*/}}
{{- define "stem-agent.cel" -}}
{{- $type := .type -}}
{{- if kindIs "map" .value -}}
{{- $quantities := or (hasSuffix ".limits" $type) (hasSuffix ".requests" $type) -}}
{{- $fields := list -}}
{{- range $key, $value := .value -}}
{{- $literal := include "stem-agent.cel" (dict "value" $value "type" (printf "%s.%s" $type $key)) -}}
{{- $fields = append $fields (printf "%s: %s" (ternary (toJson $key) $key $quantities) (ternary (toString $value | toJson) $literal $quantities)) -}}
{{- end -}}
{{ ternary "" $type $quantities }}{ {{- join ", " $fields -}} }
{{- else if kindIs "slice" .value -}}
{{- $items := list -}}
{{- range .value }}{{- $items = append $items (include "stem-agent.cel" (dict "value" . "type" $type)) }}{{- end -}}
[{{ join ", " $items }}]
{{- else -}}
{{ toJson .value }}
{{- end -}}
{{- end -}}
