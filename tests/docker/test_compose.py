"""compose.yaml with each profile: named things exist, settings are known, and only intended ports are open."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from distill.settings import TrainingSettings
from gateway.app import create_app
from gateway.settings import RedisSettings, Settings
from tests.docker.conftest import Configured
from tests.docker.files import (
    DOCKER,
    compose,
    dockerfile,
    env_file,
    image_environment,
    profiles,
    variables_of_compose,
)

each_profile = pytest.mark.parametrize("profile", profiles())


def ours(model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the services that run this project's images."""
    return {name: service for name, service in model["services"].items() if service["image"].startswith("ratchet-")}


def image_of(service: dict[str, Any]) -> str:
    return str(service["image"]).removeprefix("ratchet-").partition(":")[0]


def environment(service: dict[str, Any]) -> dict[str, Any]:
    """Return the environment of a service's container."""
    own: dict[str, Any] = service.get("environment", {})
    return image_environment(image_of(service)) | own


def hosts(model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the services by their host names."""
    found = dict(model["services"])
    for service in model["services"].values():
        networks = service.get("networks", {})
        for network in networks.values() if isinstance(networks, dict) else ():
            found |= dict.fromkeys(network.get("aliases", ()), service)
    return found


def ports(service: dict[str, Any]) -> set[int]:
    """Return the ports that a service listens on, by its command or its image."""
    command = " ".join(map(str, service.get("command", ())))
    found = re.findall(r"--port (\d+)", command)
    if service["image"].startswith("ratchet-"):
        found += [line.rest for line in dockerfile(image_of(service)) if line.word == "EXPOSE"]
    if "valkey" in service["image"]:
        found += ["6379"]
    if "node-exporter" in service["image"]:
        found += ["9100"]
    return set(map(int, found))


def test_the_profiles_are_the_backends() -> None:
    assert ["cpu", "tgi", "vllm"] == profiles()


@each_profile
def test_every_variable_has_a_value(profile: str) -> None:
    """Every variable of a profile is used."""
    variables = env_file(DOCKER / "profiles" / f"{profile}.env")
    assert variables_of_compose() <= set(variables) | set(env_file(DOCKER / ".env.example"))
    text = (DOCKER / "compose.yaml").read_text()
    assert [] == [name for name in variables if f"${{{name}" not in text and name != "COMPOSE_PROFILES"]


@each_profile
def test_our_containers_know_all_their_settings(profile: str, configured: Configured) -> None:
    for name, service in ours(compose(profile)).items():
        variables = environment(service)
        assert any(key.startswith("GATEWAY_") for key in variables), name
        gateway, _ = configured(variables)
        assert variables.get("GATEWAY_REDIS__URL", RedisSettings().url) == gateway.redis.url


@each_profile
def test_named_files_volumes_and_services_exist(profile: str) -> None:
    model = compose(profile)
    for name, service in model["services"].items():
        for other in service.get("depends_on", {}):
            assert other in model["services"], name
        for secret in service.get("secrets", ()):
            assert secret in model["secrets"], name
        for network in service.get("networks", ()):
            assert network in model["networks"], name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in model["volumes"], volume
        if "build" in service:
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


@each_profile
def test_every_image_of_ours_is_built_by_its_services(profile: str) -> None:
    """Compose pulls an image that a service does not build, and these are not published."""
    for name, service in ours(compose(profile)).items():
        assert f"docker/{image_of(service)}.Dockerfile" == service["build"]["dockerfile"], name


@each_profile
def test_addresses_lead_to_services_that_listen_there(profile: str, configured: Configured) -> None:
    model = compose(profile)
    reachable = hosts(model)
    for service in ours(model).values():
        gateway, _ = configured(environment(service))
        if "GATEWAY_REDIS__URL" not in environment(service):
            continue
        for url in (*gateway.backend.urls, gateway.reward.url, gateway.redis.url):
            address = urlsplit(url)
            assert address.port in ports(reachable[address.hostname or ""]), url


@each_profile
def test_prometheus_scrapes_services_that_listen_there(profile: str) -> None:
    model = compose(profile)
    for job in yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]:
        targets = [target for config in job.get("static_configs", ()) for target in config["targets"]]
        targets += [f"{name}:{it['port']}" for it in job.get("dns_sd_configs", ()) for name in it["names"]]
        for target in targets:
            host, port = target.split(":")
            assert int(port) in ports(hosts(model)[host])


@each_profile
def test_the_night_and_its_guard_share_volumes(profile: str) -> None:
    """They share the runs, and with the backend the adapters at the same path, which vLLM opens."""
    services = compose(profile)["services"]
    nights = [service for name, service in services.items() if name.startswith(("night", "watch"))]
    assert 2 == len(nights)
    assert nights[0]["environment"] == nights[1]["environment"]
    backend = services[urlsplit(nights[0]["environment"]["GATEWAY_BACKEND__URLS"]).hostname]
    for service in nights:
        assert {"night:/var/lib/ratchet", "adapters:/adapters"} <= set(service["volumes"])
    assert "adapters:/adapters" in [volume.removesuffix(":ro") for volume in backend["volumes"]]


@each_profile
def test_a_restarted_backends_name_is_the_one_in_its_url(profile: str) -> None:
    model = compose(profile)
    variables = env_file(DOCKER / "profiles" / f"{profile}.env")
    backend = model["services"][urlsplit(variables["BACKEND_URLS"]).hostname]
    if variables["LOAD_COMMAND"]:
        assert urlsplit(variables["BACKEND_URLS"]).hostname == backend["environment"]["REPLICA"]
        assert variables["BACKEND_KIND"] == backend["entrypoint"][2]
    else:
        assert "True" == backend["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]


def test_all_gateways_together_stay_within_the_backends_capacity() -> None:
    """TGI refuses requests above its capacity; llama.cpp queues them."""
    for profile, option in (("tgi", "--max-concurrent-requests"), ("cpu", "--parallel")):
        model = compose(profile)
        backend = model["services"]["tgi" if profile == "tgi" else "llamacpp"]
        limit = int(backend["command"][backend["command"].index(option) + 1])
        gateway = model["services"]["gateway"]
        assert gateway["deploy"]["replicas"] * int(gateway["environment"]["GATEWAY_RACE__MAX_IN_FLIGHT"]) <= limit


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_vllm_finishes_its_running_answers_before_it_is_killed() -> None:
    """By default it aborts them at SIGTERM."""
    vllm = compose("vllm")["services"]["vllm"]
    grace_s = int(vllm["stop_grace_period"].removesuffix("s"))
    assert 0 < int(option(vllm["command"], "--shutdown-timeout")) <= grace_s - 5


def test_vllm_has_a_parser_for_its_models_tool_calls() -> None:
    """Without a parser it refuses every request with tools."""
    command = compose("vllm")["services"]["vllm"]["command"]
    variables = env_file(DOCKER / "profiles" / "vllm.env")
    assert "--enable-auto-tool-choice" in command
    assert variables["TOOL_CALL_PARSER"] == option(command, "--tool-call-parser")


def test_vllm_accepts_adapters_of_the_trained_rank() -> None:
    command = compose("vllm")["services"]["vllm"]["command"]
    assert TrainingSettings().rank <= int(command[command.index("--max-lora-rank") + 1])


@each_profile
def test_only_the_balancer_is_open_to_other_machines(profile: str) -> None:
    for name, service in compose(profile)["services"].items():
        for port in service.get("ports", ()):
            assert name == "balancer" or port.startswith("127.0.0.1:"), port


@each_profile
def test_our_containers_have_no_needless_privileges(profile: str) -> None:
    model = compose(profile)
    for name, service in ours(model).items():
        assert (True, ["ALL"], ["/tmp"]) == (service["read_only"], service["cap_drop"], service["tmpfs"]), name
    for name, service in model["services"].items():
        assert not service.get("privileged"), name
        assert not any("docker.sock" in volume for volume in service.get("volumes", ())), name


@each_profile
def test_every_foreign_image_names_its_version(profile: str) -> None:
    model = compose(profile)
    for service in model["services"].values():
        tag = service["image"].partition(":")[2]
        assert service["image"].startswith("ratchet-") or re.search(r"\d+(\.\d+|\d{3})", tag), service["image"]


def test_the_cpu_profile_asks_for_no_gpu() -> None:
    assert [] == [
        name for name, service in compose("cpu")["services"].items() if "resources" in service.get("deploy", {})
    ]


def test_the_balancer_uses_routes_that_exist() -> None:
    config = (DOCKER / "balancer" / "haproxy.cfg").read_text()
    gateway = compose("tgi")["services"]["gateway"]
    port = re.search(r"server-template \w+ (\d+) gateway:(\d+)", config)
    probed = re.search(r"meth GET uri (\S+)", config)
    assert port is not None
    assert probed is not None
    assert {int(port[2])} == ports(gateway)
    assert gateway["deploy"]["replicas"] <= int(port[1])
    app = create_app(Settings.model_validate({"reward": {"url": "http://reward"}}))
    routes = set(app.openapi()["paths"])
    assert probed[1] in routes
    assert set(re.findall(r"if \{ path (.*) \}", config)) <= routes


def test_the_balancer_waits_as_long_as_a_race_may_take() -> None:
    config = (DOCKER / "balancer" / "haproxy.cfg").read_text()
    patience = re.search(r"timeout server (\d+)s", config)
    race, reward = Settings().race, Settings().reward
    assert patience is not None
    assert race.queue_timeout_s + race.deadline_s + reward.timeout_s < int(patience[1])
