"""What a person sees: MLflow's pages on a local store that was filled by our own calls, in a real browser.

Set VITRAIL_SCREENSHOTS to a folder to keep a picture of every page.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from mlflow_server import Server
from sample_sweep import sweep_of_necks
from tiny_checkpoint import CLASSES, write_checkpoint
from verdicts import give

from vitrail.evaluation.pictures import prediction_panel
from vitrail.sweep.page import render_report
from vitrail.tracking.environment import connect
from vitrail.tracking.registration import register
from vitrail.tracking.store import default_tracking_uri
from vitrail.tracking.sweep_report import log_sweep
from vitrail.tracking.tracker import start_run

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed (Debian's package chromium)"),
]

TIMEOUT_MS = 30_000
# MLflow 3.17 opens its pages for language models, a chat panel and an advertisement unless told otherwise.
INIT_SCRIPT = """
localStorage.setItem('mlflow.workflowType_v1','"machine_learning"');
localStorage.setItem('mlflow.assistant.panelOpen_v1','false');
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1','true');
localStorage.setItem('_mlflow_model_registry_promo_modal_dismissed_v1','true');
"""


@dataclass(frozen=True)
class Site:
    """A server and what was logged before it was started."""

    url: str
    experiment_id: str
    run_id: str
    sweep_experiment_id: str
    sweep_run_id: str


@pytest.fixture(scope="module")
def site(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    shutil.copy(empty_store, root / "mlflow.db")
    run_ids = fill(root), fill_sweep(default_tracking_uri(root), root)
    server = Server(root)
    server.start()
    try:
        found = [(connect(server.url).get_run(run_id).info.experiment_id, run_id) for run_id in run_ids]
        yield Site(server.url, *found[0], *found[1])
    finally:
        server.kill()


def fill(root: Path) -> str:
    """Log a run with curves, pictures, tables and a data set, and register and promote its checkpoint."""
    uri = default_tracking_uri(root)
    tracker = start_run(
        tracking_uri=uri,
        experiment="streets",
        run_name="nano-streets",
        run_key="run-0",
        folder=root / "run",
        params={"recipe": "upernet_vit-nano_mln_128x128_1k", "seed": 0},
    )
    tracker.log_dataset("streets-validation", digest="d" * 32, context="val", source="shards")
    palette = ((70, 130, 180), (128, 64, 64), (0, 0, 142))
    for step in (0, 100, 250):
        tracker.log_metrics(
            {"train/loss": 4.0 / (step + 10), "val/mIoU": step / 500, "best/val_mIoU": step / 500}, step
        )
        tracker.log_image("val/street", prediction_panel(*street(step), palette, CLASSES), step)
    tracker.log_table({"class": list(CLASSES), "IoU": [0.5, 0.25, None]}, "tables/per_class.json")
    assert tracker.finish()
    assert tracker.run_id is not None
    pictures = {f"street {step}": prediction_panel(*street(step), palette, CLASSES) for step in (100, 250)}
    checkpoint = write_checkpoint(root / "checkpoint")
    version = register(checkpoint, name="streets", run_id=tracker.run_id, tracking_uri=uri, pictures=pictures)
    give("streets", version.number, tracking_uri=uri)
    return tracker.run_id


def fill_sweep(uri: str, root: Path) -> str:
    """Log a sweep of three necks whose trials are runs of their own; returns its run's id."""
    sweep = sweep_of_necks({"none": [0.40, 0.42], "mln": [0.52, 0.53], "ln_mln": [0.51, 0.55]})
    parent = start_run(tracking_uri=uri, experiment="sweeps", run_name="necks", run_key="necks", folder=root / "necks")
    log_sweep(parent, sweep, render_report(sweep).encode())
    for trial in sweep.trials:
        child = start_run(
            tracking_uri=uri,
            experiment="sweeps",
            run_name=trial.name,
            run_key=trial.name,
            parent_run_key="necks",
            folder=root / trial.name,
        )
        for score in trial.scores:
            child.log_metrics({"val/mIoU": score.miou}, score.step)
        assert child.finish()
    assert parent.finish()
    assert parent.run_id is not None
    return parent.run_id


