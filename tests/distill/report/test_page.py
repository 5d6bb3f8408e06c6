"""The page of a night is valid, self-contained, true to the facts, and safe from hostile text in them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape

from distill.report.facts import FACTS_FILE, NightFacts, SideBySide
from distill.report.formats import SHOWN_CHARACTERS, count, fixed, seconds, signed, visible, wealth
from distill.report.page import HTML_FILE, render, write_report
from distill.report.view import controls, evidence_title, finding, is_chosen, points
from tests.distill.report.a_night import finished_night, night_without_training
from tests.distill.report.nights import (
    HOSTILE,
    NIGHTS,
    absurd_numbers,
    after_many_nights,
    hostile_night,
    no_draws,
    refused_by_guardrails,
    trained_without_a_log,
    with_tests,
)

VOID = {"meta", "br", "img", "link", "hr", "input"}
FETCHING = {
    "script",
    "link",
    "img",
    "iframe",
    "object",
    "embed",
    "video",
    "audio",
    "source",
    "base",
    "form",
    "use",
    "image",
}
FIGURES = {"path", "line", "circle", "polygon", "rect"}


class _Page(HTMLParser):
    """A strict parser: every tag is closed in order. It keeps the parts that tests check."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert [] == self.stack
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"an attribute twice in <{tag}>"
        if "p" in self.stack:
            assert tag in {"b", "code", "span"}, f"<{tag}> closes the paragraph it is in"
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in FIGURES, f"<{tag}/> does not close itself in HTML"
        self.handle_starttag(tag, attrs)
        self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] != "style":
            self.words.append(data)


@pytest.mark.parametrize("name", NIGHTS)
def test_every_night_is_a_valid_page_that_loads_nothing(name: str) -> None:
    html = render(NIGHTS[name]())
    page = _Page(html)
    assert html.startswith("<!doctype html>")
    assert not FETCHING & set(page.tags)
    assert len(set(page.ids)) == len(page.ids)
    links = {value for _, attribute, value in page.attributes if attribute in {"href", "src", "srcset", "xlink:href"}}
    assert links <= {f"#{identity}" for identity in page.ids}
    assert not [attribute for _, attribute, _ in page.attributes if attribute.startswith("on")]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in html
    assert not re.search(r"\b(nan|inf|None|undefined)\b", page.text)
    for _, attribute, value in page.attributes:
        if attribute in {"d", "points", "x", "y", "cx", "cy", "x1", "x2", "y1", "y2"}:
            assert not re.search("nan|inf", value)


@pytest.mark.parametrize("name", NIGHTS)
def test_the_verdict_comes_first(name: str) -> None:
    night = NIGHTS[name]()
    page = _Page(render(night))
    assert 1 == page.tags.count("h1")
    shown = night.headline if night.verdict is None else night.verdict.why
    assert re.sub(r"\s+", " ", visible(shown)) in page.text


def test_hostile_text_is_escaped_and_a_long_one_is_clipped() -> None:
    html = render(hostile_night())
    assert "<script>" not in html
    assert "<img" not in html
    assert "{{ 7 * 7 }}" in html
    assert 1 == html.count("</body>")
    assert not set(html) & {"\x00", "\x07", "\u202e"}
    page = _Page(html)
    whole = visible(HOSTILE * 700)
    assert f"all {count(len(whole))} characters" in page.text
    assert f"{count(len(whole) - SHOWN_CHARACTERS)} characters, is in report.json" in page.text
    assert len(html) < 400_000


def test_half_a_character_does_not_break_the_page() -> None:
    night = finished_night()
    broken = night.samples[0].old.model_copy(update={"text": "half \ud83d of a face"})
    samples = [night.samples[0].model_copy(update={"old": broken})]
    assert "half ? of a face" in render(night.model_copy(update={"samples": samples}))


