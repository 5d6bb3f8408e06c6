"""The page of a night: valid, self-contained, true to the facts, and deaf to what strangers write into it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape

from distill.report.facts import FACTS_FILE, NightFacts, SideBySide
from distill.report.page import HTML_FILE, render, write_report
from distill.report.story import details, verdict
from distill.report.words import SHOWN_CHARACTERS, count, fixed, seconds, signed, visible, wealth
from tests.distill.report.a_night import finished_night
from tests.distill.report.nights import (
    HOSTILE,
    NIGHTS,
    absurd_numbers,
    after_many_nights,
    hostile_night,
    refused_by_guards,
    trained_without_a_log,
    unfinished_after_training,
    unfinished_at_once,
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
    """Parses strictly: every tag is closed in its turn; keeps what tests ask for."""

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
def test_every_night_is_a_valid_page_that_asks_the_network_for_nothing(name: str) -> None:
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
    assert re.sub(r"\s+", " ", visible(night.headline)) in page.text


def test_hostile_text_is_text_and_a_long_one_is_clipped() -> None:
    html = render(hostile_night())
    assert "<script>" not in html
    assert "<img" not in html
    assert "{{ 7 * 7 }}" in html
    assert 1 == html.count("</body>")
    assert not set(html) & {"\x00", "\x07", "\u202e"}
    page = _Page(html)
    whole = visible(HOSTILE * 700)
    assert f"all {count(len(whole))} characters" in page.text
    assert f"{count(len(whole) - SHOWN_CHARACTERS)} characters, is in the JSON" in page.text
    assert len(html) < 400_000


def test_half_a_character_does_not_break_the_page() -> None:
    night = finished_night()
    broken = night.samples[0].old.model_copy(update={"text": "half \ud83d of a face"})
    samples = [night.samples[0].model_copy(update={"old": broken})]
    assert "half ? of a face" in render(night.model_copy(update={"samples": samples}))


def test_numbers_on_the_page_are_those_of_the_facts() -> None:
    night = finished_night()
    text = _Page(render(night)).text
    assert night.decision is not None
    assert night.measured is not None
    assert night.trained is not None
    assert night.collected is not None
    for curve in night.measured.curves:
        for point in curve.points:
            row = f"{fixed(point.reward.low, 3)} to {fixed(point.reward.high, 3)}"
            assert f" {fixed(point.reward.mean, 3)} {row} {fixed(point.tokens, 1)} " in text
    for one in night.decision.tried:
        gap = one.difference
        assert f"{signed(gap.mean)} ({signed(gap.low)} to {signed(gap.high)})" in text
        assert f" {wealth(one.wealth)} " in text
    for number, reason in ((486, "trains"), (290, "held out, to measure"), (74, "left out: near duplicate")):
        assert f"{reason} {number} " in text
    assert "looked at 1,204" in text
    assert "do not add up" not in text
    for cost in night.costs:
        assert f"{cost.step} {seconds(cost.seconds)} " in text
    assert "all 1 h 50 min 412,990 1,310,222 458,433 6,960" in text
    assert "k*, worth of one new draw 2.2 old draws; 95 %: 1.9 to 2.6" in text
    assert "8 → 4" in text
    assert "1 h 52 min" in text
    assert "2.71 GB" in text
    assert night.data_hash in text if night.data_hash else False


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("N falls from 8 to 4: the best of 4 new draws beats the best of 7 old ones", "promoted"),
        ("N stays 8: not enough evidence yet, about 240 more held-out prompts would settle it", "kept"),
        ("N stays 8: 4 draws would keep the reward, but guards fail: length, held-out reward model", "refused"),
        ("N stays 8: 12 winners to train on, 32 are needed", "too-few"),
        ("draw failed: no backend answers at http://127.0.0.1:8080", "unfinished-after-training"),
        ("N stays 8: no held-out prompts", "no-draws"),
    ],
)
def test_the_headline_is_one_sentence_that_an_operator_understands(expected: str, name: str) -> None:
    assert f"<h1>{escape(expected)}</h1>" in render(NIGHTS[name]())


def test_a_policy_that_is_no_better_is_not_promised_more_prompts() -> None:
    night = finished_night(promoted=False)
    assert night.decision is not None
    hopeless = night.model_copy(update={"decision": night.decision.model_copy(update={"more_prompts": None})})
    assert "N stays 8: on this evidence the new policy is no better" == verdict(hopeless)


def test_a_better_policy_may_take_over_at_the_same_n() -> None:
    night = finished_night()
    assert night.decision is not None
    one = night.model_copy(update={"decision": night.decision.model_copy(update={"n_old": 1, "n_new": 1})})
    assert "N stays 1, better served: the best of 1 new draws beats the best of 1 old ones" == verdict(one)


def test_what_the_night_says_of_itself_is_said_once() -> None:
    night = finished_night()
    assert night.decision is not None
    why = night.decision.why
    assert [why, night.headline] == details(night)
    both = night.model_copy(update={"headline": f"N 8 → 4: {why}"})
    assert [why] == details(both)


def test_several_checkpoints_are_named_and_a_worse_one_is_called_so() -> None:
    night = finished_night(promoted=False)
    assert night.measured is not None
    old, new = night.measured.curves[0], night.measured.curves[-1]
    other = new.model_copy(update={"name": "a-rather-long-name-of-checkpoint-31"})
    worst = night.measured.equivalent_n[0].model_copy(update={"value": 1.0})
    measured = {"curves": [old, other, new], "controls": [], "equivalent_n": [worst]}
    html = render(night.model_copy(update={"measured": night.measured.model_copy(update=measured)}))
    assert 1 == html.count(">checkpoint-31, T 0.7<"), "on a desk, not on a phone"
    assert "One new draw is worth no more than an old one" in html


def test_a_new_policy_without_a_curve_of_that_name_still_has_its_histogram() -> None:
    night = finished_night(promoted=False)
    assert night.measured is not None
    bars = [one.model_copy(update={"name": "other"}) for one in night.measured.rewards if one.side == "new"]
    measured = night.measured.model_copy(update={"rewards": bars, "lengths": bars})
    assert "new: other at T 0.7" in _Page(render(night.model_copy(update={"measured": measured}))).text


def test_three_checkpoints_share_alpha() -> None:
    night = finished_night()
    assert night.decision is not None
    html = render(night.model_copy(update={"decision": night.decision.model_copy(update={"threshold": 60.0})}))
    assert "3/α = 60: enough" in html
    assert "evidence at α = 0.050, shared by 3 checkpoints, however often one looks" in _Page(html).text
    assert "1/α = 20: enough" in render(night)


def test_a_judge_that_does_not_agree_is_named_at_the_top() -> None:
    text = _Page(render(refused_by_guards())).text
    plainly = text.index("The held-out reward model does not agree that the new policy is better")
    assert plainly < text.index("Reward against N")
    assert "2 of 6 guards fail" in text
    assert "The evidence sufficed at N′ = 4, but guards fail: length, held-out reward model" in text
    assert "Other checkpoints, 7 more tries" in text
    assert "No held-out reward model was asked" not in text


def test_a_night_that_broke_off_says_where_and_how_to_go_on() -> None:
    text = _Page(render(unfinished_after_training())).text
    assert "The night did not finish" in text
    assert "Finished steps: collect, curate, train." in text
    assert "python -m distill run goes on from there" in text
    assert "No draws were measured" in text
    assert "No step finished." in _Page(render(unfinished_at_once())).text


def test_n_over_all_nights_shows_every_policy() -> None:
    night = after_many_nights()
    text = _Page(render(night)).text
    assert "N went from 8 to 2 over 6 policies" in text
    assert "6 published policies" in text
    assert all(version.reason in text for version in night.history)


def test_records_that_do_not_add_up_are_called_out() -> None:
    text = _Page(render(hostile_night())).text
    assert "These do not add up: 2 are accounted for, 3 were looked at" in text
    assert "2 could not be read and were put aside" in text


def test_numbers_that_are_none_are_not_drawn() -> None:
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
    assert json.loads(written)["decision"]["n_new"] == 4
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
