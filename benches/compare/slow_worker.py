"""Times pictures made by a worker and a second one that is held at a fifth of a core, against the sum of their speeds.

    cargo build --release
    python benches/compare/slow_worker.py [--rounds 3] [--size 1024x1024] [--steps 16] [--share 0.2] [--pin]

Three farms of real processes, one thread a worker: the quick worker alone, the held one alone, and both. All threads of
the held one together have 2 ms of every 10, by a control group where one can be made, else by signals. Pictures of the
three are made in turn. A rate is steps over the time from a picture's second step to its last, so that loading and the
captions are left out and the search for the right split is not. With --pin the quick worker has a core for its threads
and those that carry tensors, and all else another; without it they go where the system puts them.

Printed are the medians of the three rates, what both reach of the sum of the two alone, and for each picture how often
it was split anew: the first one once, since the worker was probed before it was held; later ones begin as it ended.
"""

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "snowy mountains at sunset with a full moon on the left"
PERIOD_S = 0.010
CORES = sorted(os.sched_getaffinity(0))


class Quota:
    """Lets a process have a share of one core, all of its threads together."""

    CONTROLLERS = [  # cgroup v2 and v1: the folder, and what it takes.
        ("/sys/fs/cgroup", lambda period_us, quota_us: {"cpu.max": f"{quota_us} {period_us}"}),
        ("/sys/fs/cgroup/cpu", lambda period_us, quota_us: {"cpu.cfs_period_us": period_us, "cpu.cfs_quota_us": quota_us}),
    ]

    def __init__(self, pid, share):
        self.pid, self.group = pid, None
        period_us = int(PERIOD_S * 1e6)
        for root, settings in self.CONTROLLERS:
            group = Path(root) / f"fresco-{pid}"
            try:
                group.mkdir()
                for name, value in settings(period_us, int(period_us * share)).items():
                    if not (group / name).exists():
                        raise FileNotFoundError(group / name)
                    (group / name).write_text(str(value))
                (group / "cgroup.procs").write_text(str(pid))
            except OSError:
                if group.exists():
                    group.rmdir()
                continue
            self.group = group
            return
        raise OSError("no control group can be made here")

    def end(self):
        """After the process has ended."""
        self.group.rmdir()


class Signals(threading.Thread):
    """Lets a process run for a share of the time."""

    def __init__(self, pid, share):
        super().__init__(daemon=True)
        self.pid, self.share, self.is_over = pid, share, False
        self.start()

    def run(self):
        try:
            while not self.is_over:
                os.kill(self.pid, signal.SIGCONT)
                time.sleep(PERIOD_S * self.share)
                os.kill(self.pid, signal.SIGSTOP)
                time.sleep(PERIOD_S * (1 - self.share))
            os.kill(self.pid, signal.SIGCONT)
        except ProcessLookupError:
            pass

    def end(self):
        self.is_over = True
        self.join()


def hold(pid, share):
    try:
        return Quota(pid, share)
    except OSError:
        return Signals(pid, share)


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return "127.0.0.1:%d" % free.getsockname()[1]


