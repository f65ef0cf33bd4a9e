{{- define "rds-csi.controllerContainer" -}}
- name: controller
  image: {{ include "rds-csi.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - controller
    - --config=/etc/rds-csi/controller.toml
    - --name=$(POD_NAME)
  env:
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: RDS_CSI_LOG
      value: {{ .Values.controller.log | quote }}
  ports:
    - {name: gateway, containerPort: {{ .Values.controller.port }}, protocol: TCP}
    - {name: metrics, containerPort: 9809, protocol: TCP}
    - {name: healthz, containerPort: 9808, protocol: TCP}
    {{- if .Values.hotplug.enabled }}
    - {name: webhook, containerPort: 9443, protocol: TCP}
    {{- end }}
  lifecycle:
    preStop:
      # It learns the replica's name from POD_NAME: nothing expands variables here.
      exec:
        command: [/usr/local/bin/rds-csi, hand-over, --config, /etc/rds-csi/controller.toml]
  # Recovery of a long log may take its time.
  startupProbe:
    httpGet: {path: /healthz, port: metrics}
    periodSeconds: 2
    failureThreshold: 90
  # The livenessprobe sidecar asks CSI's socket. Neither depends on quorum, appliance or API server: a restart would
  # mend none of them.
  livenessProbe:
    httpGet: {path: /healthz, port: healthz}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  # Depends on the quorum, so that an update does not go on without one.
  readinessProbe:
    httpGet: {path: /readyz, port: metrics}
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: 3
  securityContext:
    {{- include "rds-csi.confined" . | nindent 4 }}
  resources:
    {{- toYaml .Values.controller.resources | nindent 4 }}
  volumeMounts:
    - {name: socket, mountPath: /csi}
    - {name: settings, mountPath: /etc/rds-csi, readOnly: true}
    - name: raft
      mountPath: /var/lib/rds-csi
      {{- if .Values.raftData.hostPath }}
      subPathExpr: $(POD_NAME)
      {{- end }}
{{- end }}

{{- define "rds-csi.sidecar" -}}
{{- $sidecar := index .root.Values.sidecars .values -}}
{{- $election := .root.Values.sidecarElection -}}
- name: {{ .name }}
  image: {{ include "rds-csi.imageOf" $sidecar.image }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    # As long as the driver takes at most: an election, and the appliance.
    - --timeout=60s
    # A refusal that waits for another node is asked again soon.
    - --retry-interval-start=500ms
    - --retry-interval-max=15s
    - --leader-election
    - --leader-election-namespace={{ .root.Release.Namespace }}
    - --leader-election-lease-duration={{ $election.leaseDurationSeconds }}s
    - --leader-election-renew-deadline={{ $election.renewDeadlineSeconds }}s
    - --leader-election-retry-period={{ $election.retryPeriodSeconds }}s
    - --http-endpoint=:{{ .port }}
    {{- range .arguments }}
    - {{ . }}
    {{- end }}
  env:
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  ports:
    - {name: {{ .name }}, containerPort: {{ .port }}, protocol: TCP}
  # Fails if it believes to lead and has not renewed its lease.
  livenessProbe:
    httpGet: {path: /healthz/leader-election, port: {{ .name }}}
    initialDelaySeconds: 10
    periodSeconds: 20
    timeoutSeconds: 5
  securityContext:
    {{- include "rds-csi.confined" .root | nindent 4 }}
  resources:
    {{- toYaml $sidecar.resources | nindent 4 }}
  volumeMounts:
    - {name: socket, mountPath: /csi}
{{- end }}

{{- define "rds-csi.controllerSidecars" -}}
{{- $provisioner := list "--extra-create-metadata" -}}
{{- if eq (include "rds-csi.capacity" .) "true" -}}
{{- $provisioner = concat $provisioner (list "--enable-capacity" "--capacity-ownerref-level=1" "--capacity-poll-interval=1m") -}}
{{- end -}}
{{ include "rds-csi.sidecar" (dict "root" . "name" "provisioner" "values" "provisioner" "port" 9811 "arguments" $provisioner) }}
{{ include "rds-csi.sidecar" (dict "root" . "name" "attacher" "values" "attacher" "port" 9812 "arguments" list) }}
{{- /* Volumes grow while they are in use, so no pods have to be watched for it. */}}
{{ include "rds-csi.sidecar" (dict "root" . "name" "resizer" "values" "resizer" "port" 9813 "arguments" (list "--resize-timeout=60s" "--handle-volume-inuse-error=false")) }}
- name: liveness-probe
  image: {{ include "rds-csi.imageOf" .Values.sidecars.livenessProbe.image }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  # What it serves is the controller's liveness.
  args:
    - --csi-address=/csi/csi.sock
    - --http-endpoint=:9808
    - --probe-timeout=3s
  securityContext:
    {{- include "rds-csi.confined" . | nindent 4 }}
  resources:
    {{- toYaml .Values.sidecars.livenessProbe.resources | nindent 4 }}
  volumeMounts:
    - {name: socket, mountPath: /csi}
{{- end }}
