{{- define "fresco.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "fresco.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: fresco
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* What selects the pods of one role: a dict of root and component. */ -}}
{{- define "fresco.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "fresco.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end }}{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "fresco.coordinatorUrl" -}}
http{{ if .Values.tls.enabled }}s{{ end }}://{{ include "fresco.name" . }}-coordinator:7400
{{- end }}

{{- /* What a service's label app.kubernetes.io/instance is called in Prometheus. */ -}}
{{- define "fresco.releaseLabel" -}}
app_kubernetes_io_instance
{{- end }}

{{- /* The port that a URL is reached at, its scheme's if it names none. */ -}}
{{- define "fresco.urlPort" -}}
{{- $url := urlParse . }}
{{- $url.host | regexFind ":[0-9]+$" | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) }}
{{- end }}

{{- define "fresco.tlsSecret" -}}
{{ .Values.tls.secretName | default (printf "%s-tls" (include "fresco.name" .)) }}
{{- end }}

{{- define "fresco.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "fresco.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "fresco.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "fresco.tlsEnv" -}}
{{- if .Values.tls.enabled }}
- name: FRESCO_TLS_CERT
  value: /etc/fresco/tls/tls.crt
- name: FRESCO_TLS_KEY
  value: /etc/fresco/tls/tls.key
- name: FRESCO_TLS_CA
  value: /etc/fresco/tls/ca.crt
{{- end }}
{{- end }}
