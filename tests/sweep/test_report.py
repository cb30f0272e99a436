"""The report's page: complete, escaped, in need of nothing else, for any sweep."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest
from sample_sweep import cost, record, sweep_of_necks, trial

from vitrail.sweep.page import render_report
from vitrail.sweep.record import SweepRecord

NECKS = {"none": (0.30, 0.31, 0.32), "mln": (0.405, 0.415, 0.425), "ln_mln": (0.41, 0.42, 0.43)}
COSTS = {"none": cost(90.0, 1.0), "mln": cost(60.0, 2.0)}


class Page(HTMLParser):
    """The rows of every table, the verdict, and whether all tags are closed in order."""

    _VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value for name, value in attrs if name in ("src", "href") and value]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "tr" in self.open:
            self.rows[-1][-1] += data

    def configuration(self, label: str) -> list[str]:
        """The one row of this label that begins with a number."""
        (found,) = [row for row in self.rows if row[0].isdigit() and row[1] == label]
        return found

    def trial(self, name: str) -> list[str]:
        """The one row of this trial."""
        (found,) = [row for row in self.rows if row[0] == name]
        return found


def verdict_of(text: str) -> str:
    found = re.search(r'<p class="verdict (\w+)">(.*?)</p>', text)
    assert found is not None
    return f"{found[1]}: {unescape(re.sub('<[^>]+>', ' ', found[2]))}"


def test_table_of_configurations_holds_the_numbers() -> None:
    page = Page(render_report(sweep_of_necks(NECKS, costs=COSTS)))
    cells = ("2", "mln", "41.50", "1.00", "39.02 to 43.98", "3")
    # q(0.05; 3, 6) is 4.34 in the tables, and 4.34 * 0.01 / sqrt(3) is 2.51 points
    difference = "−0.50 (−3.01 to +2.01)"  # noqa: RUF001
    assert page.configuration("mln") == [*cells, difference, "yes", "60.0", "20.0", "2.00", "58.0", "61.0"]
    assert page.configuration("ln_mln")[:2] == ["1", "ln_mln"] and page.configuration("ln_mln")[6:9] == [
        "-",
        "chosen",
        "-",
    ]
    assert page.configuration("none")[7] == "no"


def test_every_trial_and_configuration_is_listed_with_its_end() -> None:
    trials = [
        trial({"neck": "none"}, 0.4),
        trial({"neck": "mln"}, 0.2, status="stopped"),
        trial({"neck": "ln_mln"}, None, status="failed"),
        trial({"neck": "none"}, None, seed=1, status="waiting"),
    ]
    page = Page(render_report(record(trials)))
    assert page.trial("none-seed0") == [
        "none-seed0",
        "none",
        "0",
        "finished",
        "40.00",
        "2,000",
        "2,000 of 2,000",
        "1.5",
        "",
    ]
    assert page.trial("mln-seed0")[3:7] == ["stopped", "20.00", "1,000", "1,000 of 2,000"]
    assert page.trial("ln_mln-seed0")[3:] == ["failed", "-", "-", "0 of 2,000", "1.5", "CUDA out of memory"]
    assert page.trial("none-seed1")[3] == "waiting"
    numbered = [row for row in page.rows if row[0].isdigit()]
    assert [(row[1], row[5]) for row in numbered] == [("none", "1 of 2"), ("mln", "0 of 1"), ("ln_mln", "0 of 1")]


def test_verdict_names_winner_cost_and_what_is_within_noise() -> None:
    verdict = verdict_of(render_report(sweep_of_necks(NECKS, costs=COSTS | {"ln_mln": cost(50.0, 3.0)})))
    assert verdict.startswith("ok: ")
    for part in ("ln_mln has the highest mean mIoU: 42.00% over 3 seeds", "50.0 images/s", "3.00 GiB", "mln (41.50%)"):
        assert part in verdict
    assert "none" not in verdict


def test_verdict_warns_of_unknown_noise_and_of_a_sweep_that_runs() -> None:
    single = verdict_of(render_report(sweep_of_necks({"none": [0.3], "mln": [0.4]})))
    assert single.startswith("warning: ") and "Noise is unknown" in single and "--seeds 3" in single
    running = sweep_of_necks(NECKS).with_trial(trial({"neck": "other"}, None, status="running"))
    assert verdict_of(render_report(running)).startswith("warning:  So far, with 1 trial running: ln_mln has")


@pytest.mark.parametrize(
    "sweep",
    [
        record([]),
        record([trial({"neck": "none"}, None, status="waiting")]),
        record([trial({"neck": "none"}, 0.2, status="stopped"), trial({"neck": "mln"}, None, status="failed")]),
    ],
)
def test_sweep_without_a_finished_trial_has_a_page(sweep: SweepRecord) -> None:
    text = render_report(sweep)
    assert verdict_of(text).startswith("error: Nothing to choose from: no trial of sweep necks has finished")
    assert len([row for row in Page(text).rows if row[0].isdigit()]) == len(sweep.labels)


def test_page_escapes_names_and_needs_no_network() -> None:
    nasty = '<script>alert("x")</script>'
    trials = [
        trial({"<i>neck</i>": nasty, "lr": 0.001}, 0.4),
        trial({"<i>neck</i>": "$<b>$", "lr": 0.002}, 0.3),
        trial({"<i>neck</i>": nasty, "lr": 0.003}, None, status="failed").model_copy(update={"error": "<u>'&"}),
    ]
    fields = {name: f"<em>{name}</em>" for name in ("name", "recipe", "data", "device", "search", "scheduler")}
    sweep = record(trials, **fields, costs={trials[0].label: cost(1.0)})
    text = render_report(sweep)
    assert not any(tag in text for tag in ("<script", "<i>", "<u>", "<em>", "<b>$"))
    page = Page(text)
    assert page.configuration(trials[0].label)[0] == "1" and page.trial(trials[2].name)[-1] == "<u>'&"
    assert all(unescape(f"&lt;em&gt;{name}&lt;/em&gt;") in unescape(text) for name in fields)
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert len(page.sources) == 3 and all(source.startswith("data:image/png;base64,") for source in page.sources)


def test_setting_tells_what_was_varied_on_what() -> None:
    sweep = record(
        [trial({"neck": "none", "lr": 1e-4}, 0.3), trial({"neck": "mln", "lr": 2e-3}, 0.4, seed=7)],
        dimensions={"neck": ("none", "mln"), "lr": ()},
    )
    text = unescape(re.sub("<[^>]+>", " ", render_report(sweep)))
    for fact in (
        "varied: neck  none, mln ",
        "drawn from a range, 0.0001 to 0.002",
        "seeds  0, 7 ",
        "upernet_vit-nano_128x128_1k",
        "scenes, judged on 200 validation images",
        "2,000",
        "2 workers for each trial, on NVIDIA A100",
    ):
        assert fact in text, fact
