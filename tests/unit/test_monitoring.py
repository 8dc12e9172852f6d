"""deploy/ has alerts and a dashboard for what the daemon exports: each metric and label exists, and the alerts fire."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installed import find_program
from ruamel.yaml import YAML

from multitower.errors import CODE_OF, Code, Reason
from multitower.supervisor.observability import metric_families
from multitower.supervisor.observability.exposition import Kind, Metric
from multitower.supervisor.observability.process_metrics import process_families
from multitower.supervisor.workers.condition import Condition
from multitower.supervisor.workers.exit_cause import DeathKind
from multitower.supervisor.workers.slot_state_machine import State

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "multitower.rules.yml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "multitower.json").read_text())
ALERTS = (ROOT / "docs" / "alerts.md").read_text()

OF_PROMETHEUS = {"up": {"job", "instance"}}
"""Metrics that Prometheus makes itself, and their labels."""

TARGET = {"job", "instance"}
"""Labels that Prometheus adds."""

VALUES = {
    "outcome": {metric_families.OK, *Reason},
    "state": {str(state) for state in State},
    "cause": {kind.value for kind in DeathKind},
    "condition": {each.value for each in Condition},
    "interface": {
        "operations",
        "open_inference_grpc",
        "open_inference_http",
        "tensorflow_serving_grpc",
        "tensorflow_serving_rest",
    },
    "status": {str(status) for status in range(100, 600)} | {"OK", "UNKNOWN", *Code},
    "job": {"multitower"},
}
"""The values that a label may have."""

NO_FAILURE = {metric_families.OK, Reason.CANCELLED, Reason.DRAINING} | {
    reason for reason in Reason if CODE_OF[reason] in (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED)
}
"""Outcomes that no alert and no panel counts as a failure: those of what clients got wrong, for example."""

SELECTOR = re.compile(r"(?<![\w:\"$])([a-z_][\w:]*)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|without|on)\s*\(([^)]*)\)")
WORDS = {"and", "or", "unless", "by", "on", "without", "bool", "offset"}


def exported() -> dict[str, set[str]]:
    """The labels of each series that the daemon exports, by its name."""
    metrics = [each for each in vars(metric_families).values() if isinstance(each, Metric)]
    metrics += [family.metric for family in process_families()]
    found: dict[str, set[str]] = {}
    for metric in metrics:
        labels = {*metric.labels, *TARGET}
        if metric.kind is Kind.HISTOGRAM:
            found |= {f"{metric.name}_sum": labels, f"{metric.name}_count": labels}
            found[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            found[metric.name] = labels
    return found


def groups() -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load(RULES.read_text())["groups"])


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules of a kind: `alert` or `record`."""
    return [rule for group in groups() for rule in group["rules"] if kind in rule]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions_of_panels() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def known() -> dict[str, set[str]]:
    """The labels of each series that may be named: exported ones, those of Prometheus, and recorded ones."""
    recorded = {rule["record"]: grouped_by(rule["expr"]) for rule in rules("record")}
    return {**exported(), **OF_PROMETHEUS, **recorded}


def grouped_by(expression: str) -> set[str]:
    return {label.strip() for labels in GROUPING.findall(expression) for label in labels.split(",")}


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """The metrics that an expression names, each with its matchers."""
    without_groups = GROUPING.sub(" ", expression)
    for match in SELECTOR.finditer(without_groups):
        name, matchers = match[1], match[2] or ""
        rest = without_groups[match.end() :].lstrip()
        inside_matchers = without_groups[: match.start()].count("{") != without_groups[: match.start()].count("}")
        inside_range = without_groups[: match.start()].rstrip()[-1:] == "["
        if name not in WORDS and not rest.startswith("(") and not inside_matchers and not inside_range:
            yield name, matchers


EXPRESSIONS = [
    *(pytest.param(rule["expr"], "", id=rule.get("alert") or rule["record"]) for rule in rules("expr")),
    *(
        pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']} {target['refId']}")
        for panel in panels()
        for target in panel["targets"]
    ),
]


@pytest.mark.parametrize(("expression", "legend"), EXPRESSIONS)
def test_each_expression_names_metrics_and_labels_that_are_exported(expression: str, legend: str) -> None:
    series = known()
    named = list(selectors(expression))
    assert named, "no metric was found in it"
    labels: set[str] = set()
    for name, matchers in named:
        assert name in series, f"{name} is not exported"
        labels |= series[name]
        for label, operator, value in MATCHER.findall(matchers):
            assert label in series[name], f"{name} has no label {label}"
            values = value.split("|") if operator in ("=~", "!~") else [value]
            if label in VALUES and value:
                assert set(values) <= VALUES[label], f"{label} of {name}"
    assert grouped_by(expression) <= labels
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= (grouped_by(expression) or labels)


