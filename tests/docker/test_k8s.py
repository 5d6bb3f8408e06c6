"""The manifests: valid by the API's schemas, and consistent with each other, the settings and the exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from distill import exits
from gateway.settings import RedisSettings
from gateway.telemetry import Metrics
from tests.docker.conftest import Configured
from tests.docker.files import (
    DOCKER,
    IMAGES,
    config_maps,
    image_environment,
    kustomization,
    manifests,
    of_kind,
    pods,
    rules,
)

_NAME = "app.kubernetes.io/name"
_SECRETS = {"ratchet": {"redis-url", "redis-password", "reward-api-key"}, "gateway-keys": {"keys"}}
each_pod = pytest.mark.parametrize("pod", sorted(pods()))


def containers(pod: str) -> Iterator[dict[str, Any]]:
    spec = pods()[pod]["spec"]
    yield from (*spec.get("initContainers", ()), *spec["containers"])


def environment(container: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a container; a secret has a made-up value."""
    found = image_environment(container["image"].removeprefix("ratchet-"))
    for source in container.get("envFrom", ()):
        found |= config_maps()[source["configMapRef"]["name"]]
    for variable in container.get("env", ()):
        found[variable["name"]] = variable.get("value", "redis://:secret@redis:6379/0")
    return found


def with_labels(labels: dict[str, str]) -> list[str]:
    """Return the pods that a selector matches."""
    return [name for name, pod in pods().items() if labels.items() <= pod["metadata"]["labels"].items()]


def named_ports(pod: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for item in containers(pod) for port in item.get("ports", ())}


@pytest.mark.parametrize(
    "manifest",
    [item for item in manifests() if not item["apiVersion"].startswith("monitoring.coreos.com/")],
    ids=lambda item: f"{item['kind']}/{item['metadata']['name']}",
)
def test_every_manifest_is_valid_by_the_apis_schema(manifest: dict[str, Any]) -> None:
    """Strictly: Kubernetes silently drops a field that it does not know."""
    assert "" == refusal(manifest)


def test_a_manifest_with_an_unknown_field_is_invalid() -> None:
    manifest = of_kind("Service")["gateway"]
    assert "publishNotReady" in refusal(manifest | {"spec": manifest["spec"] | {"publishNotReady": True}})


def refusal(manifest: dict[str, Any]) -> str:
    """Return the message with which the API would refuse a manifest; empty if it is valid."""
    try:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


def test_the_kustomization_names_every_file_and_every_image() -> None:
    """prometheus-adapter.yaml belongs to another chart."""
    files = {path.name for path in (DOCKER / "k8s").glob("*.yaml")} - {"kustomization.yaml", "prometheus-adapter.yaml"}
    assert files == set(kustomization()["resources"])
    used = {item["image"] for pod in pods() for item in containers(pod) if item["image"].startswith("ratchet-")}
    assert used == {entry["name"] for entry in kustomization()["images"]} == {f"ratchet-{image}" for image in IMAGES}


@each_pod
def test_no_service_becomes_a_setting(pod: str) -> None:
    """A Service "gateway" sets GATEWAY_PORT=tcp://… in pods that allow it, and no gateway would start."""
    assert pods()[pod]["spec"]["enableServiceLinks"] is False


@each_pod
def test_our_containers_know_all_their_settings(pod: str, configured: Configured) -> None:
    for container in containers(pod):
        if container["image"].startswith("ratchet-") and "command" not in container:
            variables = environment(container)
            gateway, _ = configured(variables)
            assert variables.get("GATEWAY_REDIS__URL", RedisSettings().url) == gateway.redis.url


@each_pod
def test_addresses_lead_to_services_that_listen_there(pod: str, configured: Configured) -> None:
    services = of_kind("Service")
    for container in containers(pod):
        variables = environment(container) if container["image"].startswith("ratchet-") else {}
        if "GATEWAY_BACKEND__URLS" in variables:
            gateway, _ = configured(variables)
            for url in (*gateway.backend.urls, gateway.reward.url, gateway.redis.url):
                *replica, service = (urlsplit(url).hostname or "").split(".")
                assert urlsplit(url).port in [port["port"] for port in services[service]["spec"]["ports"]], url
                if replica:
                    count = of_kind("StatefulSet")[service]["spec"]["replicas"]
                    assert replica[0] in [f"{service}-{index}" for index in range(count)]


@each_pod
def test_referenced_objects_exist(pod: str) -> None:
    spec = pods()[pod]["spec"]
    claims = set(of_kind("PersistentVolumeClaim"))
    templates = {
        item["metadata"]["name"]
        for item in of_kind("StatefulSet").get(pod, {}).get("spec", {}).get("volumeClaimTemplates", ())
    }
    for volume in spec.get("volumes", ()):
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in claims
        if "secret" in volume:
            assert {item["key"] for item in volume["secret"]["items"]} <= _SECRETS[volume["secret"]["secretName"]]
    volumes = {volume["name"] for volume in spec.get("volumes", ())} | templates
    for container in containers(pod):
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        assert {it["configMapRef"]["name"] for it in container.get("envFrom", ())} <= set(config_maps())
        for variable in container.get("env", ()):
            if (secret := variable.get("valueFrom", {}).get("secretKeyRef")) is not None:
                assert secret["key"] in _SECRETS[secret["name"]]


