"""Wrong values are refused by the chart, with a line that names the key.

usage: refusals.py HELM CHART
"""

import pathlib
import subprocess
import sys

import yaml

from outcome import check


def main(helm, chart):
    for wrong in yaml.safe_load((pathlib.Path(__file__).parent / "refusals.yaml").read_text()):
        command = [helm, "template", "fresco", chart, "--values", "-"]
        run = subprocess.run(command, input=yaml.safe_dump(wrong["values"]), capture_output=True, text=True, check=False)
        faults = []
        if run.returncode == 0:
            faults.append("was accepted")
        elif wrong["says"] not in run.stderr:
            faults.append(f"no word of <{wrong['says']}> in: {run.stderr}")
        check(f"refused: {yaml.safe_dump(wrong['values'], default_flow_style=True, width=1000).strip()}", faults)


main(*sys.argv[1:])