def test_a_wrong_metric_or_label_would_be_found() -> None:
    assert list(selectors('sum by (a) (rate(x_total{b="c",d!=""}[$__rate_interval])) / y > 0')) == [
        ("x_total", 'b="c",d!=""'),
        ("y", ""),
    ]
    assert grouped_by("sum by (a, b) (x) / on (c) y") == {"a", "b", "c"}


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: str(rule["alert"]))
def test_each_alert_has_a_severity_a_summary_and_a_runbook(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
    assert f"\n## {name}\n" in ALERTS
    labels = grouped_by(rule["expr"]) or set().union(*(known()[metric] for metric, _ in selectors(rule["expr"])))
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels


def test_the_page_explains_no_alert_that_does_not_exist() -> None:
    assert set(re.findall(r"^## (Multitower\w+)$", ALERTS, re.MULTILINE)) == {rule["alert"] for rule in rules("alert")}


def test_each_recording_rule_keeps_the_instance() -> None:
    assert all({"job", "instance"} <= grouped_by(rule["expr"]) for rule in rules("record"))


def test_the_dashboard_is_complete_and_asks_the_chosen_data_source() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "instance", "model"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"]), panel["title"]
    for variable in ("instance", "model"):
        metric, label = re.findall(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variables[variable]["definition"])[0]
        assert label in exported()[metric]


REQUIRED = {
    "stat": ["colorMode", "graphMode", "justifyMode", "orientation", "percentChangeColorMode", "reduceOptions"],
    "table": ["frameIndex", "showHeader"],
    "timeseries": ["legend", "tooltip"],
    "state-timeline": ["legend", "tooltip"],
}
"""Options without which Grafana's Foundation SDK does not accept a panel (`UnmarshalJSONStrict`)."""


def test_each_panel_has_the_options_that_the_schema_of_grafana_requires() -> None:
    for panel in panels():
        options = panel["options"]
        assert not set(REQUIRED[panel["type"]]) - set(options), panel["title"]
        if "legend" in options:
            assert options["legend"].keys() >= {"calcs", "displayMode", "placement", "showLegend"}, panel["title"]


def test_what_clients_got_wrong_is_no_failure_and_every_other_outcome_is() -> None:
    lists = [
        set(listed.split("|"))
        for listed in re.findall(r'outcome!~"([^"]*)"', RULES.read_text() + "".join(expressions_of_panels()))
    ]
    assert lists == [NO_FAILURE] * 2


def test_no_two_panels_of_the_dashboard_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("command", [("check", "rules", RULES.name), ("test", "rules", "multitower.test.yml")])
def test_promtool_accepts_the_rules_and_the_alerts_fire(command: tuple[str, ...]) -> None:
    program = find_program("promtool", "prometheus")
    done = subprocess.run([program, *command], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_daemon_without_failures_has_a_share_of_failing_requests(tmp_path: Path) -> None:
    panel = next(panel for panel in panels() if panel["title"] == "Failing requests")
    expression = panel["targets"][0]["expr"].replace("$__rate_interval", "5m")
    expression = expression.replace("$instance", ".*").replace("$model", ".*")
    series = 'multitower_requests_total{job="multitower",instance="a",model="m",version="1",outcome="%s"}'
    answered = {"series": series % "ok", "values": "0+90x10"}
    failed = {"series": series % "worker_died", "values": "0+10x10"}
    wrong = {"series": series % "shape_invalid", "values": "0+900x10"}
    idle = {"series": series % "ok", "values": "90x10"}
    tests = [
        {
            "interval": "1m",
            "input_series": given,
            "promql_expr_test": [{"expr": expression, "eval_time": "8m", "exp_samples": expected}],
        }
        for given, expected in (
            ([answered], [{"labels": "{}", "value": 0}]),
            ([answered, wrong], [{"labels": "{}", "value": 0}]),
            ([answered, failed], [{"labels": "{}", "value": 0.1}]),
            ([idle], []),
        )
    ]
    (tmp_path / "panel.yml").write_text(json.dumps({"tests": tests}))
    program = find_program("promtool", "prometheus")
    command = [program, "test", "rules", "panel.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested() -> None:
    tested = YAML(typ="safe").load((PROMETHEUS / "multitower.test.yml").read_text())["tests"]
    firing = {case["alertname"] for test in tested for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert firing == {rule["alert"] for rule in rules("alert")}
