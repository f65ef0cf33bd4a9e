{{/* Names. One installation a cluster: a CSIDriver has the driver's name, which is fixed. */}}
{{- define "rds-csi.name" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- end }}
{{- define "rds-csi.controller" -}}{{ include "rds-csi.name" . }}-controller{{- end }}
{{- define "rds-csi.node" -}}{{ include "rds-csi.name" . }}-node{{- end }}
{{- define "rds-csi.webhook" -}}{{ include "rds-csi.name" . }}-webhook{{- end }}
{{- define "rds-csi.driver" -}}rds.csi.srvlab.io{{- end }}

{{/* Whom node plugins' tokens are issued for: the audience. */}}
{{- define "rds-csi.audience" -}}rds-csi{{- end }}

{{/* The user that controllers and all of their sidecars run as: the CSI socket is open to its owner only. */}}
{{- define "rds-csi.uid" -}}65532{{- end }}

{{/* Secrets with certificates. Nodes get one without any key of worth in it: a node may read whatever Secret its
     pods mount, whole. */}}
{{- define "rds-csi.caSecret" -}}{{ include "rds-csi.name" . }}-ca{{- end }}
{{- define "rds-csi.controllerSecret" -}}{{ include "rds-csi.name" . }}-controller-tls{{- end }}
{{- define "rds-csi.operatorSecret" -}}{{ include "rds-csi.name" . }}-operator-tls{{- end }}
{{- define "rds-csi.nodeSecret" -}}{{ include "rds-csi.name" . }}-node-ca{{- end }}

{{/* Labels. */}}
{{- define "rds-csi.selector" -}}
app.kubernetes.io/name: rds-csi
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "rds-csi.labels" -}}
{{ include "rds-csi.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* An image: a digest wins over the tag. */}}
{{- define "rds-csi.imageOf" -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}
{{- define "rds-csi.image" -}}
{{- $repository := required "image.repository: say where you pushed the image that deploy/Dockerfile builds" .Values.image.repository -}}
{{ include "rds-csi.imageOf" (dict "repository" $repository "tag" (.Values.image.tag | default .Chart.AppVersion) "digest" .Values.image.digest) }}
{{- end }}

{{/* The addresses of the replicas, a pod's name each, whether they are ready or not. */}}
{{- define "rds-csi.replicaAddress" -}}
{{ .name }}-{{ .index }}.{{ .name }}.{{ .namespace }}.svc:{{ .port }}
{{- end }}
{{- define "rds-csi.replicaAddresses" -}}
{{- $addresses := list -}}
{{- range $index := until (int .Values.controller.replicas) -}}
{{- $addresses = append $addresses (include "rds-csi.replicaAddress" (dict "name" (include "rds-csi.controller" $) "index" $index "namespace" $.Release.Namespace "port" $.Values.controller.port)) -}}
{{- end -}}
{{ toJson $addresses }}
{{- end }}

{{/* A container that needs nothing of the host. */}}
{{- define "rds-csi.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* A pod that needs nothing of the host. */}}
{{- define "rds-csi.confinedPod" -}}
runAsNonRoot: true
runAsUser: {{ include "rds-csi.uid" . }}
runAsGroup: {{ include "rds-csi.uid" . }}
fsGroup: {{ include "rds-csi.uid" . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Whether free space is published. Without topology the provisioner deletes what it publishes: it looks for labels that
are an empty map, and the API server returns none. With a CSIDriver that promises it, no pod would be scheduled. */}}
{{- define "rds-csi.capacity" -}}{{ and .Values.sidecars.provisioner.capacity (not (empty .Values.topology)) }}{{- end }}

{{/* TOML. */}}
{{- define "rds-csi.topologyToml" -}}
{{- with .Values.topology }}
[topology]
{{- range $key, $value := . }}
{{ $key | quote }} = {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* What a schema cannot say. */}}
{{- define "rds-csi.check" -}}
{{- if not .Values.rds.managementIP }}{{ fail "rds.managementIP: say where the appliance answers SSH" }}{{ end -}}
{{- if not .Values.rds.storageIP }}{{ fail "rds.storageIP: say where the appliance exports volumes over NVMe/TCP" }}{{ end -}}
{{- if not .Values.rds.basePath }}{{ fail "rds.basePath: say in which directory of the appliance volumes' files are to be, for example /storage-pool/kubernetes" }}{{ end -}}
{{- if and .Values.raftData.storageClassName .Values.raftData.hostPath }}{{ fail "raftData: storageClassName and hostPath are both set; leave one of them empty" }}{{ end -}}
{{- if not (or .Values.raftData.storageClassName .Values.raftData.hostPath) }}{{ fail "raftData.storageClassName: say a class of local volumes for the replicas' ledgers (deploy/README.md shows how to make one), or raftData.hostPath" }}{{ end -}}
{{- if and .Values.raftData.hostPath (not .Values.controller.nodeSelector) }}{{ fail "raftData.hostPath: set controller.nodeSelector to exactly as many nodes as there are replicas; else a replica that is scheduled elsewhere loses its data" }}{{ end -}}
{{- range .Values.storageClasses -}}
{{- if eq .name $.Values.raftData.storageClassName }}{{ fail (printf "raftData.storageClassName: %s is a class of this driver, whose controllers would wait for a volume of their own; take a class of local volumes" .name) }}{{ end -}}
{{- end -}}
{{- if eq (mod (int .Values.controller.replicas) 2) 0 }}{{ fail "controller.replicas: must be odd; 3 by preference" }}{{ end -}}
{{- $election := .Values.sidecarElection -}}
{{- if not (and (lt (int $election.retryPeriodSeconds) (int $election.renewDeadlineSeconds)) (lt (int $election.renewDeadlineSeconds) (int $election.leaseDurationSeconds))) }}{{ fail "sidecarElection: must be retryPeriodSeconds < renewDeadlineSeconds < leaseDurationSeconds" }}{{ end -}}
{{- end }}
