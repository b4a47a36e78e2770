"""The report says each claim once, says no more than its figures, needs no network, and comes out the same twice."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from html import escape
from html.parser import HTMLParser

import pytest

from rorqual.core.errors import ConfigError, DataError
from rorqual.evals.claims import TOPICS, account, claims
from rorqual.evals.compare import compare
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.page import Html, table
from rorqual.evals.pictures import DARK, LIGHT, panels, png
from rorqual.evals.plots import pictures
from rorqual.evals.plots_cost import CLOCK_PICTURE
from rorqual.evals.reading import read_findings, read_records
from rorqual.evals.report import build_report, report_text
from rorqual.evals.report_claims import points
from rorqual.evals.report_cost import scientific
from rorqual.evals.series import draw_series
from rorqual.evals.stats import holm_values
from rorqual.evals.transcripts import hardest
from rorqual.tasks.base import Verdict

FILES = [
    "base/metrics.jsonl",
    "teacher/metrics.jsonl",
    *(f"evals/{when}-{mode}.json" for when in ("before", "after") for mode in ("auto", "on", "off")),
    "evals/experts.json",
    "summary.json",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_folder):
    return make_folder(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def report(folder):
    return build_report(folder).read_text(encoding="utf-8")


def without_pictures(folder):
    return report_text(read_findings(folder), defaultdict(str))


class Elements(HTMLParser):
    """Every element with its attributes, and whether each that is opened is closed."""

    VOID = {"meta", "link", "img", "source", "br"}

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_each_claim_stands_once_with_its_figures(folder, report):
    asked = claims(read_findings(folder))
    assert len(asked) == len(TOPICS) * 6 == len({item.claim.text for item in asked})
    for item in asked:
        assert report.count(escape(item.claim.text)) == 1
        line = next(line for line in report.split("\n") if escape(item.claim.text) in line)
        row = line[line.index(escape(item.claim.text)) :].split("</tr>")[0]
        interval = f"[{points(item.claim.interval.low)}, {points(item.claim.interval.high)}]"
        assert points(item.claim.estimate) in row and interval in row and item.claim.sign in row
    assert {item.claim.sign for item in asked} == {"higher", "open", "lower"}


def test_claims_are_corrected_for_their_number_and_hold_only_beyond_zero(folder):
    findings = read_findings(folder)
    asked = claims(findings)
    raw = [
        row.p_value
        for topic in TOPICS
        for row in compare(
            findings.evaluations[topic.before],
            findings.evaluations[topic.after],
            measure=topic.measure,
            side="greater",
        )
    ]
    assert [item.claim.p_value for item in asked] == pytest.approx(holm_values(raw))
    for item in asked:
        assert (
            item.wide.low
            <= item.claim.interval.low
            <= item.claim.estimate
            <= item.claim.interval.high
            <= item.wide.high
        )
        if item.claim.sign == "higher":
            assert item.claim.interval.low > 0 and item.claim.p_value <= 0.05


def test_it_says_where_the_gain_came_from(folder, report, tmp_path, make_folder):
    told = account(read_findings(folder))
    assert told.by_choice > 0.8 * told.gain > 0
    assert "the choice to think explains nearly all of the gain" in report and "better thinking" not in report
    assert f"After GRPO, the model made to think reaches {told.after_made_to_think:.1%}." in report
    # Had it been as wrong before when made to think, the sentence must turn.
    other = make_folder(tmp_path)
    path = other / "evals" / "before-on.json"
    found = Evaluation.load(path)
    wrong = tuple(sample.model_copy(update={"verdict": Verdict.WRONG}) for sample in found.samples)
    found.model_copy(update={"samples": wrong}).save(path)
    text = without_pictures(other)
    assert "explains little of the gain" in text and "nearly all of the gain" not in text


def test_no_gain_is_said_to_be_none(tmp_path, make_folder):
    folder = make_folder(tmp_path)
    for mode in ("auto", "on", "off"):
        shutil.copy(folder / "evals" / f"before-{mode}.json", folder / "evals" / f"after-{mode}.json")
    text = without_pictures(folder)
    assert "GRPO brought no gain" in text
    signs = [item.claim.sign for item in claims(read_findings(folder)) if item.topic is not TOPICS[1]]
    assert set(signs) == {"open"}


def test_what_a_model_wrote_is_text_and_never_markup(report):
    elements = Elements(report)
    assert elements.open == []
    tags = [tag for tag, _ in elements.found]
    assert "script" not in tags and "b" not in [t for t, a in elements.found if a.get("class") == "thought"]
    assert report.count("&lt;script&gt;") > 10
    assert tags.count("img") == tags.count("picture") == 9
    assert all(attrs["alt"].strip() for tag, attrs in elements.found if tag == "img")


def test_nothing_is_fetched(report):
    for tag, attrs in Elements(report).found:
        for name in ("src", "srcset", "href", "data", "poster", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, name)
        assert "style" not in attrs or "url(" not in attrs["style"]
    style = report.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style and "http" not in style


def test_a_cell_is_escaped_unless_it_is_html_by_type():
    text = table("t", ["<i>"], [("<u>", [["<span>sly</span>"], [Html("<em>meant</em>")]])])
    assert "&lt;span&gt;sly" in text and "<em>meant</em>" in text and "<i>" not in text and "<u>" not in text


def test_pictures_lie_beside_the_report_in_both_schemes(folder, report):
    names = set(pictures(read_findings(folder)))
    written = {path.name for path in (folder / "pictures").iterdir()}
    assert written == {f"{name}{kind}.png" for name in names for kind in ("", "-dark")}
    assert report.count("prefers-color-scheme: dark") == len(names)


def test_the_control_is_drawn_beside_what_grpo_changed(folder):
    """Before GRPO, made to think: without it the rise looks like better thinking."""
    findings = read_findings(folder)
    for name in ("accuracy", "accuracy-by-level"):
        figure = pictures(findings)[name].draw(LIGHT)
        assert "before GRPO, made to think" in [text.get_text() for text in figure.legends[0].get_texts()]
    told = {row.family: row.accuracy for row in findings.evaluations["before", "on"].rows("family")}
    for share in told.values():
        assert f"(before GRPO, made to think: {share:.0%})" in pictures(findings)["accuracy"].alt
    assert "before, on" in without_pictures(folder)


def test_the_same_figures_give_the_same_bytes(folder, report):
    assert without_pictures(folder) == re.sub(r"<figure>.*?</figure>", "", report)
    picture = pictures(read_findings(folder))["accuracy"]
    light, dark = png(picture, LIGHT), png(picture, DARK)
    assert light == png(picture, LIGHT) != dark
    assert b"matplotlib" not in light.lower() and b"tIME" not in light


def test_only_the_clock_picture_shows_the_clock(folder):
    findings = read_findings(folder)
    slower = [stage.model_copy(update={"seconds": 99, "core_seconds": 98}) for stage in findings.summary.stages]
    summary = findings.summary.model_copy(update={"stages": tuple(slower)})
    other = type(findings)(**{**vars(findings), "summary": summary})
    old, new = pictures(findings), pictures(other)
    changed = {name for name in ("cost", CLOCK_PICTURE) if png(old[name], LIGHT) != png(new[name], LIGHT)}
    assert changed == {CLOCK_PICTURE}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_nothing_is_written(quickstart_folder, name):
    (quickstart_folder / name).unlink()
    with pytest.raises(DataError, match=rf"{re.escape(str(quickstart_folder / name))}: .*missing\n.*Repeat"):
        build_report(quickstart_folder)
    assert not (quickstart_folder / "report.html").exists() and not (quickstart_folder / "pictures").exists()


def test_a_wrong_file_is_named(quickstart_folder):
    path = quickstart_folder / "evals" / "experts.json"
    good = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(good | {"layers": [1, 2]}), encoding="utf-8")
    with pytest.raises(DataError, match=r"experts.json: share must be \[2 layers\]\[6 families\]"):
        build_report(quickstart_folder)
    path.write_text(json.dumps(good | {"share": "none"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"experts.json: key 'share'"):
        build_report(quickstart_folder)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"experts.json: the file is not valid JSON"):
        build_report(quickstart_folder)


def test_the_busiest_experts_are_named_in_words(quickstart_folder):
    path = quickstart_folder / "evals" / "experts.json"
    use = json.loads(path.read_text(encoding="utf-8"))
    layers, families, experts = len(use["layers"]), len(use["families"]), len(use["share"][0][0])
    busiest = [experts - 1 - layer for layer in range(layers)]
    assert min(busiest) >= families, "no number of a family"
    share = [
        [[0.5 if e == busiest[layer] else 0.1 for e in range(experts)] for _ in range(families)]
        for layer in range(layers)
    ]
    path.write_text(json.dumps(use | {"share": share}), encoding="utf-8")
    alt = pictures(read_findings(quickstart_folder))["experts"].alt
    assert f"Most loaded expert by layer: {', '.join(map(str, busiest))}." in alt


def test_a_dense_model_is_said_to_have_no_experts(quickstart_folder):
    dense = {"layers": [], "families": ["addition"], "share": [], "load": []}
    (quickstart_folder / "evals" / "experts.json").write_text(json.dumps(dense), encoding="utf-8")
    assert "no routed experts" in without_pictures(quickstart_folder)
    assert not {"experts", "load"} & set(pictures(read_findings(quickstart_folder)))


def test_records_without_the_keys_are_shown_as_not_recorded(quickstart_folder):
    for name, stage in (("base", "sft"), ("teacher", "grpo")):
        lines = b"".join(json.dumps({"step": n, "stage": stage, "reward": None}).encode() + b"\n" for n in range(3))
        (quickstart_folder / name / "metrics.jsonl").write_bytes(lines)
    drawn = pictures(read_findings(quickstart_folder))
    assert "Fine-tuning loss went from not recorded" in drawn["learning-curves"].alt
    assert png(drawn["learning-curves"], LIGHT) and png(drawn["thinking"], DARK)
    assert "at most" not in without_pictures(quickstart_folder).split('id="learning"')[1].split("<section")[0]
    (quickstart_folder / "base" / "metrics.jsonl").write_bytes(b'{"stage": "grpo"}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl: no record of stage 'sft'"):
        build_report(quickstart_folder)


def test_a_step_done_twice_counts_as_last_written(tmp_path):
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + b'{"st')
    assert read_records(tmp_path, "sft") == [lines[0], lines[2]]


def test_steps_are_whole_numbers_on_their_axis():
    _, (axis,) = panels(1, 1, 6.0, 3.0)
    draw_series(axis, LIGHT, [{"step": step, "reward": 0.5} for step in (1, 2, 3)], [(("reward",), "black", "reward")])
    assert all(tick == round(tick) for tick in axis.get_xticks())


def test_transcripts_are_chosen_by_rule(folder):
    own = [s for s in read_findings(folder).evaluations["after", "auto"].samples if s.family == "sorting"]
    assert hardest(own) == next(sample for sample in own if sample.level == "10")
    assert hardest([]) is None


def test_numbers_are_set_as_in_print():
    assert [points(v) for v in (0.123, -0.05, 0.0, -0.0001)] == ["+12.3", "−5.0", "0.0", "0.0"]
    assert [scientific(v) for v in (0, 1234567.0, 9.1e12)] == ["0", "1.23 × 10⁶", "9.10 × 10¹²"]


def requests_of(page, tmp_path, scheme):
    """Addresses that `page` made Chromium ask for, and what it drew. The browser's own calls (for its updates, its
    clock) name no initiator; those of a page, which is opened from a file, do."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome")]
    browser = next(filter(None, found), None)
    assert browser, "No Chromium here: apt-get update && apt-get install -y chromium"
    log, shot = tmp_path / f"net-{scheme}.json", tmp_path / f"shot-{scheme}.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
    command += [f"--log-net-log={log}", f"--screenshot={shot}", "--window-size=900,1200", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert shot.stat().st_size > 10_000
    found = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    asked = {event["url"] for event in found if event.get("initiator", "not an origin") != "not an origin"}
    return asked, shot.read_bytes()


@pytest.mark.browser
def test_a_browser_makes_no_request_in_light_and_dark(folder, report, tmp_path):
    page = folder / "report.html"
    pictures_seen = []
    for scheme in (1, 0):
        urls, shot = requests_of(page, tmp_path, scheme)
        assert urls == set()
        pictures_seen.append(shot)
    assert pictures_seen[0] != pictures_seen[1]
    # The twin that shows the log would tell: one picture from elsewhere, and it is seen.
    leaky = tmp_path / "leaky.html"
    leaky.write_text(report.replace("<header>", '<header><img alt="" src="http://example.invalid/x.png">'), "utf-8")
    urls, _ = requests_of(leaky, tmp_path, 1)
    assert urls == {"http://example.invalid/x.png"}
