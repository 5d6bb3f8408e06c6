"""Dashboard and alerts use exported metrics, existing labels and jobs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from distill.nightly.metrics import write_metrics
from distill.nightly.results import GateResult, write_result
from distill.run_dir import new_run
from gateway.reward.server_metrics import ServerMetrics
from gateway.settings import JournalSettings
from gateway.telemetry import Metrics
from gateway.types import Selection
from tests.docker.files import DOCKER, compose, dashboard, of_kind, rules

Labels = dict[str, set[str]]

_QUERIES = {
    **{rule["alert"]: rule["expr"] for group in rules() for rule in group["rules"]},
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    },
    **{it["name"]: it["expr"] for it in dashboard()["annotations"]["list"]},
}
each_query = pytest.mark.parametrize("query", _QUERIES.values(), ids=_QUERIES)
_OWN = re.compile(r"(ratchet_\w+)(?:\{([^}]*)\})?")
_SCRAPED = {"job", "instance"}


def touched(metrics: object) -> None:
    """Create a child of every labelled metric: without one it exports no sample."""
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase) and metric._labelnames:
            metric.labels(*("x" for _ in metric._labelnames))


def samples(text: str) -> Labels:
    """Return the names of samples, each with its labels."""
    found: Labels = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def gateway_samples() -> Labels:
    metrics = Metrics()
    touched(metrics)
    return samples(metrics.render()[0].decode())


def reward_samples() -> Labels:
    metrics = ServerMetrics()
    touched(metrics)
    return samples(metrics.render(0)[0].decode())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """Return all exported metrics: of the gateway and the reward server on /metrics, of the night in its file."""
    folder: Path = tmp_path_factory.mktemp("night")
    run = new_run(folder / "runs", {})
    run.log_attempt()
    gate = GateResult(promote=True, n_now=8, n_new=4, checkpoint="1", temperature=None, why="")
    write_result(run, gate)
    run.log_seconds("draw", 1.0)
    write_metrics(folder / "night.prom", run, 0)
    found = gateway_samples()
    for more in (reward_samples(), samples((folder / "night.prom").read_text())):
        for name, labels in more.items():
            found.setdefault(name, set()).update(labels)
    return found


@each_query
def test_every_query_uses_exported_metrics(query: str, exported: Labels) -> None:
    for name, matchers in _OWN.findall(query):
        assert name in exported
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= exported[name] | _SCRAPED


@each_query
def test_every_query_groups_by_existing_labels(query: str, exported: Labels) -> None:
    there = set().union(*(exported[name] for name, _ in _OWN.findall(query))) | _SCRAPED
    for grouped in re.findall(r"\bby \(([^)]*)\)", query):
        assert {label.strip() for label in grouped.split(",")} <= there


@each_query
def test_label_values_in_queries_exist(query: str) -> None:
    jobs = {
        job["job_name"]
        for job in yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    }
    assert jobs == set(of_kind("ServiceMonitor"))
    occurring = {"job": jobs, "selection": {it.value for it in Selection}, "sign": {"positive", "negative"}}
    for label, values in occurring.items():
        assert set(re.findall(rf'\b{label}="(\w+)"', query)) <= values
    for name, matchers in _OWN.findall(query):
        if 'job="reward"' in matchers:
            assert name in reward_samples()


def test_every_metric_of_the_gateway_is_used() -> None:
    """Exceptions are listed here with their reason."""
    asked = {name for query in _QUERIES.values() for name, _ in _OWN.findall(query)}
    spare = {
        "ratchet_winner_reward",  # its distribution, for whoever wants more than the mean
        "ratchet_reward_batch_tokens",  # of a model in the gateway's own process, as the next three
        "ratchet_reward_batch_padding_tokens",
        "ratchet_reward_run_seconds",
        "ratchet_reward_batch_entries",
    }
    registry: CollectorRegistry = Metrics().registry
    families = {family.name for family in registry.collect()}
    unseen = {name for name in families if not any(one.startswith(name) for one in asked)}
    assert unseen <= spare


def test_no_panels_overlap() -> None:
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    folder = DOCKER / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    provider = yaml.safe_load((folder / "dashboards" / "ratchet.yaml").read_text())["providers"][0]
    services = compose("tgi")["services"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    assert dashboard()["templating"]["list"][0]["current"]["value"] == source["uid"]
    assert source["url"].removeprefix("http://").split(":")[0] in services


def test_every_alert_has_its_line_in_the_guide() -> None:
    alerts = [rule["alert"] for group in rules() for rule in group["rules"]]
    guide = re.findall(r"^\| `(Ratchet\w+)` \|", (DOCKER / "README.md").read_text(), flags=re.MULTILINE)
    assert alerts == guide


def test_the_spools_alarm_comes_before_a_gateway_is_not_ready() -> None:
    spool = next(rule for group in rules() for rule in group["rules"] if rule["alert"] == "RatchetSpoolFilling")
    assert float(spool["expr"].split(">")[1]) <= JournalSettings().max_spool_bytes / 2
