"""Every rendered object against the schema of its kind, in each version of Kubernetes the chart is for.

usage: kinds.py CRDS GOLDEN...    CRDS: the folder with the npm packages of schemas

A kind without a schema is a fault, and so is a key that the schema does not know. Each schema is shown to refuse an
object with one key too many, so that a check that lets all pass would be seen.
"""

import copy
import json
import pathlib
import subprocess
import sys

import jsonschema
import kubernetes_validate
import yaml

from outcome import check

HERE = pathlib.Path(__file__).parent
VERSIONS = ["1.31", "1.32", "1.33", "1.34", "1.35"]
CORE = {"v1", "apps/v1", "policy/v1", "networking.k8s.io/v1", "scheduling.k8s.io/v1", "autoscaling/v2"}
# Operators' kinds, by the npm package that has their schemas.
OPERATORS = {
    "keda.sh/v1alpha1": "keda",
    "monitoring.coreos.com/v1": "prometheus-operator",
    "cert-manager.io/v1": "cert-manager",
}
GROUPS = "leaderworkerset.x-k8s.io/v1"


def name(thing):
    return f"{thing.get('kind')}/{thing.get('metadata', {}).get('name')}"


def misspelt(thing):
    """The same with one key too many, where the kind has its own keys."""
    thing = copy.deepcopy(thing)
    inner = next((thing[key] for key in ("spec", "metadata") if key in thing))
    inner["bogus"] = 1
    return thing


def core_fault(thing, version):
    try:
        kubernetes_validate.validate(thing, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{name(thing)}: {'.'.join(map(str, error.path))}: {error.message}"
    except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError) as error:
        return f"{name(thing)}: {error}"
    return None


def group_faults(thing, version):
    """Faults of a LeaderWorkerSet; its pods are checked as the cluster's own."""
    schema = json.loads((HERE / "leaderworkerset.schema.json").read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(thing)
    faults = [f"{name(thing)}: {error.json_path}: {error.message}" for error in errors]
    for key in ("leaderTemplate", "workerTemplate"):
        if template := thing["spec"]["leaderWorkerTemplate"].get(key):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
            if fault := core_fault({**pod, "metadata": {**pod["metadata"], "name": key}}, version):
                faults.append(fault)
    return faults


def operator_faults(things, crds):
    """For each object the faults that its validator and its types find."""
    asked = [{"package": OPERATORS[thing["apiVersion"]], "object": thing} for thing in things]
    answer = subprocess.run(
        ["node", HERE / "crds.mjs", crds], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


def main(crds, goldens):
    operators = []
    for golden in map(pathlib.Path, goldens):
        things = [thing for thing in yaml.safe_load_all(golden.read_text()) if thing]
        unknown = [t for t in things if t["apiVersion"] not in CORE | OPERATORS.keys() | {GROUPS}]
        check(f"kinds of {golden.stem} all have a schema", [f"{name(t)} of {t['apiVersion']}" for t in unknown])
        core = [thing for thing in things if thing["apiVersion"] in CORE]
        groups = [thing for thing in things if thing["apiVersion"] == GROUPS]
        operators += [(golden.stem, thing) for thing in things if thing["apiVersion"] in OPERATORS]
        for version in VERSIONS:
            faults = [fault for thing in core if (fault := core_fault(thing, version))]
            faults += [fault for thing in groups for fault in group_faults(thing, version)]
            faults += [f"{name(t)}: a misspelt key passes" for t in core if not core_fault(misspelt(t), version)]
            faults += [f"{name(t)}: a misspelt key passes" for t in groups if not group_faults(misspelt(t), version)]
            check(f"{len(core) + len(groups)} objects of {golden.stem} in Kubernetes {version}", faults)
    found = operator_faults([thing for _, thing in operators], crds)
    refused = operator_faults([misspelt(thing) for _, thing in operators], crds)
    for (stem, thing), faults, bad in zip(operators, found, refused, strict=True):
        check(f"{name(thing)} of {stem}", faults + ([] if bad else ["a misspelt key passes"]))


main(sys.argv[1], sys.argv[2:])