def test_the_manifests_hold_no_secret() -> None:
    assert {} == of_kind("Secret")
    assert "secretGenerator" not in kustomization()


@each_pod
def test_our_containers_have_no_needless_privileges(pod: str) -> None:
    for container in containers(pod):
        held = container["securityContext"]
        assert held["allowPrivilegeEscalation"] is False
        if container["image"].startswith("ratchet-"):
            assert (True, {"drop": ["ALL"]}) == (held["readOnlyRootFilesystem"], held["capabilities"])


def test_selectors_pick_pods_and_ports_that_exist() -> None:
    for name, service in of_kind("Service").items():
        picked = with_labels(service["spec"]["selector"])
        assert 1 == len(picked), name
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(named_ports(picked[0])), name
    for kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
        for name, item in of_kind(kind).items():
            assert [name] == with_labels(item["spec"]["selector"]["matchLabels"])
    for name, item in of_kind("StatefulSet").items():
        assert item["spec"]["serviceName"] in of_kind("Service"), name


def test_network_policies_name_pods_and_ports_that_exist() -> None:
    known = {pod["metadata"]["labels"][_NAME] for pod in pods().values()}
    numbers = {port for pod in pods() for port in named_ports(pod).values()} | {53, 443}
    names = {name for pod in pods() for name in named_ports(pod)}
    for name, policy in of_kind("NetworkPolicy").items():
        for selector in _selectors(policy["spec"]):
            values = [selector["matchLabels"][_NAME]] if _NAME in selector.get("matchLabels", {}) else []
            values += [value for it in selector.get("matchExpressions", ()) for value in it["values"]]
            assert set(values) <= known, name
        for rule in (*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())):
            assert {port["port"] for port in rule.get("ports", ())} <= numbers | names, name


def _selectors(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield spec["podSelector"]
    for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
        for peer in (*rule.get("from", ()), *rule.get("to", ())):
            if "podSelector" in peer and "namespaceSelector" not in peer:
                yield peer["podSelector"]


def test_pods_may_connect_to_the_addresses_in_their_settings() -> None:
    """Gateways, nights and the guard reach Redis, rewards and TGI, in the policies of both ends."""
    policies = of_kind("NetworkPolicy")
    inner = policies["inner"]["spec"]
    assert {"redis", "reward", "tgi"} == set(inner["podSelector"]["matchExpressions"][0]["values"])
    assert {"gateway", "night", "watch"} == set(
        inner["ingress"][0]["from"][0]["podSelector"]["matchExpressions"][0]["values"]
    )
    for name in ("gateway", "night"):
        reached = {
            rule["to"][0]["podSelector"]["matchLabels"][_NAME]: rule["ports"][0]["port"]
            for rule in policies[name]["spec"]["egress"]
        }
        assert {"redis": 6379, "reward": 8001, "tgi": 80} == reached


def test_the_autoscaler_asks_for_a_metric_that_is_exported() -> None:
    spec = of_kind("HorizontalPodAutoscaler")["gateway"]["spec"]
    metric = spec["metrics"][0]["pods"]["metric"]["name"]
    assert Metrics().registry.get_sample_value(metric) is not None
    adapter = yaml.safe_load((DOCKER / "k8s" / "prometheus-adapter.yaml").read_text())
    assert adapter["rules"]["custom"][0]["seriesQuery"].startswith(metric)
    assert spec["scaleTargetRef"]["name"] in of_kind(spec["scaleTargetRef"]["kind"])
    assert "replicas" not in of_kind("StatefulSet")["gateway"]["spec"], "the autoscaler's to say"


def test_the_autoscalers_maximum_stays_within_tgis_capacity() -> None:
    most = of_kind("HorizontalPodAutoscaler")["gateway"]["spec"]["maxReplicas"]
    tgi = of_kind("StatefulSet")["tgi"]["spec"]
    arguments = tgi["template"]["spec"]["containers"][0]["args"]
    limit = int(arguments[arguments.index("--max-concurrent-requests") + 1])
    assert most * int(config_maps()["gateway"]["GATEWAY_RACE__MAX_IN_FLIGHT"]) <= tgi["replicas"] * limit


def test_the_night_is_retried_by_its_exit_code() -> None:
    job = of_kind("CronJob")["night"]["spec"]
    assert "Forbid" == job["concurrencyPolicy"]
    given_up = job["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    not_of_run = {exits.ROLLED_BACK, exits.LOST}
    again = not_of_run | {exits.FINISHED, exits.UNAVAILABLE, exits.INTERRUPTED, exits.TERMINATED}
    assert set(exits.TABLE) - again == set(given_up)


def test_prometheus_scrapes_services_and_ports_that_exist() -> None:
    for name, monitor in of_kind("ServiceMonitor").items():
        service = of_kind("Service")[name]  # a job is called what its Service is called: the alerts know it so
        wanted = monitor["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= service["metadata"]["labels"].items()
        assert {it["port"] for it in monitor["spec"]["endpoints"]} <= {
            port["name"] for port in service["spec"]["ports"]
        }


def test_kubernetes_has_the_rules_of_compose() -> None:
    assert rules() == of_kind("PrometheusRule")["ratchet"]["spec"]["groups"]
