"""Every expression of the dashboard and of the alerts, asked of a Prometheus that has seen a farm."""

import json
import math
import re
import time

import promql_parser
import yaml

from outcome import check

# What Grafana puts in for its variables. An interval of 15 scrapes.
VARIABLES = {"$__rate_interval": "15s", "$job": ".+", "$instance": ".+"}

# The job of a process that is not fresco's.
STRANGER = "stranger"


def ask(prometheus, monitoring, since):
    """Panels must have something to show; alerts must be about series that are there."""
    # Up to a moment behind the last scrape: the steps are whole seconds from the start on.
    window = {"start": since, "end": time.time() + 1, "step": "1s"}
    board = json.loads((monitoring / "dashboard.json").read_text())
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            (selector,) = re.findall(r"label_values\((.*), *\w+\)", variable["query"])
            check(f"variable {variable['name']}", empty(prometheus, filled(selector), window))
    for panel in board["panels"]:
        faults = [f"no {key}" for key in ("title", "description") if not panel.get(key)]
        faults += [] if panel["fieldConfig"]["defaults"].get("unit") else ["no unit"]
        for target in panel["targets"]:
            expression = filled(target["expr"])
            uses = {panel["datasource"]["uid"], target.get("datasource", panel["datasource"])["uid"]}
            faults += [] if uses == {"${datasource}"} else [f"is tied to the data sources {uses}"]
            faults += unfiltered(expression, target["expr"]) + empty(prometheus, expression, window)
        check(f"panel {panel['title']}", faults)
    rules = yaml.safe_load((monitoring / "rules.yml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        faults = []
        prometheus.query("query_range", query=rule["expr"], **window)
        for selector in selectors(promql_parser.parse(rule["expr"])):
            faults += empty(prometheus, selector.prettify(), window)
        check(f"alert {rule['alert']} is about series that are there", faults)


def filled(expression):
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def empty(prometheus, expression, window):
    """A fault if the expression never gave a number, or gave one of a stranger."""
    try:
        promql_parser.parse(expression)
    except ValueError as error:
        return [f"{expression}: {error}"]
    found = prometheus.query("query_range", query=expression, **window)
    is_number = any(math.isfinite(float(value)) for series in found for _, value in series["values"])
    faults = [] if is_number else [f"{expression} is {'no number' if found else 'empty'}"]
    is_strange = any(series["metric"].get("job") == STRANGER for series in found)
    return faults + ([f"{expression} shows a process that is not fresco's"] if is_strange else [])


def selectors(node):
    """Every vector selector within an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        return [node]
    within = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "vector_selector", "param")]
    within += getattr(node, "args", [])
    return [found for inner in within if isinstance(inner, promql_parser.Expr) for found in selectors(inner)]


def unfiltered(expression, written):
    """Selectors that leave out the dashboard's choice of job and instance."""
    n_selectors = len(selectors(promql_parser.parse(expression)))
    n_filtered = len(re.findall(r'job=~"\$job",instance=~"\$instance"', written))
    is_equal = n_selectors == n_filtered
    return [] if is_equal else [f"{written}: {n_selectors} selectors, {n_filtered} of them by job and instance"]
