{{- define "rds-csi.certificatesJob" -}}
backoffLimit: 6
activeDeadlineSeconds: 600
ttlSecondsAfterFinished: 3600
template:
  metadata:
    labels:
      {{- include "rds-csi.labels" . | nindent 6 }}
      app.kubernetes.io/component: certificates
  spec:
    serviceAccountName: {{ include "rds-csi.name" . }}-certificates
    enableServiceLinks: false
    restartPolicy: Never
    {{- with .Values.imagePullSecrets }}
    imagePullSecrets:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- include "rds-csi.confinedPod" . | nindent 6 }}
    {{- with .Values.controller.tolerations }}
    tolerations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
      - name: certificates
        image: {{ include "rds-csi.image" . }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        args:
          - certificates
          - --namespace={{ .Release.Namespace }}
          - --ca-secret={{ include "rds-csi.caSecret" . }}
          - --controller-secret={{ include "rds-csi.controllerSecret" . }}
          - --operator-secret={{ include "rds-csi.operatorSecret" . }}
          - --node-secret={{ include "rds-csi.nodeSecret" . }}
          - --replicas={{ include "rds-csi.controller" . }}
          {{- range $name := include "rds-csi.dnsNames" . | fromJsonArray }}
          - --dns={{ $name }}
          {{- end }}
          {{- if .Values.hotplug.enabled }}
          - --webhook={{ include "rds-csi.webhook" . }}
          {{- end }}
        securityContext:
          {{- include "rds-csi.confined" . | nindent 10 }}
        resources:
          {{- toYaml .Values.certificates.resources | nindent 10 }}
{{- end }}

{{/* What the replicas' certificate is a server's for, beside the name that peers and nodes expect. */}}
{{- define "rds-csi.dnsNames" -}}
{{- $names := list (printf "%s.%s.svc" (include "rds-csi.controller" .) .Release.Namespace) -}}
{{- if .Values.hotplug.enabled -}}
{{- $names = append $names (printf "%s.%s.svc" (include "rds-csi.webhook" .) .Release.Namespace) -}}
{{- end -}}
{{ toJson $names }}
{{- end }}
