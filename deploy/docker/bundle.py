"""Makes a runc bundle of an image: what it starts by its own configuration, held as the chart's securityContext says.

    buildah inspect --type image IMAGE | bundle.py BUNDLE --rootfs FOLDER --network NAMESPACE --seccomp PROFILE
                                                   [--env NAME=VALUE ...]

User, no capabilities, no new privileges, a root file system that cannot be written to,
namespaces of its own, and the seccomp profile that container engines ship, if it is there.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

ARCHITECTURE = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}[platform.machine()]


def seccomp(profile):
    """The engines' profile for a process without capabilities, in the runtime specification's form."""
    profile = json.loads(profile.read_text())
    rules = []
    for rule in profile["syscalls"]:
        wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
        if wanted.get("caps") or ("arches" in wanted and ARCHITECTURE[0] not in wanted["arches"]):
            continue
        if ARCHITECTURE[0] in unwanted.get("arches", []):
            continue
        kept = {name: rule[name] for name in ("names", "action", "args", "errnoRet") if rule.get(name)}
        rules.append(kept)
    return {"defaultAction": profile["defaultAction"], "architectures": [ARCHITECTURE[1]], "syscalls": rules}


def mounts(bundle, volumes, gid):
    system = ["nosuid", "noexec", "nodev"]
    found = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*system, "ro"]},
    ]
    # What the chart mounts as an emptyDir or a claim: root's, and open to the group that fsGroup names.
    for volume in ["/tmp", *volumes]:
        folder = bundle.absolute() / "volumes" / volume.strip("/")
        folder.mkdir(parents=True)
        os.chown(folder, 0, gid)
        folder.chmod(0o2770)
        found.append({"destination": volume, "type": "bind", "source": str(folder), "options": ["bind", *system]})
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rootfs", required=True)
    parser.add_argument("--network", required=True)
    parser.add_argument("--seccomp", type=Path, required=True)
    parser.add_argument("--env", action="append", default=[])
    args = parser.parse_args()
    image = json.load(sys.stdin)["OCIv1"]["config"]
    uid, gid = map(int, image["User"].split(":"))
    names = ("noNewPrivileges", "capabilities")
    process = dict(zip(names, (True, {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable")})))
    process |= {"user": {"uid": uid, "gid": gid}, "cwd": image.get("WorkingDir") or "/", "terminal": False}
    process |= {"args": image["Entrypoint"] + image["Cmd"], "env": [*image["Env"], *args.env]}
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    namespaces.append({"type": "network", "path": f"/run/netns/{args.network}"})
    linux = {"namespaces": namespaces}
    linux["maskedPaths"] = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]
    linux["readonlyPaths"] = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"]
    if args.seccomp.exists():
        linux["seccomp"] = seccomp(args.seccomp)
    config = {
        "ociVersion": "1.0.2",
        "hostname": args.network,
        "process": process,
        "root": {"path": args.rootfs, "readonly": True},
        "mounts": mounts(args.bundle, image.get("Volumes") or {}, gid),
        "linux": linux,
    }
    (args.bundle / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
