{{- define "rds-csi.webhookMetadata" -}}
labels:
  {{- include "rds-csi.labels" . | nindent 2 }}
{{- if .Values.certificates.certManager }}
annotations:
  cert-manager.io/inject-ca-from: {{ .Release.Namespace }}/{{ include "rds-csi.controllerSecret" . }}
{{- end }}
{{- end }}

{{/* What both webhooks have. Without cert-manager the certificates' Job fills in clientConfig.caBundle. */}}
{{- define "rds-csi.webhookTarget" -}}
admissionReviewVersions: [v1]
failurePolicy: Ignore
timeoutSeconds: 2
matchPolicy: Equivalent
clientConfig:
  service: {name: {{ include "rds-csi.webhook" .root }}, namespace: {{ .root.Release.Namespace }}, path: {{ .path }}, port: 443}
objectSelector:
  matchLabels:
    kubevirt.io: hotplug-disk
namespaceSelector:
  matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values: {{ concat (list "kube-system" .root.Release.Namespace) .root.Values.hotplug.excludedNamespaces | uniq | toJson }}
{{- end }}