class Farm:
    """A coordinator and its workers."""

    def __init__(self, args, names, folder):
        self.args, self.children, self.held, self.status = args, [], [], {}
        address = free_address()
        self.url = f"http://{address}"
        self.log = open(folder / "log", "w+", encoding="utf-8")
        places = ["--store", f"redb:{folder}/store", "--artifacts", f"file:{folder}/pictures"]
        self.start(["coordinator", "--listen", address, *places], CORES[-1])
        self.until_it_says("coordinating on")
        for name in names:
            self.status[name] = free_address()
            where = ["--coordinator", self.url, "--status", self.status[name]]
            self.start(["worker", *where, "--name", name, "--threads", "1", "--model", args.model], CORES[-1] if name == "held" else CORES[0])
            self.until_it_says("joined", len(self.children) - 1)
            if name == "held":
                self.held.append(hold(self.children[-1].pid, args.share))

    def start(self, arguments, core):
        child = subprocess.Popen(
            [self.args.fresco, *arguments], stdout=self.log, stderr=self.log, env=os.environ | {"FRESCO_LOG": "info"},
            preexec_fn=lambda: os.sched_setaffinity(0, {core} if self.args.pin else CORES),
        )
        self.children.append(child)

    def until_it_says(self, words, times=1):
        end = time.monotonic() + 60
        while self.said().count(words) < times:
            if time.monotonic() > end or any(child.poll() is not None for child in self.children):
                said = self.said()
                self.end()
                sys.exit(f"`{words}` was awaited of a farm that said:\n{said}")
            time.sleep(0.05)

    def said(self):
        self.log.flush()
        return Path(self.log.name).read_text(encoding="utf-8")

    def call(self, *arguments):
        command = [self.args.fresco, *arguments, "--coordinator", self.url]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def computed(self):
        """Seconds each worker computed and waited for tensors so far."""
        totals = {}
        for name, address in self.status.items():
            text = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
            value = lambda metric: float(re.search(rf"^{metric} (.+)$", text, re.MULTILINE)[1])
            totals[name] = value("fresco_compute_seconds_total"), value("fresco_exchange_wait_seconds_total")
        return totals

    def rows(self):
        """Token rows of each worker, as it was assigned last."""
        found = dict(re.findall(r"assigned worker=(\w+) .*? n_rows=(\d+)", self.said()))
        return ", ".join(f"{name} {n}" for name, n in found.items())

    def picture(self, steps, seed):
        """Steps a second, and how often it was split anew."""
        flags = ["--size", self.args.size, "--steps", str(steps), "--seed", str(seed), "--model", self.args.model]
        job = self.call("submit", PROMPT, *flags).strip()
        watch = [self.args.fresco, "watch", job, "--json", "--coordinator", self.url]
        times, epochs = {}, set()
        with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as watching:
            for line in watching.stdout:
                event = json.loads(line)
                times.setdefault(event["step"], time.monotonic())
                epochs.add(event["epoch"])
                if event["step"] >= steps:
                    break
            watching.terminate()
        # The decode is not what is measured.
        subprocess.run([self.args.fresco, "cancel", job, "--coordinator", self.url], check=False, stdout=subprocess.DEVNULL)
        first, last = min(step for step in times if step >= 2), max(times)
        return (last - first) / (times[last] - times[first]), len(epochs - {0, None}) - 1

    def end(self):
        for child in self.children:
            child.kill()
            child.wait()
        for held in self.held:
            held.end()
        self.log.close()


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pictures of each farm (default: %(default)s)")
    parser.add_argument("--size", default="1024x1024", help="of a picture (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="of a picture (default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.2, help="of the time the held worker runs (default: %(default)s)")
    parser.add_argument("--pin", action="store_true", help="give the quick worker a core and all else another")
    parser.add_argument("--model", default=str(ROOT / "models/demo"), help="(default: the demo)")
    parser.add_argument("--fresco", default=str(ROOT / "target/release/fresco"), help="the binary (default: %(default)s)")
    args = parser.parse_args()
    if not os.access(args.fresco, os.X_OK):
        parser.error(f"{args.fresco} is not there: build it with `cargo build --release`")
    return args


def main():
    args = parse_arguments()
    farms = {"quick": ["quick"], "held": ["held"], "both": ["quick", "held"]}
    rates = {name: [] for name in farms}
    with tempfile.TemporaryDirectory() as folder:
        for name in farms:
            (Path(folder) / name).mkdir()
        running = {}
        try:
            for name, workers in farms.items():
                running[name] = Farm(args, workers, Path(folder) / name)
            for seed in range(args.rounds):
                for name, farm in running.items():
                    # Alone it takes so long that a few steps must do.
                    steps, before = max(args.steps // 4, 4) if name == "held" else args.steps, farm.computed()
                    rate, n_resplits = farm.picture(steps, seed)
                    rates[name].append(rate)
                    print(f"picture {seed}, {name}: {rate:.3f} steps/s, split anew {n_resplits} times", end="")
                    for worker, (compute_s, wait_s) in farm.computed().items():
                        compute_s, wait_s = compute_s - before[worker][0], wait_s - before[worker][1]
                        print(f"; {worker} computed {compute_s:.2f} s, waited {wait_s:.2f} s", end="")
                    print(f"; rows: {farm.rows()}", flush=True)
        finally:
            for farm in running.values():
                farm.end()
    quick, held, both = (statistics.median(rates[name]) for name in farms)
    print(f"quick alone {quick:.3f}, held alone {held:.3f}, both {both:.3f} steps/s")
    print(f"{both / (quick + held):.2f} of the sum of their speeds, {both / quick:.2f} of the quick one alone")


if __name__ == "__main__":
    main()
