"""What a night writes down of its settings, for anyone who reads its folder."""

from __future__ import annotations

import json
from pathlib import Path

from distill.nightly.manifest import manifest
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
    written = manifest(Settings(), gateway, Policy.from_settings(PolicySettings()))
    assert SECRET not in json.dumps(written)
    assert "timeout_s" in written["gateway"]["redis"]
