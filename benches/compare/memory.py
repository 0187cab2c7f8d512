"""Compares the memory that `fresco render` counts for a picture with what it took.

    memory.py FRESCO SIZE...        memory.py target/release/fresco 256x256 1024x1024

Counted is what the refusal would name, from the log. Taken is the most anonymous memory seen in /proc every 5 ms: pages of
mapped files, which the system takes back when it is short of memory, are not in it. Linux only.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time


def render(fresco, size, folder):
    """Most anonymous memory of a render and what was counted for it, in MiB."""
    command = [fresco, "render", "a calm sea at dawn", "--size", size, "--steps", "2", "--out", f"{folder}/picture.png", "--force"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"FRESCO_LOG": "debug"})
    log, most_kib = [], 0
    reader = threading.Thread(target=lambda: log.append(process.stderr.read()))
    reader.start()
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status") as status:
                found = re.search(r"RssAnon:\s+(\d+)", status.read())
        except OSError:
            break
        most_kib = max(most_kib, int(found[1])) if found else most_kib
        time.sleep(0.005)
    reader.join()
    counted = re.search(r"counted_mib=(\d+)", log[0])
    if process.wait() != 0 or not counted:
        sys.exit(f"memory.py: {' '.join(command)} failed:\n{log[0]}")
    return most_kib / 1024, int(counted[1])


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for size in sys.argv[2:]:
            taken, counted = render(sys.argv[1], size, folder)
            print(f"{size:>12}  counted {counted:5} MiB  taken {taken:5.0f} MiB  ratio {counted / taken:.2f}", flush=True)


if __name__ == "__main__":
    main()
