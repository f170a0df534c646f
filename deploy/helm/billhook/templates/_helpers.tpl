{{/* The name of everything that the release makes. */}}
{{- define "billhook.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "billhook.selector" -}}
app.kubernetes.io/name: billhook
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "billhook.labels" -}}
{{ include "billhook.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "billhook.serviceAccount" -}}
{{ if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "billhook.fullname" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "billhook.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "billhook.configMap" -}}
{{ .Values.existingConfigMap | default (include "billhook.fullname" .) }}
{{- end }}

{{- define "billhook.claim" -}}
{{ .Values.persistence.existingClaim | default (printf "%s-journal" (include "billhook.fullname" .)) }}
{{- end }}

{{/* What a pod must have for the container: fsGroup lets it write the journal's volume. */}}
{{- define "billhook.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Billhook itself; in sidecar mode for the pod of another chart, with billhook.volumes. */}}
{{- define "billhook.container" -}}
- name: billhook
  image: {{ include "billhook.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  # A pod that comes before its predecessor has gone waits for the journal.
  args: [run, --standby, --config, /etc/billhook/billhook.yaml, --handlers, /etc/billhook/handlers.yaml]
  {{- with .Values.existingSecret }}
  envFrom:
    - secretRef: {name: {{ . | quote }}}
  {{- end }}
  {{- with .Values.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - {name: http, containerPort: 8321}
  startupProbe:
    httpGet: {path: /healthz, port: http}
    periodSeconds: 2
    failureThreshold: 60
  livenessProbe:
    httpGet: {path: /healthz, port: http}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  readinessProbe:
    httpGet: {path: /readyz, port: http}
    periodSeconds: 10
    timeoutSeconds: 5
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
    seccompProfile: {type: RuntimeDefault}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  volumeMounts:
    # The folder, not single files: those would stay as they were when the pod began.
    - {name: billhook-config, mountPath: /etc/billhook, readOnly: true}
    - {name: billhook-journal, mountPath: /var/lib/billhook}
    - {name: billhook-tmp, mountPath: /tmp}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Volumes of the container, but for the journal's. */}}
{{- define "billhook.plainVolumes" -}}
- name: billhook-config
  configMap: {name: {{ include "billhook.configMap" . | quote }}}
- name: billhook-tmp
  emptyDir: {}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* All volumes of the container, for the pod of another chart. */}}
{{- define "billhook.volumes" -}}
{{ include "billhook.plainVolumes" . }}
- name: billhook-journal
  {{- if .Values.persistence.enabled }}
  persistentVolumeClaim: {claimName: {{ include "billhook.claim" . | quote }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
