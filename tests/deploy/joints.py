"""Whether rendered objects fit each other: what one names, another has.

usage: joints.py GOLDEN...

A schema sees one object at a time; a selector that matches no pod, a port that no container has or a policy that lets
nobody in are only seen together. Beside that, what every pod of the chart must be: unprivileged, probed, and with time
to hand its work over.
"""

import pathlib
import sys
import urllib.parse

import yaml

from outcome import check

WORKLOADS = {"Deployment", "StatefulSet", "LeaderWorkerSet"}
UNPRIVILEGED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
IN_PROMETHEUS = str.maketrans("./-", "___")
QUEUE = "kueue.x-k8s.io/queue-name"
WITHIN = {"FRESCO_COORDINATOR", "FRESCO_ADVERTISE"}
LISTENING = ("FRESCO_LISTEN", "FRESCO_WORKER_LISTEN", "FRESCO_STATUS")


class Rendered:
    """The objects of one golden, by what others ask them for."""

    def __init__(self, things):
        self.things = things
        self.workloads = [thing for thing in things if thing["kind"] in WORKLOADS]

    def of(self, kind):
        return [thing for thing in self.things if thing["kind"] == kind]

    def names(self, kind):
        return {thing["metadata"]["name"] for thing in self.of(kind)}

    def pods(self):
        """(name, labels, spec) of the pods of each workload."""
        for thing in self.workloads:
            inner = thing["spec"].get("leaderWorkerTemplate", {}).get("workerTemplate") or thing["spec"]["template"]
            yield thing["metadata"]["name"], inner["metadata"]["labels"], inner["spec"]

    def selected(self, selector):
        return [pod for pod in self.pods() if matches(selector, pod[1])]


def matches(selector, labels):
    return all(labels.get(key) == value for key, value in selector.items())


def reference(thing):
    return {"apiVersion": thing["apiVersion"], "kind": thing["kind"], "name": thing["metadata"]["name"]}


def workload_faults(seen):
    for thing in seen.workloads:
        name = f"{thing['kind']}/{thing['metadata']['name']}"
        if selector := thing["spec"].get("selector"):
            pods = [pod for pod, _, _ in seen.selected(selector["matchLabels"])]
            if pods != [thing["metadata"]["name"]]:
                yield f"{name} selects the pods of {pods}"
        # Kueue heeds the label of the workload, and passes over pods whose owner it knows.
        (queues,) = [labels.get(QUEUE) for pod, labels, _ in seen.pods() if pod == thing["metadata"]["name"]]
        if thing["metadata"]["labels"].get(QUEUE) != queues:
            yield f"{name} is not in the queue of its pods, {queues}"
        if thing["kind"] == "StatefulSet" and thing["spec"]["serviceName"] not in seen.names("Service"):
            yield f"{name} names a service that is not there"
    scalers = seen.of("ScaledObject") + seen.of("HorizontalPodAutoscaler")
    scaled = [thing["spec"]["scaleTargetRef"] for thing in scalers]
    for target in scaled:
        found = [thing for thing in seen.workloads if target == reference(thing)]
        if not found:
            yield f"{target} is scaled and not there"
        elif "replicas" in found[0]["spec"]:
            yield f"{target['name']} is scaled and has replicas: each upgrade would set them back"
    if len({target["name"] for target in scaled}) != len(scaled):
        yield "one workload is scaled twice"
    for thing in seen.of("HorizontalPodAutoscaler"):
        metrics = [metric["external"]["metric"] for metric in thing["spec"]["metrics"]]
        asked = {label for metric in metrics for label in metric["selector"]["matchLabels"]}
        for monitor in seen.of("ServiceMonitor"):
            told = {label.translate(IN_PROMETHEUS) for label in monitor["spec"].get("targetLabels", [])}
            if asked != {"model"} | told:
                yield f"{thing['metadata']['name']} asks by {asked}, {monitor['metadata']['name']} has model and {told}"
    made = {thing["spec"]["secretName"] for thing in seen.of("Certificate")}
    for thing in seen.of("TriggerAuthentication"):
        if made and {ref["name"] for ref in thing["spec"]["secretTargetRef"]} != made:
            yield f"KEDA reads other secrets than cert-manager writes: {made}"
    for thing in seen.of("ScaledObject"):
        for trigger in thing["spec"]["triggers"]:
            ref = trigger.get("authenticationRef", {}).get("name")
            if ref and ref not in seen.names("TriggerAuthentication"):
                yield f"{thing['metadata']['name']}: no TriggerAuthentication {ref}"
            host = trigger["metadata"]["scalerAddress"].split(":")[0].split(".")[0]
            if host not in seen.names("Service"):
                yield f"{thing['metadata']['name']}: no service {host}"


def service_faults(seen):
    for thing in seen.of("Service"):
        name, spec = thing["metadata"]["name"], thing["spec"]
        pods = seen.selected(spec["selector"])
        if not pods:
            yield f"service {name} selects no pod"
        for pod, _, pod_spec in pods:
            ports = {port["name"]: port["containerPort"] for c in pod_spec["containers"] for port in c.get("ports", [])}
            for port in spec["ports"]:
                if ports.get(port["targetPort"]) != port["port"]:
                    yield f"service {name}: pods of {pod} have no port {port['targetPort']} of number {port['port']}"
    for thing in seen.of("PodDisruptionBudget"):
        if not seen.selected(thing["spec"]["selector"]["matchLabels"]):
            yield f"budget {thing['metadata']['name']} selects no pod"
    for thing in seen.of("ServiceMonitor"):
        selector = thing["spec"]["selector"]["matchLabels"]
        found = [service for service in seen.of("Service") if matches(selector, service["metadata"]["labels"])]
        ports = [port["name"] for service in found for port in service["spec"]["ports"]]
        if [ports.count(endpoint["port"]) for endpoint in thing["spec"]["endpoints"]] != [1]:
            yield f"monitor {thing['metadata']['name']}: its port is not there once, but {ports}"