def test_numbers_on_the_page_are_those_of_the_facts() -> None:
    night = finished_night()
    text = _Page(render(night)).text
    assert night.verdict is not None
    assert night.measured is not None
    assert night.collected is not None
    for samples in night.measured.sample_sets:
        for point, tokens in zip(points(night.verdict, samples), samples.pick_tokens, strict=True):
            row = f"{fixed(point.low, 3)} to {fixed(point.high, 3)}"
            assert f" {fixed(point.mean, 3)} {row} {fixed(tokens, 1)} " in text
    for test in night.verdict.best.tests:
        gap = test.difference
        assert f"{signed(gap.mean)} ({signed(gap.low)} to {signed(gap.high)})" in text
        assert f" {wealth(test.highest_wealth)} " in text
    for guardrail in night.measured.guardrails:
        assert f"{guardrail.label} " in text
        assert f"{guardrail.why} {fixed(guardrail.value, 3)} ✓ holds" in text
    for number, reason in (
        (486, "training examples"),
        (290, "held out for measuring"),
        (74, "left out: near duplicate"),
    ):
        assert f"{reason} {number} " in text
    assert "all that were read 1,204" in text
    assert "do not add up" not in text
    for cost in night.costs:
        assert f"{cost.step} {seconds(cost.seconds)} " in text
    assert "all 1 h 50 min 412,990 1,310,222 458,433 6,960" in text
    assert "One new draw is worth (k*) 2.2 old draws; 95 % interval: 1.9 to 2.6" in text
    assert "8 → 4" in text
    assert "1 h 52 min" in text
    assert "2.71 GB" in text
    assert f"data hash {night.data_hash} " in text


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("N falls from 8 to 4: the best of 4 new samples beats the best of 7 old ones", "promoted"),
        ("N stays 8: not enough evidence yet, about 240 more prompts would settle it", "kept"),
        ("N stays 8: 4 samples would keep the reward, but guardrails fail: length, held-out reward model", "refused"),
        ("N stays 8: 12 winners to train on, 32 are needed", "too-few"),
        ("N falls from 8 to 4: the best of 4 new samples beats the best of 7 old ones", "no-draws"),
    ],
)
def test_the_headline_is_one_sentence_that_an_operator_understands(expected: str, name: str) -> None:
    assert f"<h1>{escape(expected)}</h1>" in render(NIGHTS[name]())


def test_the_verdict_is_stated_once_in_short_and_once_with_its_numbers() -> None:
    night = finished_night()
    assert night.verdict is not None
    html = render(night)
    assert 2 == html.count(str(escape(night.verdict.summary))), "in the tab's title and in the page's"
    assert 1 == html.count(str(escape(night.verdict.why)))


def test_a_promoted_night_whose_samples_are_gone_still_shows_its_verdict() -> None:
    text = _Page(render(no_draws())).text
    assert "the policy is unchanged" not in text
    assert "There are no samples to show" in text
    assert "There is enough evidence down to N′ = 4" in text
    assert "the policy is unchanged" in _Page(render(night_without_training())).text


def test_several_checkpoints_are_named_and_a_worse_one_is_called_worse() -> None:
    night = finished_night(promoted=False)
    assert night.measured is not None
    assert night.verdict is not None
    (result,) = night.verdict.candidates
    name = "a-rather-long-name-of-checkpoint-31"
    other = replace(result, checkpoint=name, tests=[replace(result.tests[0], gain_mean=-1.0)])
    result = replace(result, worth_at_best=replace(result.worth_at_best, value=1.0))
    old, new = night.measured.sample_sets[0], night.measured.sample_sets[-1]
    sample_sets = [old, new.model_copy(update={"name": name}), new]
    update = {
        "measured": night.measured.model_copy(update={"sample_sets": sample_sets}),
        "verdict": replace(night.verdict, candidates=[other, result], serving_curves={}),
    }
    html = render(night.model_copy(update=update))
    assert 1 == html.count(">checkpoint-31, T 0.7<"), "in the wide figure only"
    assert "One new draw is worth no more than an old one" in html


def test_the_compared_histograms_are_named() -> None:
    assert "old: base at T 0.4 new: checkpoint-61 at T 0.7" in _Page(render(finished_night())).text


def test_only_the_promoted_n_is_marked_as_chosen() -> None:
    night = finished_night()
    assert night.verdict is not None
    best = night.verdict.best
    assert [4] == [test.n for test in best.tests if is_chosen(night.verdict, best, test)]
    assert 1 == render(night).count('<tr class="chosen">')
    assert 0 == render(finished_night(promoted=False)).count('<tr class="chosen">')


def test_three_checkpoints_share_alpha() -> None:
    night = finished_night()
    assert night.verdict is not None
    html = render(night.model_copy(update={"verdict": replace(night.verdict, threshold=60.0)}))
    assert "60: enough evidence" in html
    assert "at most α = 0.050, shared by 3 checkpoints, however often one looks" in _Page(html).text
    assert "20: enough evidence" in render(night)


