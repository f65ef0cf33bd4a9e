{{- define "rds-csi.nodeContainers" -}}
- name: node
  image: {{ include "rds-csi.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - node
    - --config=/etc/rds-csi/node.toml
    - --node-id=$(NODE_NAME)
  env:
    - name: NODE_NAME
      valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
    - name: RDS_CSI_LOG
      value: {{ .Values.node.log | quote }}
  ports:
    - {name: metrics, containerPort: 9809, protocol: TCP}
  startupProbe:
    httpGet: {path: /healthz, port: metrics}
    periodSeconds: 2
    failureThreshold: 30
  # The livenessprobe sidecar asks CSI's socket, and answers on the host's own address only.
  livenessProbe:
    httpGet: {host: 127.0.0.1, path: /healthz, port: 9808}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  # Whether the controllers know this node.
  readinessProbe:
    httpGet: {path: /readyz, port: metrics}
    periodSeconds: 5
    timeoutSeconds: 3
  securityContext:
    privileged: true
    runAsUser: 0
    readOnlyRootFilesystem: true
  resources:
    {{- toYaml .Values.node.resources | nindent 4 }}
  volumeMounts:
    - {name: plugin, mountPath: /csi}
    - {name: kubelet, mountPath: {{ .Values.node.kubeletDirectory | quote }}, mountPropagation: Bidirectional}
    - {name: dev, mountPath: /dev}
    - {name: sys, mountPath: /sys}
    - {name: machine-id, mountPath: /etc/machine-id, readOnly: true}
    - {name: settings, mountPath: /etc/rds-csi, readOnly: true}
- name: node-driver-registrar
  image: {{ include "rds-csi.imageOf" .Values.sidecars.nodeDriverRegistrar.image }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    - --kubelet-registration-path={{ .Values.node.kubeletDirectory }}/plugins/{{ include "rds-csi.driver" . }}/csi.sock
    - --http-endpoint=127.0.0.1:9807
  livenessProbe:
    httpGet: {host: 127.0.0.1, path: /healthz, port: 9807}
    initialDelaySeconds: 10
    periodSeconds: 30
    timeoutSeconds: 5
  securityContext:
    # The sockets are root's.
    runAsUser: 0
    {{- include "rds-csi.confined" . | nindent 4 }}
  resources:
    {{- toYaml .Values.sidecars.nodeDriverRegistrar.resources | nindent 4 }}
  volumeMounts:
    - {name: plugin, mountPath: /csi}
    - {name: registration, mountPath: /registration}
- name: liveness-probe
  image: {{ include "rds-csi.imageOf" .Values.sidecars.livenessProbe.image }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  # What it serves is the node plugin's liveness.
  args:
    - --csi-address=/csi/csi.sock
    - --http-endpoint=127.0.0.1:9808
    - --probe-timeout=3s
  securityContext:
    runAsUser: 0
    {{- include "rds-csi.confined" . | nindent 4 }}
  resources:
    {{- toYaml .Values.sidecars.livenessProbe.resources | nindent 4 }}
  volumeMounts:
    - {name: plugin, mountPath: /csi}
{{- end }}
