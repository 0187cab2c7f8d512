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
resources: {}
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
