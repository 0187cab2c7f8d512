"""Whether every alert is seen to fire, and seen to keep still, in the tests of the rules.

usage: alerts.py RULES TESTS
"""

import pathlib
import sys

import yaml

from outcome import check

EXPECTED = {True: "fire", False: "keep still"}


def main(rules, tests):
    groups = yaml.safe_load(pathlib.Path(rules).read_text())["groups"]
    cases = yaml.safe_load(pathlib.Path(tests).read_text())["tests"]
    asked = [case for test in cases for case in test["alert_rule_test"]]
    for alert in (rule["alert"] for group in groups for rule in group["rules"]):
        seen = {bool(case["exp_alerts"]) for case in asked if case["alertname"] == alert}
        check(f"alert {alert} is tested", [f"never is it expected to {EXPECTED[it]}" for it in {True, False} - seen])


main(*sys.argv[1:])
