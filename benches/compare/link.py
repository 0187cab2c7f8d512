"""Times fresco's tensor stream against a raw TCP copy loop and PyTorch's gloo, in turns, and prints a Markdown table.

    cargo build --release
    pip install -r benches/compare/requirements.txt
    python benches/compare/link.py [--rounds 7] [--bytes 1048576,67108864] [--without-gloo]

Each side is two processes over loopback. A round is, for each size: fresco (`fresco bench link`), raw TCP, gloo. Every side carries
some 1 GiB of each size, after a quarter as much that is not timed. Raw TCP is `sendall` of the whole tensor at one end and
`recv_into` the tensor's own memory at the other: each byte is copied into the system and out of it once, and nothing
else. It does that twice: into the same memory again and again, and into new memory for every tensor, as whoever keeps
what came must.

The table has the medians of all rounds, ratios round by round. GB are 10^9 bytes of one tensor (each rank of an all_gather receives as many),
and CPU is that of both processes, the system's part included.
"""

import argparse
import json
import mmap
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN_BYTES = 1 << 30  # as `fresco bench link` carries in a run


def count_of(size):
    return max(RUN_BYTES // size, 4)


def warm_up_of(size):
    return count_of(size) // 4


# Raw TCP ----------------------------------------------------------------------------------------------------------


def receive(connection, memory):
    while memory:
        memory = memory[connection.recv_into(memory):]


def raw_receiver(port, size, is_new, report):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tensor = bytearray(size)
    for _ in range(warm_up_of(size)):
        receive(connection, memoryview(tensor))
    connection.sendall(b".")
    start = time.process_time()
    for _ in range(count_of(size)):
        if is_new:
            tensor = mmap.mmap(-1, size)
        receive(connection, memoryview(tensor))
    connection.sendall(b".")
    report.put(time.process_time() - start)


def raw(size, is_new):
    """GB/s and CPU seconds per GB."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        spawn = multiprocessing.get_context("spawn")
        report = spawn.Queue()
        arguments = (server.getsockname()[1], size, is_new, report)
        receiver = spawn.Process(target=raw_receiver, args=arguments)
        receiver.start()
        connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tensor = os.urandom(size)
    for _ in range(warm_up_of(size)):
        connection.sendall(tensor)
    connection.recv(1)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(count_of(size)):
        connection.sendall(tensor)
    connection.recv(1)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    cpu += report.get()
    receiver.join()
    connection.close()
    gb = count_of(size) * size / 1e9
    return gb / seconds, cpu / gb


# gloo -------------------------------------------------------------------------------------------------------------


def gloo_rank(rank, store, sizes, report):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = []
    for size in sizes:
        own = torch.full((size // 4,), float(rank))
        gathered = [torch.empty_like(own), torch.empty_like(own)]
        for _ in range(warm_up_of(size)):
            dist.all_gather(gathered, own)
        assert all(bool((tensor == rank).all()) for rank, tensor in enumerate(gathered))
        dist.barrier()
        start = time.perf_counter()
        for _ in range(count_of(size)):
            dist.all_gather(gathered, own)
        found.append(count_of(size) * size / 1e9 / (time.perf_counter() - start))
    report.put((rank, found))
    dist.destroy_process_group()


def gloo(sizes):
    """GB/s of each size."""
    import tempfile

    spawn = multiprocessing.get_context("spawn")
    report = spawn.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        ranks = [spawn.Process(target=gloo_rank, args=(rank, store, sizes, report)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        found = dict(report.get() for _ in ranks)
        for rank in ranks:
            rank.join()
    return found[0]


# fresco -----------------------------------------------------------------------------------------------------------


def fresco(binary, size):
    command = [binary, "bench", "link", "--bytes", str(size), "--runs", "1", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` ended with {done.returncode}")
    return json.loads(done.stdout)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", default="1048576,4194304,16777216,67108864", help="of a tensor (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of fresco, raw TCP, gloo (default: %(default)s)")
    parser.add_argument("--fresco", default=str(ROOT / "target/release/fresco"), help="the binary (default: %(default)s)")
    parser.add_argument("--without-gloo", action="store_true", help="leave PyTorch out")
    args = parser.parse_args()
    args.bytes = [int(size) for size in args.bytes.split(",")]
    if not os.access(args.fresco, os.X_OK):
        parser.error(f"{args.fresco} is not there: build it with `cargo build --release`")
    return args


def ratio(found, name, other):
    """The median of the rounds' ratios."""
    return statistics.median(ours / theirs for ours, theirs in zip(found[name], found[other]))


def main():
    args = parse_arguments()
    measured = {size: {} for size in args.bytes}
    trips = {"p50_us": [], "p99_us": []}

    def note(size, name, value):
        measured[size].setdefault(name, []).append(value)

    for round_idx in range(args.rounds):
        for size in args.bytes:
            # What is compared is measured within seconds of each other: a shared machine's memory is fast and slow by turns.
            ours = fresco(args.fresco, size)
            for name in ("stream_gb_per_s", "stream_cpu_s_per_gb", "all_gather_gb_per_s"):
                note(size, name, ours["sizes"][0][name])
            for name, values in trips.items():
                values.append(ours["round_trip"][name])
            for name, is_new in (("raw", False), ("raw_new", True)):
                speed, cpu = raw(size, is_new)
                note(size, f"{name}_gb_per_s", speed)
                note(size, f"{name}_cpu_s_per_gb", cpu)
            if not args.without_gloo:
                note(size, "gloo_gb_per_s", gloo([size])[0])
        print(f"round {round_idx + 1}/{args.rounds} done", file=sys.stderr)

    print("| bytes | fresco, one way | raw TCP | ratio | raw TCP, new memory | ratio "
          "| fresco all_gather | gloo | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size, found in measured.items():
        middle = {name: statistics.median(values) for name, values in found.items()}
        cells = [f"{size / 2**20:g} MiB", side(middle, "stream")]
        for name in ("raw", "raw_new"):
            speed = ratio(found, "stream_gb_per_s", f"{name}_gb_per_s")
            cpu = ratio(found, "stream_cpu_s_per_gb", f"{name}_cpu_s_per_gb")
            cells += [side(middle, name), f"{speed:.2f}× at {cpu:.2f}× CPU"]
        gathered = middle["all_gather_gb_per_s"]
        cells.append(f"{gathered:.2f} GB/s")
        if "gloo_gb_per_s" in middle:
            cells += [f"{middle['gloo_gb_per_s']:.2f} GB/s", f"{ratio(found, 'all_gather_gb_per_s', 'gloo_gb_per_s'):.1f}×"]
        else:
            cells += ["", ""]
        print("| " + " | ".join(cells) + " |")
    p50, p99 = (statistics.median(values) for values in trips.values())
    print(f"\nempty exchange, there and back: p50 {p50:.0f} µs, p99 {p99:.0f} µs")


def side(middle, name):
    return f"{middle[f'{name}_gb_per_s']:.2f} GB/s, {middle[f'{name}_cpu_s_per_gb']:.3f} s/GB"


if __name__ == "__main__":
    main()
