"""The dashboard's file, and that all it asks Prometheus for is there to be answered."""

import json
import re
from itertools import combinations
from typing import Any

import pytest
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from vitrail.cluster.watching.grafana import DASHBOARD, as_text, build_dashboard
from vitrail.cluster.watching.run_metrics import ALL_METRICS, PREFIX

DEFINED = {metric.series: set(metric.labels) for metric in ALL_METRICS}
NODE_LABELS = {"ip", "IsHeadNode", "SessionName"}
RAYS = {
    PREFIX + name: NODE_LABELS | ({"GpuIndex"} if "gpu" in name or "gram" in name else set()) for name in METRICS_GAUGES
}
# Defined in Ray's C++; test_watching.py finds it on a machine.
RAYS["ray_object_store_memory"] = {"NodeAddress", "Location"}
KNOWN = DEFINED | RAYS


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def drawn(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels but the rows' headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """(expression, legend) of every series of every panel."""
    return [(target["expr"], target["legendFormat"]) for panel in drawn(dashboard) for target in panel["targets"]]


def series_of(expression: str) -> list[tuple[str, set[str]]]:
    """Each metric of an expression, with the labels that are chosen or grouped by."""
    found = [
        (name, {*labels.split(", "), *re.findall(r"(\w+)=~?\"", chosen)})
        for labels, name, chosen in re.findall(r"(?:max|sum) by \(([^)]*)\) \((\w+)(?:\{([^}]*)\})?\)", expression)
    ]
    assert len(found) == len(re.findall(r"\bray_\w+", expression)), f"a series without a grouping in {expression}"
    return found


def test_file_is_made_from_the_definitions_as_they_are() -> None:
    assert DASHBOARD.read_text() == as_text(build_dashboard()), "run `python -m vitrail.cluster.watching.grafana`"


def test_every_series_that_is_asked_for_is_defined_with_its_labels(dashboard: dict[str, Any]) -> None:
    asked = [series for expression, _ in expressions(dashboard) for series in series_of(expression)]
    assert len(asked) >= 20
    for name, labels in asked:
        assert name in KNOWN
        assert labels <= KNOWN[name], name
    (runs,) = [found["query"]["query"] for found in dashboard["templating"]["list"] if found["name"] == "run"]
    name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", runs).groups()  # type: ignore[union-attr]
    assert label in DEFINED[name]


def test_every_metric_of_a_run_is_drawn(dashboard: dict[str, Any]) -> None:
    text = " ".join(expression for expression, _ in expressions(dashboard))
    assert not [name for name in DEFINED if not re.search(rf"\b{name}\b", text)]


def test_legends_name_labels_that_the_expression_leaves(dashboard: dict[str, Any]) -> None:
    for expression, legend in expressions(dashboard):
        left = set.intersection(*(labels for _, labels in series_of(expression)))
        assert set(re.findall(r"{{(\w+)}}", legend)) <= left


def test_panels_fill_the_grid_without_covering_each_other(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


def test_prometheus_and_runs_are_the_readers_choice(dashboard: dict[str, Any]) -> None:
    variables = {found["name"]: found for found in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    sources = [part["datasource"]["uid"] for panel in drawn(dashboard) for part in (panel, *panel["targets"])]
    assert {*sources, variables["run"]["datasource"]["uid"]} == {"${datasource}"}
    for expression, _ in expressions(dashboard):
        for name, labels in series_of(expression):
            assert "run" in labels if name in DEFINED else "run" not in labels


def test_names_say_their_units_as_prometheus_wants_them() -> None:
    for name in DEFINED:
        # promtool: `_total` is for counters, and time is in seconds.
        assert re.fullmatch(r"ray_vitrail_(train|worker|validation)(_[a-z]+)+", name)
        assert not re.search(r"_(total|count|sum|bucket|percent|share|ms|minutes)$", name)
    shares = [metric.series for metric in ALL_METRICS if "Share" in metric.description or "miou" in metric.name]
    assert shares and all(name.endswith("_ratio") for name in shares)