def policy_faults(seen):
    policies = seen.of("NetworkPolicy")
    if not policies:
        return
    for pod, labels, spec in seen.pods():
        mine = [p["spec"] for p in policies if matches(p["spec"]["podSelector"]["matchLabels"], labels)]
        if not any(set(p["policyTypes"]) == {"Ingress", "Egress"} for p in mine):
            yield f"{pod} is not closed off"
        ports = {port["containerPort"] for c in spec["containers"] for port in c.get("ports", [])}
        opened = {port["port"] for p in mine for rule in p.get("ingress", []) for port in rule["ports"]}
        if opened != ports:
            yield f"{pod} listens on {ports}, {opened} are open"
        rules = [rule for p in mine for rule in p.get("egress", [])]
        within = {port["port"] for rule in rules if "to" in rule for port in rule["ports"]}
        anywhere = {port["port"] for rule in rules if "to" not in rule for port in rule["ports"]}
        environment = env_of(spec)
        if missing := {port_of(environment[name]) for name in WITHIN & environment.keys()} - within:
            yield f"{pod} calls ports {missing} within the farm that are not let out"
        if (called := {port_of(url) for url in stores_of(environment)}) != anywhere:
            yield f"{pod} calls ports {called} of stores, {anywhere} are let out"
    for policy in policies:
        for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
            for peer in rule.get("from", []) + rule.get("to", []):
                selector = peer.get("podSelector", {}).get("matchLabels")
                if selector and not seen.selected(selector):
                    yield f"policy {policy['metadata']['name']} names pods that are not there: {selector}"


def port_of(url):
    parts = urllib.parse.urlsplit(url)
    return parts.port or {"http": 80, "https": 443}[parts.scheme]


def stores_of(environment):
    """The URLs a coordinator keeps things at."""
    kind, _, endpoints = environment.get("FRESCO_STORE", "").partition(":")
    urls = endpoints.split(",") if kind == "etcd" else []
    if environment.get("FRESCO_ARTIFACTS", "").startswith("s3:"):
        urls.append(environment.get("AWS_ENDPOINT_URL", "https://s3.amazonaws.com"))
    return urls


def env_of(spec):
    return {e["name"]: e.get("value", "") for c in spec["containers"] for e in c.get("env", [])}


def pod_faults(seen):
    for pod, labels, spec in seen.pods():
        if spec["serviceAccountName"] not in seen.names("ServiceAccount"):
            yield f"{pod}: no account {spec['serviceAccountName']}"
        if (wanted := spec.get("priorityClassName")) and wanted not in seen.names("PriorityClass"):
            yield f"{pod}: no priority class {wanted}"
        if spec["automountServiceAccountToken"] is not False:
            yield f"{pod}: has a token of the cluster"
        whole = spec["securityContext"]
        if not (whole["runAsNonRoot"] and whole["runAsUser"] and whole["seccompProfile"] == {"type": "RuntimeDefault"}):
            yield f"{pod}: runs as root, or unconfined"
        (owner,) = [thing for thing in seen.workloads if thing["metadata"]["name"] == pod]
        claims = [claim["metadata"] for claim in owner["spec"].get("volumeClaimTemplates", [])]
        volumes = {volume["name"] for volume in spec["volumes"] + claims}
        mounted = set()
        for container in spec["containers"] + spec.get("initContainers", []):
            if container["securityContext"] != UNPRIVILEGED:
                yield f"{pod}/{container['name']}: has more rights than it needs"
            mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
        if mounted != volumes:
            yield f"{pod}: mounts {mounted} of the volumes {volumes}"
        for constraint in spec.get("topologySpreadConstraints", []):
            if not matches(constraint["labelSelector"]["matchLabels"], labels):
                yield f"{pod}: is spread against other pods"
        yield from life_faults(pod, labels, spec)


def life_faults(pod, labels, spec):
    (main,) = spec["containers"]
    ports = {port["containerPort"] for port in main["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if main[probe]["grpc"]["port"] not in ports:
            yield f"{pod}: {probe} asks a port that is not there"
    if main["livenessProbe"]["grpc"].get("service") != "liveness" or main["readinessProbe"]["grpc"].get("service"):
        yield f"{pod}: the two probes ask the wrong service"
    if labels["app.kubernetes.io/component"] == "worker":
        if main["lifecycle"]["preStop"]["exec"]["command"][-3:] != ["worker", "drain", "--wait"]:
            yield f"{pod}: is not drained before it ends"
        if spec["terminationGracePeriodSeconds"] < 60:
            yield f"{pod}: has {spec['terminationGracePeriodSeconds']} s to hand over"
    listening = {int(value.rsplit(":", 1)[1]) for name, value in env_of(spec).items() if name in LISTENING}
    if listening != ports:
        yield f"{pod}: listens on {listening}, its ports are {ports}"


def main(goldens):
    for golden in map(pathlib.Path, goldens):
        seen = Rendered([thing for thing in yaml.safe_load_all(golden.read_text()) if thing])
        for what, faults in [
            ("workloads and what scales them", workload_faults),
            ("services, budgets and monitors", service_faults),
            ("network policies", policy_faults),
            ("pods", pod_faults),
        ]:
            check(f"{what} of {golden.stem} fit", list(faults(seen)))


main(sys.argv[1:])
