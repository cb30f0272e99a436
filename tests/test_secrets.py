"""Secrets in text, as they come: masked wherever text leaves the process, and nothing else is."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.errors import UsageError, VitrailError, exit_codes
from vitrail.secrets import mask, masked
from vitrail.tracking.address import without_password

ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtn+FEMI",
    "MLFLOW_TRACKING_TOKEN": "tok-tok-tok",
    "AWS_SHARED_CREDENTIALS_FILE": "/home/ada/.aws/credentials",
    "A_TOKEN": "step",
    "HOME": "/home/ada",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ada:hunter2@db:5432/mlflow", "postgresql://ada:***@db:5432/mlflow"),
        ("at https://ada:hun@ter2@host/x@y, and", "at https://ada:***@host/x@y, and"),
        ("s3://key:hunter2/se+cret@bucket/x", "s3://key:***@bucket/x"),
        ("'redis://:hunter2@host'", "'redis://:***@host'"),
        ("two: a://u:hunter2@h b://u:hunter2@h", "two: a://u:***@h b://u:***@h"),
        ("https://b.s3/x?X-Amz-Credential=hunter2&X-Amz-Date=1&X-Amz-Signature=hunter2", None),
        ("postgresql://h/db?user=ada&password=hunter2", "postgresql://h/db?user=ada&password=***"),
        ("x?sig=hunter2&sv=2020", "x?sig=***&sv=2020"),
        ("Authorization: Bearer hunter2-hunter2", "Authorization: Bearer ***"),
        ("refused wJalr/XUtn+FEMI and wJalr%2FXUtn%2BFEMI", "refused *** and ***"),
        ("{'token': 'tok-tok-tok'}", "{'token': '***'}"),
    ],
)
def test_secret_is_masked_and_the_rest_is_kept(text: str, shown: str | None) -> None:
    found = mask(text, ENVIRONMENT)
    assert "hunter2" not in found and "***" in found
    assert shown is None or found == shown


@pytest.mark.parametrize(
    "text",
    [
        "MLflow at http://127.0.0.1:5000: models:/scenes@champion is not there",
        "http://head:5000/#/models/scenes@champion",
        "s3://bucket/x?endpoint_override=127.0.0.1%3A9000&scheme=http",
        "gs://anonymous@bucket/x, and mail to ada@example.test at 10:30",
        "reads /home/ada/.aws/credentials in step 7, num_prefix_tokens=2",
        "model.backbone.num_tokens=197; Basic words; 3 tokens",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert mask(text, ENVIRONMENT) == text


def test_values_are_masked_at_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "hunter2-hunter2")
    value = {"a": ["x hunter2-hunter2", 1, None], "b": {"c": "s://u:hunter2@h"}}
    assert masked(value) == {"a": ["x ***", 1, None], "b": {"c": "s://u:***@h"}}


def test_errors_are_printed_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited, exit_codes():
        raise VitrailError("no answer from postgresql://ada:hunter2@db/mlflow")
    assert exited.value.code == 1
    with pytest.raises(SystemExit) as exited, exit_codes():
        try:
            raise KeyError("https://ada:hunter2@host")
        except KeyError as error:
            raise RuntimeError("a bug") from error
    assert exited.value.code == 1
    told = capsys.readouterr().err
    assert "hunter2" not in told
    assert "error: no answer from postgresql://ada:***@db/mlflow" in told
    assert "Traceback (most recent call last):" in told and "RuntimeError: a bug" in told


@pytest.fixture
def signed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"):
        monkeypatch.setenv(name, "before")  # so that what is set in between is undone
        monkeypatch.delenv(name)


def test_password_of_an_address_goes_where_clients_look_for_it(signed_out: None) -> None:
    assert without_password("http://ada:p%40ss%2Fword@host:5000/x") == "http://host:5000/x"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ada", "p@ss/word")
    assert without_password("postgresql+psycopg2://ada:hunter2@db/m?x=1") == "postgresql+psycopg2://ada@db/m?x=1"
    assert os.environ["PGPASSWORD"] == "hunter2"
    for address in (None, "http://host:5000", "sqlite:////runs/mlflow.db", "https://host/#/models/a@b"):
        assert without_password(address) == address


@pytest.mark.parametrize("address", ["mysql://ada:hunter2@db/m", "https://host/?token=hunter2", "http://a:hunter2/x@h"])
def test_password_that_would_be_stored_is_refused(signed_out: None, address: str) -> None:
    with pytest.raises(UsageError) as caught:
        without_password(address)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        ["models", "list", "--tracking-uri", "http://ada:hunter2@127.0.0.1:1"],
        ["models", "list", "--tracking-uri", "mysql://ada:hunter2@127.0.0.1:1"],
        ["models", "promote", "scenes", "1", "--tracking-uri", "http://127.0.0.1:1/?token=hunter2"],
    ],
)
def test_commands_do_not_repeat_a_password(signed_out: None, command: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, command, env={"MLFLOW_HTTP_REQUEST_TIMEOUT": "2"})
    assert result.exit_code in (1, 2), result.output
    assert result.output and "hunter2" not in result.output
