"""Puts the Python packages that an image's libraries are from into its bill of material, and their licences beside it.

usage: wheels.py PACKAGES IMAGE    PACKAGES: where pip has put them; IMAGE: the folder of the image's files
"""

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path


def main(packages, image):
    share = image / "usr/share/fresco"
    laid = {file.name for file in image.glob("usr/lib/*-linux-gnu/*")}
    bill = json.loads((share / "sbom.json").read_text())
    found = sorted(importlib.metadata.distributions(path=[str(packages)]), key=lambda wheel: wheel.metadata["Name"])
    for wheel in found:
        name, version, files = wheel.metadata["Name"], wheel.version, wheel.files or []
        if laid.isdisjoint(file.name for file in files):
            continue
        purl = f"pkg:pypi/{name}@{version}"
        licence = wheel.metadata["License-Expression"] or wheel.metadata["License"]
        part = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        bill["components"].append(part | {"licenses": [{"expression": licence}]})
        for file in files:
            if file.name == "License.txt":
                shutil.copyfile(wheel.locate_file(file), share / f"LICENSE-{name}")
    (share / "sbom.json").write_text(json.dumps(bill, indent=2))


main(*map(Path, sys.argv[1:]))
