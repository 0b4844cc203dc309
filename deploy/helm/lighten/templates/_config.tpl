{{/* What the server reads at start: its settings, and the pod that workers start from. */}}
{{- define "lighten.config" -}}
{{- include "lighten.checks" . -}}
lighten.toml: |
  {{- $settings := mergeOverwrite (include "lighten.settings" . | fromYaml) (deepCopy .Values.settings) | toToml | trim }}
  {{- /* Helm takes every number for a float. */}}
  {{- regexReplaceAll `(?m)= (-?\d+)\.0$` $settings "= ${1}" | nindent 2 }}
pod-template.yaml: |
  {{- toYaml .Values.workers.podTemplate | nindent 2 }}
{{- end }}

{{- define "lighten.settings" -}}
{{- $s3 := .Values.storage.s3 -}}
bind: "0.0.0.0"
port: 8470
http_port: 8471
metrics_port: 8472
# Callers do not reach WorkerService, and workers nothing else.
worker_port: 8473
data_dir: /var/lib/lighten
log_format: json
# The pull of a worker's image counts.
start_timeout_seconds: 1800
{{- if .Values.insecure }}
insecure_bind: true
{{- end }}
{{- if include "lighten.tlsSecret" . }}
tls:
  cert: /etc/lighten/tls/tls.crt
  key: /etc/lighten/tls/tls.key
  {{- if .Values.trust.configMap }}
  ca: /etc/lighten/trust/ca.crt
  {{- else if or .Values.tls.certManager.enabled .Values.tls.caKey }}
  ca: /etc/lighten/tls/{{ ternary "ca.crt" .Values.tls.caKey .Values.tls.certManager.enabled }}
  {{- end }}
  {{- if .Values.tls.clientCa.existingSecret }}
  client_ca: /etc/lighten/client-ca/ca.crt
  {{- end }}
{{- end }}
{{- if .Values.auth.existingSecret }}
auth:
  tokens: /etc/lighten/auth/tokens.toml
{{- end }}
{{- with .Values.storage.projectAccess }}
project_access: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .Values.storage.root }}
storage_root: {{ .Values.storage.root | quote }}
s3:
  region: {{ $s3.region | quote }}
  {{- with $s3.endpoint }}
  endpoint: {{ . | quote }}
  {{- end }}
  {{- with $s3.publicEndpoint }}
  public_endpoint: {{ . | quote }}
  {{- end }}
  {{- with $s3.workerEndpoint }}
  worker_endpoint: {{ . | quote }}
  {{- end }}
{{- else }}
{{- $url := printf "%s://%s:%v" (ternary "https" "http" (ne "" (include "lighten.tlsSecret" .))) (include "lighten.serviceHost" .) .Values.service.objectsPort }}
public_url: {{ default $url .Values.storage.publicUrl | quote }}
worker_url: {{ $url | quote }}
{{- end }}
executor:
  kind: kubernetes
kubernetes:
  namespace: {{ include "lighten.workerNamespace" . }}
  instance: {{ include "lighten.instance" . }}
  server: "{{ include "lighten.fullname" . }}-internal.{{ .Release.Namespace }}.svc:8473"
  {{- if include "lighten.tlsSecret" . }}
  server_name: {{ include "lighten.serviceHost" . }}
  {{- end }}
  image: {{ include "lighten.image" (dict "image" .Values.workers.image "chart" .Chart) | quote }}
  service_account: {{ include "lighten.workerServiceAccount" . }}
  # Of the images.
  user_id: 65532
  pod_template: /etc/lighten/config/pod-template.yaml
  cpus: {{ .Values.workers.cpus }}
  {{- with .Values.workers.runtimeClass }}
  runtime_class: {{ . }}
  {{- end }}
  {{- if .Values.kueue.enabled }}
  queue: {{ .Values.kueue.queue }}
  {{- end }}
  {{- with .Values.workers.gpuProfiles }}
  gpu_profiles: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.workers.priorityClasses }}
  priority_classes: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* What values.schema.json cannot say. */}}
{{- define "lighten.checks" -}}
{{- $tls := include "lighten.tlsSecret" . -}}
{{- if not .Values.insecure -}}
{{- if not $tls -}}
{{ fail "there is no TLS: set tls.existingSecret or tls.certManager, or insecure=true if the network keeps everyone else out" }}
{{- end -}}
{{- if not .Values.auth.existingSecret -}}
{{ fail "there are no tokens: set auth.existingSecret (docs/authentication.md), or insecure=true if the network keeps everyone else out" }}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.clientCa.existingSecret (not $tls) -}}
{{ fail "tls.clientCa needs TLS: set tls.existingSecret or tls.certManager" }}
{{- end -}}
{{- range $name, $value := dict "tls" "tls" "auth" "auth" "insecure_bind" "insecure" -}}
{{- if hasKey $.Values.settings $name -}}
{{ fail (printf "settings.%s would pass these checks by: set the chart's own %s" $name $value) }}
{{- end -}}
{{- end -}}
{{- range list "access_key" "secret_key" "session_token" -}}
{{- if hasKey (default dict $.Values.settings.s3) . -}}
{{ fail (printf "settings.s3.%s would stand in a ConfigMap: set storage.s3.existingSecret, or server.env from a Secret" .) }}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.existingSecret .Values.tls.certManager.enabled -}}
{{ fail "tls.existingSecret and tls.certManager: choose one" }}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{ fail "tls.certManager.issuerRef.name is missing: the Issuer or ClusterIssuer that signs" }}
{{- end -}}
{{- if and .Values.storage.root (not .Values.storage.s3.existingSecret) -}}
{{ fail "storage.root is on S3: set storage.s3.existingSecret, a Secret with the keys" }}
{{- end -}}
{{- end }}