@pytest.mark.parametrize(("highest", "missing"), [(19.9, ": 19.9 of the 20 needed"), (20.0, "")])
def test_the_gates_title_names_the_evidence_that_is_missing(highest: float, missing: str) -> None:
    night = finished_night(promoted=False)
    assert night.verdict is not None
    test = night.verdict.best.tests[0]
    verdict = with_tests(night.verdict, [replace(test, highest_wealth=highest)])
    assert f"There is not enough evidence for any N′{missing}" == evidence_title(verdict)


def test_a_test_that_did_not_lead_to_a_promotion_has_its_reason() -> None:
    night = refused_by_guardrails()
    assert night.verdict is not None
    best, other = night.verdict.candidates
    assert "+31 % tokens; the judge scores it -0.031" == finding(night.verdict, best, best.tests[3])
    assert "" == finding(night.verdict, best, best.tests[2])
    assert finding(night.verdict, other, other.tests[0]).endswith(
        "of 20 needed, against the old policy's best of 7 at temperature 0.4"
    )
    assert "not tested, because N′ = 7 did not pass" == finding(night.verdict, other, other.tests[1])


def test_the_control_is_the_old_policy_at_its_best_temperature_for_each_n() -> None:
    night = finished_night()
    assert night.verdict is not None
    found = controls(night.verdict)
    assert [0.4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] == [temperature for temperature, _ in found]
    for n, (_, point) in enumerate(found, start=1):
        assert point.mean == max(curve[n - 1].mean for curve in night.verdict.serving_curves.values())


def test_a_judge_that_does_not_agree_is_shown_at_the_top() -> None:
    text = _Page(render(refused_by_guardrails())).text
    alarm = text.index("The held-out reward model does not agree that the new policy is better")
    assert alarm < text.index("Reward against N")
    assert "2 of 6 guardrails fail" in text
    assert "second judge: the judge scores it -0.031" in text
    assert "There is enough evidence down to N′ = 4" in text
    assert "Other checkpoints, 7 more tests" in text
    assert "There is no held-out reward model" not in text


def test_n_over_time_shows_every_policy() -> None:
    night = after_many_nights()
    text = _Page(render(night)).text
    assert "N went from 8 to 2 over 6 policies" in text
    assert "6 published policies" in text
    assert all(version.reason in text for version in night.history)


def test_records_that_do_not_add_up_are_reported() -> None:
    text = _Page(render(hostile_night())).text
    assert "These do not add up: 2 are accounted for, but 3 were read" in text
    assert "2 could not be read and were set aside" in text


def test_numbers_that_are_not_finite_are_not_drawn() -> None:
    text = _Page(render(absurd_numbers())).text
    assert "n/a" in text
    assert "∞" in text
    assert "No loss was logged." in text
    assert "at least 8 old ones" in text
    assert "1.9 or more" in text
    assert "Reward against N" in _Page(render(trained_without_a_log())).text


def test_the_report_is_written_with_its_json(tmp_path: Path) -> None:
    night = finished_night()
    assert tmp_path / "run" / HTML_FILE == write_report(night, tmp_path / "run")
    assert render(night) == (tmp_path / "run" / HTML_FILE).read_text()
    written = (tmp_path / "run" / FACTS_FILE).read_bytes()
    assert night == NightFacts.model_validate_json(written)
    assert json.loads(written)["verdict"]["candidates"][0]["trials"][0]["n"] == 7
    assert {HTML_FILE, FACTS_FILE} == {path.name for path in (tmp_path / "run").iterdir()}


def test_all_of_a_hostile_night_is_in_its_json(tmp_path: Path) -> None:
    night = hostile_night()
    write_report(night, tmp_path)
    assert night == NightFacts.model_validate_json((tmp_path / FACTS_FILE).read_bytes())


def test_rendering_twice_gives_the_same_page() -> None:
    assert render(finished_night()) == render(finished_night())


def test_a_conversation_shows_its_last_question_and_folds_the_rest() -> None:
    night = finished_night()
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And tea?"}]
    pair = SideBySide(messages=turns, old=night.samples[0].old, new=night.samples[0].new)
    text = _Page(render(night.model_copy(update={"samples": [pair]}))).text
    assert text.index("And tea?") < text.index("1 earlier message")
    assert "system Be brief." in text
