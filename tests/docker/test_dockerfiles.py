"""The Dockerfiles, as far as they can be checked without building them."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.docker.conftest import Configured
from tests.docker.files import DOCKER, IMAGES, ROOT, dockerfile, final_stage, image_environment
from tests.stubs.tgi import TgiStub

each_image = pytest.mark.parametrize("image", IMAGES)


def pins() -> set[str]:
    """Return the pins of constraints.txt by normalised names."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {_normal(line.split("==")[0]) for line in lines if "==" in line and not line.startswith("#")}


def needed(requirements: Iterable[str]) -> set[str]:
    """Return the normalised names of the requirements and of all their dependencies, as installed here.

    Without CUDA's libraries: torch's builds depend on them on one platform only.
    """
    found: dict[str, set[str]] = {}
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        name = _normal(requirement.name)
        extras = requirement.extras | {""}
        if extras <= found.get(name, set()):
            continue
        found.setdefault(name, set()).update(extras)
        inner = [Requirement(line) for line in metadata.requires(requirement.name) or ()]
        if name == "torch":
            inner = [it for it in inner if "platform_system" not in str(it.marker)]
        waiting += [it for it in inner if it.marker is None or any(it.marker.evaluate({"extra": e}) for e in extras)]
    return set(found)


def _normal(requirement: str) -> str:
    name = re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


@each_image
def test_copied_files_exist_and_are_not_ignored(image: str) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in dockerfile(image):
        if line.word == "COPY" and "--from" not in line.rest:
            for source in line.rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(fnmatch(source, pattern) for pattern in allowed), f"{source} is kept out by .dockerignore"


@each_image
def test_a_stage_that_is_copied_from_exists(image: str) -> None:
    stages = {line.rest.split(" AS ")[1] for line in dockerfile(image) if line.word == "FROM" and " AS " in line.rest}
    used = {match for line in dockerfile(image) for match in re.findall(r"--from=(\w+)", line.rest)}
    assert used == stages


def test_all_images_use_one_base_pinned_by_its_hash() -> None:
    bases = {line.rest for image in IMAGES for line in dockerfile(image) if line.rest.startswith("PYTHON=")}
    assert 1 == len(bases)
    assert re.search(r"^PYTHON=python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", bases.pop())


@each_image
def test_all_installed_packages_are_pinned(image: str) -> None:
    """The image's own line has its requirements; constraints.txt pins them and all their dependencies.

    CUDA's libraries are excepted: torch's metadata has their versions (a range for cuda-bindings).
    """
    listing = next(line.rest for line in dockerfile(image) if line.word == "RUN" and "tomllib" in line.rest)
    program = re.search(r'python -c "(.*?)"', listing)
    assert program is not None
    listed = subprocess.run([sys.executable, "-c", program[1]], cwd=ROOT, check=True, capture_output=True, text=True)
    wanted = {_normal(requirement) for requirement in listed.stdout.splitlines()}
    assert {"fastapi", "pydantic"} < wanted
    assert ("torch" in wanted, "trl" in wanted) == (image != "gateway", image == "distill")
    assert set() == needed(listed.stdout.splitlines()) - pins()
    for line in dockerfile(image):
        for install in re.findall(r"pip install [^&]*", line.rest):
            assert "-c constraints.txt" in install or "--no-deps" in install, install


def test_the_sbom_tool_is_pinned_with_all_its_dependencies() -> None:
    lines = (DOCKER / "sbom-requirements.txt").read_text().splitlines()
    requirements = [line for line in lines if not line.startswith("#")]
    assert "cyclonedx-bom" in {line.split("==")[0] for line in requirements}
    assert [] == [line for line in requirements if "==" not in line]


@each_image
def test_an_image_runs_without_root_and_has_labels(image: str) -> None:
    words = {line.word: line.rest for line in final_stage(image)}
    assert "10001:10001" == words["USER"]
    labels = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", words["LABEL"]))
    assert {"title", "description", "licenses", "revision", "base.name"} == labels
    assert any("/usr/share/sbom" in line.rest for line in final_stage(image) if line.word == "COPY")


@each_image
def test_its_variables_are_settings(image: str, configured: Configured) -> None:
    """The gateway and the reward server require keys: an image that is started without any serves nobody."""
    keys = {"GATEWAY_API__KEYS_FILE": "/keys", "GATEWAY_REWARD__API_KEY": "a key"}
    gateway, distill = configured(image_environment(image) | keys)
    if image == "gateway":
        assert ("0.0.0.0", 8000) == (gateway.host, gateway.port)
    if image == "reward":
        assert ("0.0.0.0", 8001) == (gateway.reward.host, gateway.reward.port)
    if image == "distill":
        kept = [distill.night.runs_dir, distill.dataset.archive_dir, distill.evaluation.draws_dir]
        kept += [distill.promotion.guard_file, gateway.journal.spool_dir]
        kept += [distill.night.metrics_file] if distill.night.metrics_file else []
        assert 6 == len(kept)
        assert all(str(path).startswith("/var/lib/ratchet/") for path in kept)


@each_image
def test_its_command_exists(image: str) -> None:
    words = {line.word: line.rest for line in final_stage(image)}
    command = [*json.loads(words["ENTRYPOINT"]), *json.loads(words["CMD"])]
    assert "python" == command[0]
    ended = subprocess.run(
        [sys.executable, *command[1:], "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "Usage" in ended.stdout


@pytest.mark.parametrize("image", ["gateway", "reward"])
def test_its_health_check_uses_the_served_port(image: str) -> None:
    words = {line.word: line.rest for line in final_stage(image)}
    script, url = json.loads(words["HEALTHCHECK"].split(" CMD ")[1])[1:]
    assert any(script in line.rest for line in final_stage(image) if line.word == "COPY")
    port = words["EXPOSE"]
    assert url.startswith(f"http://127.0.0.1:{port}/health")
    assert port in image_environment(image).values()


async def test_the_health_check_accepts_only_a_200() -> None:
    async def status(url: str) -> int:
        process = await asyncio.create_subprocess_exec(sys.executable, str(DOCKER / "healthcheck.py"), url)
        return await process.wait()

    async with TgiStub() as stub:
        assert 0 == await status(f"{stub.url}/health")
        assert 1 == await status(f"{stub.url}/no-such-page")
    assert 1 == await status("http://127.0.0.1:9/health")
