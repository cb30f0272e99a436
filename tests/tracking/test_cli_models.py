import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from mlflow_server import free_port, wait_until_healthy
from typer.testing import CliRunner
from verdicts import give

from vitrail.cli import app
from vitrail.cli_server import ui
from vitrail.tracking.environment import connect
from vitrail.tracking.registry import list_models


def test_models_are_listed_shown_and_rolled_back_from_the_command_line(store_with_models, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    root = Path(store_with_models.removeprefix("sqlite:///")).parent
    for number in (1, 2):
        give("streets", number, tracking_uri=store_with_models)
    give("streets", 3, tracking_uri=store_with_models, force=True, reason="smaller")

    def vitrail(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["models", *arguments, "--root", str(root)])
        assert result.exit_code == code, result.output
        return result.output

    listed = vitrail("list")
    assert "streets" in listed and "55.00%" in listed
    assert "@champion" in vitrail("show", "streets")
    assert "building" in vitrail("show", "streets", "champion")
    assert "version 2 is champion again" in vitrail("rollback", "streets", "--reason", "blurred")
    told = vitrail("history", "streets")
    assert "smaller" in told and "blurred" in told and "rollback" in told
    champion = connect(store_with_models).get_model_version_by_alias("streets", "champion")
    assert int(champion.version) == 2
    found = vitrail("audit", "streets", code=1)  # these have neither a run nor a data set
    assert "not linked to a run" in found and "verdict" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "street"], "did you mean 'streets'"),
        (["promote", "streets", "9"], "unknown version of model 'streets'"),
        (["history", "steets"], "did you mean 'streets'"),
        (["promote", "streets", "3", "--force"], "--reason"),
        (["promote", "streets", "3", "--margin", "2"], "margin=2.0 must be a fraction"),
        (["promote", "streets", "3", "--alias", "Best"], "cannot be an alias"),
        (["promote", "streets", "3", "--data", "nowhere"], "nowhere does not exist"),
        (["rollback", "streets"], "nothing to roll back to"),
        (["list", "--root", "nowhere"], "there is no store in nowhere"),
    ],
)
def test_wrong_commands_end_with_2_and_a_way_out(store_with_models, arguments, message):
    root = Path(store_with_models.removeprefix("sqlite:///")).parent
    given = arguments if "--root" in arguments else [*arguments, "--root", str(root)]
    result = CliRunner().invoke(app, ["models", *given])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.long
@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
def test_ui_serves_the_local_store_until_interrupted(store_with_models, tmp_path, how):
    root = Path(store_with_models.removeprefix("sqlite:///")).parent
    port = free_port()
    command = [sys.executable, "-c", "from vitrail.cli_server import ui; import typer; typer.run(ui)"]
    process = subprocess.Popen(
        [*command, "--root", str(root), "--port", str(port)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process)
        names = [model.name for model in list_models(tracking_uri=f"http://127.0.0.1:{port}")]
        assert names == ["streets"]
    finally:
        if how == "ctrl-c":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        output, _ = process.communicate(timeout=60)
    assert f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning" in output
    assert process.returncode == 0
    with socket.socket() as gone:
        assert gone.connect_ex(("127.0.0.1", port)) != 0


def test_ui_says_so_when_its_port_is_taken(store, tmp_path):
    app = typer.Typer()
    app.command()(ui)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = CliRunner().invoke(app, ["--root", str(tmp_path), "--port", str(port)])
    assert result.exit_code == 2
    assert "in use" in result.output
