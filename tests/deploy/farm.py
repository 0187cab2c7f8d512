"""A farm of real processes under a real Prometheus: what the chart starts, starts; what the panels ask, is there.

usage: farm.py FRESCO PROMETHEUS GOLDEN    PROMETHEUS: a folder of programs; GOLDEN: the chart with its own values

Coordinator and workers get arguments and environment from the rendered pods and nothing else, each an address of its
own out of 127.0.0.0/8 with the ports of the chart. One worker is killed, one is drained the way its hook does it; then
every expression of the dashboard and of the rules is asked of Prometheus.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

import expressions
from outcome import check, failed, ok

ROOT = pathlib.Path(__file__).parents[2]
MONITORING = ROOT / "deploy/helm/fresco/monitoring"
PICTURE = ["a calm sea at dawn", "--size", "256x256", "--steps", "8"]
DEADLINE_S = 240


def until(what, holds):
    """Asks again until it holds; every wait here ends by this or by a process's end."""
    since = time.monotonic()
    while not (found := holds()):
        if time.monotonic() - since > DEADLINE_S:
            raise TimeoutError(f"not within {DEADLINE_S} s: {what}")
        time.sleep(0.05)
    return found


class Prometheus:
    """Scrapes every second."""

    def __init__(self, programs, folder, address, targets, stack):
        self.url = f"http://{address}:9090"
        jobs = [{"job_name": role, "static_configs": [{"targets": addresses}]} for role, addresses in targets.items()]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [f"{programs}/prometheus", f"--config.file={folder}/prometheus.yml"]
        command += [f"--storage.tsdb.path={folder}/series", f"--web.listen-address={address}:9090"]
        stack.enter_context(running(command, folder / "prometheus.log"))
        until("Prometheus answers", self.is_there)

    def is_there(self):
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready"):
                return True
        except urllib.error.URLError:
            return False

    def query(self, kind, **asked):
        url = f"{self.url}/api/v1/{kind}?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{asked['query']}: {error.read().decode()}") from error

    def sees(self, address):
        """Whether a scrape of this address made now has come."""
        now = time.time()

        def newer():
            found = self.query("query", query=f'timestamp(up{{instance="{address}:7480"}} == 1)')
            return found and float(found[0]["value"][1]) >= now

        until(f"Prometheus sees {address}", newer)


