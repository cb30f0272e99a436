"""`vitrail server` and `vitrail ui`: MLflow's server for several people, and its pages on the local store."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli_models import existing_store
from vitrail.errors import UsageError, exit_codes
from vitrail.options import run_folder
from vitrail.tracking.backend import open_backend, sqlite_backend
from vitrail.tracking.server import ServerConfig, artifact_destination, is_loopback
from vitrail.tracking.server_auth import ADMIN, SECRETS_FILE, load_secrets, new_password
from vitrail.tracking.server_process import run_server
from vitrail.tracking.server_users import Credentials, Role, add_user, production_name

server_app = typer.Typer(no_args_is_help=True, add_completion=False)

Root = Annotated[
    Path,
    typer.Option("--root", callback=run_folder, help="Folder of runs, which holds the store, its files and secrets."),
]
Port = Annotated[int, typer.Option(min=1, max=65535)]

_RUNS = Path("runs")
_PASSWORD_VARIABLE = "VITRAIL_USER_PASSWORD"


@server_app.command("start")
def start(
    root: Root = _RUNS,
    backend: Annotated[
        str | None,
        typer.Option(
            help="postgresql+psycopg2://USER@HOST/DATABASE; otherwise MLFLOW_BACKEND_STORE_URI, or SQLite in ROOT."
        ),
    ] = None,
    backend_file: Annotated[Path | None, typer.Option(help="A file with that address, password included.")] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Folder or s3:// of models and files; otherwise ROOT/artifacts.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Port = 5000,
    allowed_hosts: Annotated[
        list[str] | None, typer.Option(help="Names that clients call this server by, besides localhost; a,b or again.")
    ] = None,
    cors_origins: Annotated[
        list[str] | None, typer.Option(help="Other sites, as https://…, whose pages may write to this server.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; otherwise what PostgreSQL has room for, up to 4.")
    ] = None,
    auth: Annotated[bool | None, typer.Option("--auth/--no-auth", help="Ask for names and passwords.")] = None,
) -> None:
    """Run MLflow's server until SIGTERM or Ctrl-C."""
    with exit_codes():
        if not is_loopback(host) and auth is None:
            raise UsageError(
                f"--host {host} lets others in; ask for names and passwords with --auth, or let everybody write with "
                "--no-auth"
            )
        _serve(
            ServerConfig(
                backend=open_backend(root, argument=backend, file=backend_file, workers=workers),
                artifacts=artifact_destination(root, artifacts),
                host=host,
                port=port,
                allowed_hosts=_listed(allowed_hosts),
                cors_origins=_listed(cors_origins),
                auth_folder=_auth_folder(root) if auth else None,
            )
        )


@server_app.command("add-user")
def add_user_command(
    name: Annotated[str, typer.Argument(help="The user's name.")],
    role: Annotated[Role, typer.Option(help="viewer reads; trainer adds candidates; promoter moves what is in use.")],
    models: Annotated[
        list[str] | None, typer.Option(help="Registered models that this is about; a,b or again.")
    ] = None,
    ask_password: Annotated[bool, typer.Option("--ask-password", help="Ask, or read a line of stdin.")] = False,
    tracking_uri: Annotated[
        str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="The running server.")
    ] = "http://127.0.0.1:5000",
    root: Root = _RUNS,
) -> None:
    """Let somebody sign in to a running server, as its administrator.

    The administrator's password is read from ROOT, or from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. The
    user's comes from VITRAIL_USER_PASSWORD, from --ask-password, or is made up and printed once.
    """
    with exit_codes():
        if not re.fullmatch(r"[\w.@-]{1,100}", name):
            raise UsageError(f"a user cannot be called {name!r}; use letters, digits, and . _ - @")
        given = _given_password(ask_password)
        user = Credentials(name=name, password=given or new_password())
        listed = _listed(models)
        created = add_user(user, role, listed, tracking_uri=tracking_uri, admin=_admin(root))
        writes = {Role.TRAINER: listed, Role.PROMOTER: tuple(map(production_name, listed))}.get(role)
        print(f"{name} may read everything" + (f" and write to {', '.join(writes)}" if writes else ""))
        if not created:
            print("  the user existed already; the password is what it was")
        elif given is None:
            print(f"  password: {user.password}")


def ui(root: Root = _RUNS, port: Port = 5000) -> None:
    """Open MLflow's pages on the local store, until interrupted."""
    with exit_codes():
        existing_store(root)
        _serve(ServerConfig(backend=sqlite_backend(root), artifacts=artifact_destination(root, None), port=port))


def _serve(config: ServerConfig) -> None:
    print(f"MLflow needs some seconds to start, on {config.backend.name}; stop it with Ctrl-C", flush=True)
    run_server(config, ready=lambda: _announce(config))


def _announce(config: ServerConfig) -> None:
    """Say where the pages are, and how clients get in."""
    # Without the parameter, MLflow 3.17 opens its pages for language models.
    print(f"  runs     {config.address()}/#/experiments?workflowType=machine_learning")
    print(f"  models   {config.address()}/#/models?workflowType=machine_learning")
    print(f"  clients  MLFLOW_TRACKING_URI={config.client_address()}")
    if config.auth_folder is not None:
        print("           MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ~/.mlflow/credentials")
        print(f"  admin    {ADMIN}; the password is in {config.auth_folder / SECRETS_FILE}")
    sys.stdout.flush()


def _auth_folder(root: Path) -> Path:
    return root / "auth"


def _admin(root: Path) -> Credentials:
    name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if name and password:
        return Credentials(name=name, password=password)
    if not _auth_folder(root).exists():
        raise UsageError(
            f"no administrator's password: {_auth_folder(root)} does not exist; name the server's folder with --root, "
            "or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return Credentials(name=ADMIN, password=load_secrets(_auth_folder(root)).admin_password)


def _given_password(ask: bool) -> str | None:
    """The new user's password from the environment or the person who types; None if it is to be made up."""
    if not ask:
        return os.environ.get(_PASSWORD_VARIABLE) or None
    if sys.stdin.isatty():
        return str(typer.prompt("Password of the new user", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\n")


def _listed(values: list[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())
