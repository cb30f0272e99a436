"""The `vitrail` command itself."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.cluster.jobs.request import command_of, parsed_arguments
from vitrail.recipes import RECIPES

ROOT = Path(__file__).parents[1]


def test_recipes_are_listed_with_whole_names_and_published_figures() -> None:
    output = CliRunner().invoke(app, ["recipes"], env={"COLUMNS": "80"}).output
    assert all(name in output for name in RECIPES)
    assert "47.71" in output


def test_recipe_prints_as_json_with_what_was_set() -> None:
    name = "upernet_vit-nano_128x128_1k"
    result = CliRunner().invoke(app, ["recipes", name, "--set", "total_steps=77"])
    assert json.loads(result.output)["total_steps"] == 77


@pytest.mark.parametrize(
    "arguments", [["upernet_vit-nanno_128x128_1k"], ["upernet_vit-nano_128x128_1k", "--set", "x=1"]]
)
def test_wrong_recipe_or_field_is_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["recipes", *arguments])
    assert result.exit_code == 2
    assert "unknown" in result.output


def test_no_help_text_has_brackets_which_are_taken_for_markup() -> None:
    """`[default: 1]` would not be shown; `show_default` is."""
    scripts = [path for folder in ("jobs", "pipelines") for path in (ROOT / folder).glob("*.py")]
    groups = [typer.main.get_command(app), *filter(None, map(command_of, scripts))]
    groups.append(typer.main.get_command(runpy.run_path(str(ROOT / "jobs/benchmark.py"))["app"]))
    commands = [command for group in groups for command in _all_commands(group)]
    assert len(commands) > 40
    texts = [text for command in commands for text in (command.help, *(getattr(p, "help", "") for p in command.params))]
    assert not [text for text in texts if text and "[" in text]


def _all_commands(command: Any) -> Iterator[Any]:
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from _all_commands(below)


@pytest.mark.parametrize(("runs", "root"), [(None, "runs/demo"), ("/shared/runs", "/shared/runs/demo")])
def test_demo_as_a_job_leaves_nothing_in_the_folder_of_its_code(
    runs: str | None, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITRAIL_RUNS", raising=False)
    if runs:
        monkeypatch.setenv("VITRAIL_RUNS", runs)
    assert parsed_arguments(ROOT / "pipelines/demo.py", [])["root"] == Path(root)