@contextlib.contextmanager
def running(command, log, **options):
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Farm:
    """What the chart would start, as processes."""

    def __init__(self, program, golden, folder, stack):
        self.folder, self.stack = folder, stack
        self.program = str(pathlib.Path(program).resolve())
        # The coordinator's image has a program of its own; a `fresco` alone can be it, too.
        lone = pathlib.Path(f"{self.program}-coordinator")
        self.programs = {"coordinator": str(lone) if lone.exists() else self.program, "worker": self.program}
        things = [thing for thing in yaml.safe_load_all(pathlib.Path(golden).read_text()) if thing]
        self.pods = {
            thing["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]:
            thing["spec"]["template"]["spec"]["containers"][0]
            for thing in things if thing["kind"] in ("StatefulSet", "Deployment")
        }  # fmt: skip
        own = os.urandom(2)
        self.net = f"127.{own[0] % 254 + 1}.{own[1]}"
        self.processes = {}

    def address(self, idx):
        return f"{self.net}.{idx + 1}"

    def environment(self, role, name, address):
        """Of the pod, with what only a cluster has put in: addresses, names, and the image's folders."""
        given = {
            "$(POD_IP)": address,
            "0.0.0.0": address,
            "http://fresco-coordinator:": f"http://{self.address(0)}:",
            "/data/": f"{self.folder}/data/",
            "/usr/share/fresco/models/": f"{ROOT}/models/",
        }
        fields = {"metadata.name": name, "status.podIP": address}
        environment = {}
        for variable in self.pods[role]["env"]:
            field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            value = fields[field] if field else variable["value"]
            for old, new in given.items():
                value = value.replace(old, new)
            environment[variable["name"]] = value
        return environment

    def start(self, role, name, idx):
        address, args = self.address(idx), self.pods[role].get("args", [])
        environment = self.environment(role, name, address)
        process = self.stack.enter_context(
            running([self.programs[role], *args], self.folder / f"{name}.log", env=environment, cwd=self.folder)
        )
        self.processes[name] = process
        return address

    def drain(self, name, idx):
        """The hook before a container's end, as its pod runs it."""
        command = self.pods["worker"]["lifecycle"]["preStop"]["exec"]["command"]
        environment = self.environment("worker", name, self.address(idx))
        subprocess.run([self.program, *command[1:]], env=environment, check=True, capture_output=True, cwd=self.folder)
        return self.processes[name].wait(DEADLINE_S)

    def call(self, *args):
        command = [self.program, *args, "--coordinator", f"http://{self.address(0)}:7400"]
        run = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False)
        if run.returncode:
            raise ValueError(f"fresco {' '.join(args)}: {run.stderr}")
        return run.stdout.strip()

    def submit(self, seed, count):
        return self.call("submit", *PICTURE, "--seed", str(seed), "--count", str(count))

    def until_under_way(self, job, worker):
        """Waits until this worker is at a picture of the job, and has a step behind it."""
        command = [self.program, "watch", job, "--json", "--coordinator", f"http://{self.address(0)}:7400"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watch:
            for line in watch.stdout:
                event = json.loads(line)
                if event["step"] >= 1 and worker in event["workers"]:
                    watch.kill()
                    return
        raise ValueError(f"{worker} was never at job {job}")

    def tail(self):
        """The last words of every process."""
        logs = sorted(self.folder.glob("*.log"))
        return " | ".join(f"{log.stem}: {' '.join(log.read_text().splitlines()[-2:])}" for log in logs)


def play(farm, prometheus):
    """Enough of everything that every panel has something to show."""
    for idx in range(3):
        prometheus.sees(farm.address(idx))
    farm.call("wait", farm.submit(1, 1))
    both = farm.submit(2, 3)
    farm.until_under_way(both, "w2")
    farm.processes["w2"].kill()
    prometheus.sees(farm.start("worker", "w3", 3))
    farm.call("wait", both)
    cancelled = farm.submit(5, 1)
    farm.call("cancel", cancelled)
    left = farm.submit(6, 4)
    farm.until_under_way(left, "w1")
    code = farm.drain("w1", 1)
    check("the hook before a worker's end drains it", [f"it ended with {code}"] if code else [])
    farm.call("wait", left)
    # A rate is of what changes between two scrapes.
    for seed in (10, 11, 12):
        farm.call("wait", farm.submit(seed, 1))
        for idx in (0, 3):
            prometheus.sees(farm.address(idx))


def lint(promtool, farm):
    """Names, types and help of what a coordinator and a worker tell."""
    for role, idx in (("coordinator", 0), ("worker", 3)):
        with urllib.request.urlopen(f"http://{farm.address(idx)}:7480/metrics") as answer:
            text = answer.read()
        run = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
        faults = (run.stdout + run.stderr).decode().splitlines()
        faults += ["nothing was told"] if b"fresco_build_info" not in text else []
        check(f"metrics of a {role} are named as Prometheus wants them", faults or [run.returncode] * run.returncode)


def main(program, prometheus_bin, golden):
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        (folder / "data").mkdir()
        farm = Farm(program, golden, folder, stack)
        workers = [f"{farm.address(idx)}:7480" for idx in (1, 2, 3)]
        prometheus_at = farm.address(9)
        targets = {"coordinator": [f"{farm.address(0)}:7480"], "worker": workers}
        # A process of another program, as a Prometheus that is shared has many.
        targets[expressions.STRANGER] = [f"{prometheus_at}:9090"]
        since = time.time()
        try:
            prometheus = Prometheus(prometheus_bin, folder, prometheus_at, targets, stack)
            farm.start("coordinator", "c0", 0)
            for idx in (1, 2):
                farm.start("worker", f"w{idx}", idx)
            play(farm, prometheus)
            ok("a farm of the chart's own pods draws, loses a worker and drains one")
            lint(f"{prometheus_bin}/promtool", farm)
            expressions.ask(prometheus, MONITORING, since)
        except (TimeoutError, ValueError, subprocess.SubprocessError) as error:
            failed("a farm of the chart's own pods under Prometheus", f"{error} | {farm.tail()}")


main(*sys.argv[1:])
