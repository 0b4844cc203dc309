{{- define "lighten.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "lighten.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "lighten.name" .) .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name (include "lighten.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "lighten.selector" -}}
app.kubernetes.io/name: {{ include "lighten.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "lighten.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "lighten.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: lighten
{{- end }}

{{/* Reference of an image: of its values and the chart. */}}
{{- define "lighten.image" -}}
{{- $image := .image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .chart.AppVersion $image.tag }}
{{- end }}
{{- end }}

{{- define "lighten.workerNamespace" -}}
{{ default .Release.Namespace .Values.workers.namespace }}
{{- end }}

{{- define "lighten.serverServiceAccount" -}}
{{ default (include "lighten.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "lighten.workerServiceAccount" -}}
{{ default (printf "%s-worker" (include "lighten.fullname" .)) .Values.workers.serviceAccount.name }}
{{- end }}

{{/* What the certificate names. */}}
{{- define "lighten.serviceHost" -}}
{{ include "lighten.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{/* The Secret with tls.crt and tls.key, or nothing. */}}
{{- define "lighten.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled -}}
{{ include "lighten.fullname" . }}-tls
{{- else -}}
{{ .Values.tls.existingSecret }}
{{- end }}
{{- end }}

{{/* Labels of the worker pods of this release: executors/kubernetes/naming.py sets them. */}}
{{- define "lighten.workerSelector" -}}
app.kubernetes.io/name: lighten
app.kubernetes.io/component: worker
app.kubernetes.io/instance: {{ include "lighten.instance" . }}
{{- end }}

{{- define "lighten.workerPeer" -}}
- podSelector:
    matchLabels: {{- include "lighten.workerSelector" . | nindent 6 }}
  namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ include "lighten.workerNamespace" . }}
{{- end }}

{{/* Tells the Jobs of this server from those of another one in the namespace. */}}
{{- define "lighten.instance" -}}
{{ .Release.Name }}
{{- end }}
