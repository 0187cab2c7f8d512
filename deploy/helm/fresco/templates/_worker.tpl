{{- /* The pod of a worker: a dict of root, name (of the pool) and pool. */ -}}
{{- define "fresco.workerPod" -}}
{{- $root := .root }}
{{- $pool := .pool }}
{{- $image := ternary $root.Values.image.workerCuda $root.Values.image.worker (gt (int $pool.gpus) 0) }}
{{- $cache := or $pool.modelCache.claim $pool.modelCache.hostPath }}
metadata:
  labels:
    {{- include "fresco.labels" $root | nindent 4 }}
    app.kubernetes.io/component: worker
    fresco/pool: {{ .name }}
    {{- with $pool.kueueQueue }}
    kueue.x-k8s.io/queue-name: {{ . }}
    {{- end }}
spec:
  serviceAccountName: {{ include "fresco.name" $root }}-worker
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $pool.graceSeconds }}
  {{- include "fresco.pullSecrets" $root | nindent 2 }}
  {{- if $pool.priorityClassName }}
  priorityClassName: {{ $pool.priorityClassName }}
  {{- else if $root.Values.priorityClasses.create }}
  priorityClassName: {{ include "fresco.name" $root }}-worker
  {{- end }}
  securityContext:
    {{- include "fresco.podSecurity" $root | nindent 4 }}
  {{- if $pool.spread }}
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "fresco.selector" (dict "root" $root "component" "worker") | nindent 10 }}
          fresco/pool: {{ $.name }}
    {{- end }}
  {{- end }}
  {{- $verified := list }}
  {{- range $pool.models }}{{ if .sha256 }}{{ $verified = append $verified . }}{{ end }}{{ end }}
  {{- if $verified }}
  initContainers:
    {{- range $idx, $model := $verified }}
    # A worker with other weights would be refused by the farm; this says so before it starts.
    - name: verify-{{ $idx }}
      image: {{ include "fresco.image" (dict "root" $root "name" $image) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: [model, verify, {{ $model.path | quote }}, --sha256, {{ $model.sha256 | quote }}]
      resources:
        requests: { cpu: 500m, memory: 512Mi }
        limits: { memory: 2Gi }
      securityContext:
        {{- include "fresco.security" $root | nindent 8 }}
      {{- if $cache }}
      volumeMounts:
        - name: models
          mountPath: /models
          readOnly: true
      {{- end }}
    {{- end }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "fresco.image" (dict "root" $root "name" $image) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        - worker
        {{- range until (int $pool.gpus) }}
        - --device=cuda:{{ . }}
        {{- end }}
      env:
        - name: POD_IP
          valueFrom:
            fieldRef: { fieldPath: status.podIP }
        - name: FRESCO_WORKER_NAME
          valueFrom:
            fieldRef: { fieldPath: metadata.name }
        - name: FRESCO_COORDINATOR
          value: {{ include "fresco.coordinatorUrl" $root }}
        - name: FRESCO_WORKER_LISTEN
          value: 0.0.0.0:7401
        - name: FRESCO_ADVERTISE
          value: http{{ if $root.Values.tls.enabled }}s{{ end }}://$(POD_IP):7401
        - name: FRESCO_STATUS
          value: 0.0.0.0:7480
        - name: FRESCO_MODEL
          value: {{ range $idx, $model := $pool.models }}{{ if $idx }},{{ end }}{{ $model.path }}{{ end }}
        {{- if $pool.threads }}
        - name: FRESCO_THREADS
          value: {{ $pool.threads | quote }}
        {{- else if dig "requests" "cpu" "" $pool.resources }}
        - name: FRESCO_THREADS
          valueFrom:
            resourceFieldRef: { containerName: worker, resource: requests.cpu }
        {{- end }}
        - name: FRESCO_LOG
          value: {{ $root.Values.log | quote }}
        {{- include "fresco.tlsEnv" $root | nindent 8 }}
      ports:
        - name: tensors
          containerPort: 7401
        - name: status
          containerPort: 7480
      # Alive as soon as the weights are hashed, ready once it is in the farm.
      startupProbe:
        grpc: { port: 7480, service: liveness }
        periodSeconds: 5
        failureThreshold: 240
      readinessProbe:
        grpc: { port: 7480 }
        periodSeconds: 5
      livenessProbe:
        grpc: { port: 7480, service: liveness }
        periodSeconds: 10
        failureThreshold: 6
      lifecycle:
        preStop:
          exec:
            command: [/usr/bin/fresco, worker, drain, --wait]
      resources:
        {{- $resources := deepCopy $pool.resources }}
        {{- if gt (int $pool.gpus) 0 }}
        {{- $limits := merge (dict "nvidia.com/gpu" (int $pool.gpus)) ($resources.limits | default dict) }}
        {{- $_ := set $resources "limits" $limits }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        {{- include "fresco.security" $root | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- if $cache }}
        - name: models
          mountPath: /models
          readOnly: true
        {{- end }}
        {{- if $root.Values.tls.enabled }}
        - name: tls
          mountPath: /etc/fresco/tls
          readOnly: true
        {{- end }}
  {{- with $pool.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if or $pool.tolerations (gt (int $pool.gpus) 0) }}
  tolerations:
    {{- if gt (int $pool.gpus) 0 }}
    - key: nvidia.com/gpu
      operator: Exists
      effect: NoSchedule
    {{- end }}
    {{- with $pool.tolerations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- if $pool.modelCache.claim }}
    - name: models
      persistentVolumeClaim:
        claimName: {{ $pool.modelCache.claim }}
        readOnly: true
    {{- else if $pool.modelCache.hostPath }}
    - name: models
      hostPath:
        path: {{ $pool.modelCache.hostPath }}
        type: Directory
    {{- end }}
    {{- if $root.Values.tls.enabled }}
    - name: tls
      secret:
        secretName: {{ include "fresco.tlsSecret" $root }}
    {{- end }}
{{- end }}
