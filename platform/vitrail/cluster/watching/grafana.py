"""The dashboard for Grafana, drawn from the definitions of the metrics.

uv run python -m vitrail.cluster.watching.grafana        # writes grafana_dashboard.json anew, beside this file
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.cluster.watching import run_metrics as metrics
from vitrail.cluster.watching.run_metrics import RunMetric

DASHBOARD = Path(__file__).with_name("grafana_dashboard.json")
_SCHEMA_VERSION = 42
"""Of Grafana 13; older ones read it too."""
_GRID_WIDTH = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_IMAGES_PER_SECOND = "suffix: images/s"
_HEIGHTS = {"stat": 4, "bargauge": 8, "timeseries": 8}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture: a PromQL expression, and how each of its series is called."""

    title: str
    expression: str
    legend: str
    description: str = ""
    unit: str = "short"
    kind: str = "timeseries"
    most: float | None = None
    """Upper end of the axis."""
    logarithmic: bool = False


def build_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, lines in _ROWS.items():
        panels.append(_row(title, number=len(panels) + 1, top=top))
        top += 1
        for line in lines:
            width = _GRID_WIDTH // len(line)
            height = max(_HEIGHTS[panel.kind] for panel in line)
            for column, panel in enumerate(line):
                place = {"h": height, "w": width, "x": column * width, "y": top}
                panels.append({"id": len(panels) + 1, "gridPos": place, **_model(panel)})
            top += height
    return {
        "uid": "vitrail",
        "title": "Vitrail: training",
        "tags": ["vitrail", "ray"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": _variables()},
        "panels": panels,
    }


def as_text(dashboard: dict[str, Any]) -> str:
    """As it stands in the file."""
    return json.dumps(dashboard, indent=1) + "\n"


def _series(metric: RunMetric, **labels: str) -> str:
    chosen = {"run": '=~"$run"', **{label: f'="{value}"' for label, value in labels.items()}}
    return f"{metric.series}{{{', '.join(label + match for label, match in chosen.items())}}}"


def _by(metric: RunMetric, *labels: str, **chosen: str) -> str:
    """One series for each value of the labels, also while a restarted worker's follows that of the one before it."""
    return f"max by ({', '.join(labels)}) ({_series(metric, **chosen)})"


def _over_time(title: str, metric: RunMetric, *, per: Sequence[str] = ("run",), **options: Any) -> Panel:
    legend = " ".join("{{" + label + "}}" for label in per)
    return Panel(title=title, description=metric.description, expression=_by(metric, *per), legend=legend, **options)


def _sum(title: str, metric: RunMetric, **options: Any) -> Panel:
    expression = f"sum({_by(metric, 'run', 'job_id')}) or vector(0)"
    return Panel(title=title, description=metric.description, expression=expression, legend="", kind="stat", **options)


_SINCE_READING = f"time() - {_by(metrics.READ_AT, 'run')}"
_PROGRESS = f"{_by(metrics.STEP, 'run')} / {_by(metrics.PLANNED_STEPS, 'run')}"
_ROWS: dict[str, list[list[Panel]]] = {
    "Now": [
        [
            _sum("Images per second, all runs", metrics.IMAGES_PER_SECOND, unit=_IMAGES_PER_SECOND),
            Panel(
                title="Runs",
                expression=f"count({_by(metrics.STEP, 'run', 'job_id')}) or vector(0)",
                legend="",
                kind="stat",
            ),
            _sum("Workers", metrics.WORKERS),
            _sum("Restarts", metrics.RESTARTS),
        ],
        [
            Panel(
                title="Progress",
                description="Steps done of those planned.",
                expression=_PROGRESS,
                legend="{{run}}",
                unit="percentunit",
                kind="bargauge",
                most=1.0,
            ),
            _over_time("Time left", metrics.REMAINING, unit="s", kind="bargauge"),
            Panel(
                title="Time since steps were last read out",
                description="Grows while a run validates, and without end while it hangs.",
                expression=_SINCE_READING,
                legend="{{run}}",
                unit="s",
            ),
        ],
    ],
    "Throughput": [
        [
            _over_time("Images per second", metrics.IMAGES_PER_SECOND, unit=_IMAGES_PER_SECOND),
            _over_time("Waiting for data", metrics.DATA_WAIT, unit="percentunit", most=1.0),
        ],
        [
            _over_time(
                "Images per second of each worker",
                metrics.WORKER_IMAGES_PER_SECOND,
                per=("run", "rank"),
                unit=_IMAGES_PER_SECOND,
            ),
            _over_time(
                "Waiting for data of each worker",
                metrics.WORKER_DATA_WAIT,
                per=("run", "rank"),
                unit="percentunit",
                most=1.0,
            ),
        ],
    ],
    "Learning": [
        [
            _over_time("Loss", metrics.LOSS, per=("run", "part")),
            _over_time("Validation mIoU", metrics.MIOU, unit="percentunit"),
            _over_time("Best validation mIoU", metrics.BEST_MIOU, unit="percentunit"),
        ],
        [
            _over_time("Learning rate", metrics.LEARNING_RATE, unit="sci"),
            _over_time("Gradient norm", metrics.GRADIENT_NORM, logarithmic=True),
            _over_time("Step", metrics.STEP),
        ],
    ],
    "Interruptions": [
        [
            _over_time("Restarts", metrics.RESTARTS),
            _over_time("Time lost to restarts", metrics.LOST_TO_RESTARTS, unit="s"),
            _over_time("Steps passed over", metrics.SKIPPED_STEPS),
            _over_time("Step of the last validation", metrics.VALIDATED_STEP),
        ]
    ],
    "Machines": [
        [
            Panel(
                title="GPU in use",
                expression="max by (ip, GpuIndex) (ray_node_gpus_utilization)",
                legend="{{ip}} GPU {{GpuIndex}}",
                unit="percent",
                most=100.0,
            ),
            Panel(
                title="GPU memory",
                expression="max by (ip, GpuIndex) (ray_node_gram_used)",
                legend="{{ip}} GPU {{GpuIndex}}",
                unit="decmbytes",
            ),
        ],
        [
            Panel(
                title="CPU in use",
                expression="max by (ip) (ray_node_cpu_utilization)",
                legend="{{ip}}",
                unit="percent",
                most=100.0,
            ),
            Panel(
                title="Memory",
                expression="max by (ip) (ray_node_mem_used) / max by (ip) (ray_node_mem_total)",
                legend="{{ip}}",
                unit="percentunit",
                most=1.0,
            ),
            Panel(
                title="Object store, in memory and spilled",
                expression='sum by (NodeAddress, Location) (ray_object_store_memory{Location=~"MMAP_SHM|SPILLED"})',
                legend="{{NodeAddress}} {{Location}}",
                unit="bytes",
            ),
        ],
    ],
}


def _row(title: str, *, number: int, top: int) -> dict[str, Any]:
    place = {"h": 1, "w": _GRID_WIDTH, "x": 0, "y": top}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _model(panel: Panel) -> dict[str, Any]:
    scale = {"scaleDistribution": {"type": "log", "log": 10}} if panel.logarithmic else {}
    drawn = {"custom": {"lineWidth": 1, "fillOpacity": 0, "showPoints": "auto", "spanNulls": False, **scale}}
    least = {} if panel.logarithmic else {"min": 0}
    most = {} if panel.most is None else {"max": panel.most}
    defaults = {"unit": panel.unit, **least, **most, **(drawn if panel.kind == "timeseries" else {})}
    once = panel.kind != "timeseries"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": "A",
                "datasource": _SOURCE,
                "expr": panel.expression,
                "legendFormat": panel.legend,
                "instant": once,
                "range": not once,
                "editorMode": "code",
            }
        ],
    }


_LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": _LAST, "colorMode": "none", "graphMode": "none", "textMode": "value"},
    "bargauge": {"reduceOptions": _LAST, "orientation": "horizontal", "displayMode": "basic", "showUnfilled": True},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
}


def _variables() -> list[dict[str, Any]]:
    runs = f"label_values({metrics.STEP.series}, run)"
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": runs, "refId": "run"},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        },
    ]


if __name__ == "__main__":
    DASHBOARD.write_text(as_text(build_dashboard()))
    print(DASHBOARD)
