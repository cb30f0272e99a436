"""The `vitrail` command itself."""

import json

import pytest
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.recipes import RECIPES


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
