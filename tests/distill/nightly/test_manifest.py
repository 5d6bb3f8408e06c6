"""The manifest holds the settings of a night without secrets, and a resumed night is held to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.errors import RunMismatch
from distill.nightly.manifest import check_settings, new_manifest
from distill.run_dir import new_run
from distill.settings import Settings
from gateway.policy import Policy
from gateway.settings import PolicySettings
from gateway.settings import Settings as GatewaySettings

SECRET = "s3cr3t"


def test_no_secret_of_the_gateway_is_in_a_manifest() -> None:
    gateway = GatewaySettings.model_validate(
        {
            "backend": {"urls": f"http://user:{SECRET}@backend", "api_key": SECRET},
            "reward": {"url": f"http://user:{SECRET}@reward", "api_key": SECRET},
            "redis": {
                "url": f"rediss://user:{SECRET}@redis",
                "username": SECRET,
                "password": SECRET,
                "cert_file": "client.pem",
                "key_file": Path(SECRET),
            },
            "api": {"keys_file": Path(SECRET)},
            "tracing": {"endpoint": f"http://user:{SECRET}@collector"},
        }
    )
    written = new_manifest(Settings(), gateway, Policy.from_settings(PolicySettings()))
    assert SECRET not in json.dumps(written)
    assert "timeout_s" in written["gateway"]["redis"]


def test_a_run_of_an_older_release_is_resumed_with_the_defaults_of_newer_settings(tmp_path: Path) -> None:
    begun = new_manifest(Settings(), GatewaySettings(), Policy.from_settings(PolicySettings()))
    del begun["settings"]["dataset"]["max_examples"]
    run = new_run(tmp_path, begun)
    check_settings(run, Settings(), GatewaySettings())
    begun["settings"]["dataset"]["held_out_share"] = 0.7
    with pytest.raises(RunMismatch, match=r"dataset\.held_out_share"):
        check_settings(new_run(tmp_path, begun), Settings(), GatewaySettings())


@pytest.mark.parametrize(("value", "fits"), [(1, True), (7, False)])
def test_a_run_of_an_older_release_is_resumed_only_with_the_values_that_are_constants_now(
    tmp_path: Path, value: int, fits: bool
) -> None:
    begun = new_manifest(Settings(), GatewaySettings(), Policy.from_settings(PolicySettings()))
    assert "max_per_prompt" not in begun["settings"]["dataset"]
    begun["settings"]["dataset"]["max_per_prompt"] = value
    run = new_run(tmp_path, begun)
    if fits:
        check_settings(run, Settings(), GatewaySettings())
    else:
        with pytest.raises(RunMismatch, match=r"dataset\.max_per_prompt"):
            check_settings(run, Settings(), GatewaySettings())
