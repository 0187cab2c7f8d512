{{- /* What a pool is where its values say nothing: the pool `cpu` of values.yaml, so that every pool can be short. */ -}}
{{- define "fresco.poolDefaults" -}}
replicas: 1
gpus: 0
threads: 0
models:
  - name: demo
    path: /usr/share/fresco/models/demo
    sha256: ""
modelCache: { claim: "", hostPath: "" }
graceSeconds: 180
resources:
  requests: { cpu: "2", memory: 2Gi }
  limits: { memory: 6Gi }
nodeSelector: {}
tolerations: []
priorityClassName: ""
spread: true
keda:
  enabled: false
  minReplicas: 0
  maxReplicas: 8
  targetSeconds: 60
  pollingInterval: 15
  cooldownPeriod: 300
  scaleDownStabilizationSeconds: 300
  failureThreshold: 3
hpa: { enabled: false, minReplicas: 1, maxReplicas: 8, targetSeconds: 60 }
leaderWorkerSet: { enabled: false, size: 2 }
kueueQueue: ""
{{- end }}

{{- /* What a schema cannot say of a pool: a dict of name, full (the name of its objects) and pool. */ -}}
{{- define "fresco.poolCheck" -}}
{{- $pool := .pool }}
{{- range $key := list "keda" "hpa" }}
{{- $scale := get $pool $key }}
{{- if gt (int $scale.minReplicas) (int $scale.maxReplicas) }}
{{- fail (printf "pools.%s.%s.minReplicas: %d is more than maxReplicas, %d" $.name $key (int $scale.minReplicas) (int $scale.maxReplicas)) }}
{{- end }}
{{- end }}
{{- range $idx, $model := $pool.models }}
{{- if ne $model.name (base $model.path) }}
{{- fail (printf "pools.%s.models[%d].name: %s: workers call a model as its folder is called, %s" $.name $idx $model.name (base $model.path)) }}
{{- end }}
{{- end }}
{{- if and $pool.leaderWorkerSet.enabled (gt (len .full) 49) }}
{{- fail (printf "pools.%s.leaderWorkerSet: groups named %s have too long a name: take a shorter one for the release or the pool" .name .full) }}
{{- end }}
{{- end }}