def street(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, its labels, and a prediction that improves with the steps."""
    label = np.zeros((120, 160), np.uint8)
    label[60:] = 1
    label[80:100, 50:110] = 2
    image = np.array([(150, 190, 230), (140, 110, 100), (40, 40, 90)], np.uint8)[label]
    return image, label, np.roll(label, (250 - step) // 10, axis=0)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    context = browser.new_context(viewport={"width": 1400, "height": 1600})
    context.add_init_script(INIT_SCRIPT)
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    yield page
    if folder := os.environ.get("VITRAIL_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{request.node.name}.png")
    context.close()


def see(page, text: str | re.Pattern) -> None:
    from playwright.sync_api import expect

    expect(page.get_by_text(text).first).to_be_visible(timeout=TIMEOUT_MS)


def test_run_page_shows_status_scores_data_and_model(page, site):
    page.goto(f"{site.url}/#/experiments/{site.experiment_id}/runs/{site.run_id}?workflowType=machine_learning")
    for text in (
        "nano-streets",
        "Finished",
        "streets-validation",
        "best/val_mIoU",
        "upernet_vit-nano_mln_128x128_1k-step-250",
    ):
        see(page, text)


def test_pictures_are_shown_from_step_0_on_and_follow_the_slider(page, site):
    page.goto(
        f"{site.url}/#/experiments/{site.experiment_id}/runs/{site.run_id}/model-metrics?workflowType=machine_learning"
    )
    see(page, "val/street")
    picture = page.locator("img[src*='get-artifact']").first
    picture.wait_for(state="visible")
    picture.scroll_into_view_if_needed()
    assert "+step+0+" in unquote(picture.get_attribute("src"))
    page.wait_for_function("image => image.naturalWidth > 0", arg=picture.element_handle())
    assert max(picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")) == 256

    page.get_by_role("slider").first.focus()
    for _ in range(2):  # the marks are the steps that have pictures
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "() => [...document.images].some(image => decodeURIComponent(image.src).includes('+step+250+'))"
    )


def test_class_table_is_shown_as_a_table(page, site):
    page.goto(
        f"{site.url}/#/experiments/{site.experiment_id}/runs/{site.run_id}/artifacts/tables/per_class.json"
        "?workflowType=machine_learning"
    )
    see(page, "building")
    see(page, "0.25")


def test_model_page_shows_the_champion(page, site):
    page.goto(f"{site.url}/#/models/streets")
    see(page, re.compile(r"@\s*champion"))
    see(page, "Version 1")


def test_version_page_shows_the_model_card_and_the_verdict(page, site):
    page.goto(f"{site.url}/#/models/streets/versions/1")
    for text in ("50.00%", "does not occur", "random weights", "0123abc+changes", "vitrail.gate.verdict"):
        see(page, text)


def test_verdict_is_a_page_among_the_files_of_the_model(page, site):
    (version,) = connect(site.url).search_model_versions("name = 'streets'")
    model_id = version.source.removeprefix("models:/")
    page.goto(f"{site.url}/#/experiments/{site.experiment_id}/models/{model_id}/artifacts")
    page.get_by_text("gate", exact=True).click()
    page.get_by_text(re.compile(r"champion-\w+\.html")).click()
    verdict = page.frame_locator("iframe").get_by_text("Every rule holds.")
    verdict.wait_for(state="visible")
    assert page.get_by_text("Not registered").count() == 0  # what MLflow says of a model that knows of no version


def test_page_of_a_sweep_shows_the_decision_and_its_report(page, site):
    where = f"{site.url}/#/experiments/{site.sweep_experiment_id}/runs/{site.sweep_run_id}"
    page.goto(f"{where}?workflowType=machine_learning")
    for text in ("necks", "best/val_mIoU", re.compile("the highest mean mIoU")):
        see(page, text)
    page.goto("about:blank")  # only the part after the # differs
    page.goto(f"{where}/artifacts/report.html?workflowType=machine_learning")
    page.frame_locator("iframe").get_by_text("What was tried").wait_for(state="visible")


def test_runs_of_a_sweep_stand_under_it(page, site):
    page.goto(f"{site.url}/#/experiments/{site.sweep_experiment_id}/runs?workflowType=machine_learning")
    see(page, "necks")
    page.locator(".ag-row").filter(has_text="necks").get_by_role("button").first.click()
    for trial in ("none-seed0", "ln_mln-seed1"):
        see(page, trial)


def test_version_page_shows_the_pictures_of_the_model(page, site):
    page.goto(f"{site.url}/#/models/streets/versions/1")
    for name in ("1-street_100", "2-street_250"):
        picture = page.locator(f"img[src*='{name}']")  # MLflow leaves no other attribute to a picture
        picture.wait_for(state="visible")
        page.wait_for_function("image => image.naturalWidth > 0", arg=picture.element_handle())
        assert picture.evaluate("image => image.naturalWidth") == 640
