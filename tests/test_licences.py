"""Dependencies come under licences that are compatible with Apache-2.0: permissive, or MPL-2.0 by file."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

ROOT = "ratchet"
EXTRAS = ("reward", "embedded", "distill", "dev")
ACCEPTED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "ZPL-2.1", "Zlib",
}  # fmt: skip
# Older names of licences in SPDX's words.
IN_SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# Checked by a person: its classifiers name two licences, its licence file is MIT's and GPL's, to choose from.
KNOWN = {"forbiddenfruit": "MIT"}
# NVIDIA's libraries come with torch's CUDA build: not redistributed here, and absent from a CPU's environment.
NOT_OURS = re.compile(r"^(nvidia-|cuda-|triton$)")


def needed() -> dict[str, Distribution]:
    """Return everything that the extras install, as far as it is installed, by normalised name."""
    found: dict[str, Distribution] = {}
    waiting = [(ROOT, frozenset(EXTRAS))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        if name != ROOT:
            found[name] = package
        for text in package.requires or []:
            requirement = Requirement(text)
            wanted = [{"extra": extra} for extra in extras or {""}]
            if requirement.marker is None or any(requirement.marker.evaluate(environment) for environment in wanted):
                waiting.append((re.sub(r"[-_.]+", "-", requirement.name).lower(), frozenset(requirement.extras)))
    return found


def licences(package: Distribution) -> list[str]:
    """Return the licences of a package, alternatives and sums alike, by SPDX names; empty if none is declared."""
    metadata = package.metadata
    (declared,) = metadata.get_all("License-Expression") or [None]
    if declared is None:
        named = [line.rpartition(":: ")[2] for line in metadata.get_all("Classifier") or [] if "License ::" in line]
        named = [name for name in named if name != "OSI Approved"]
        declared = (
            " AND ".join(IN_SPDX.get(name, name) for name in named)
            or "".join(metadata.get_all("License") or []).strip()
        )
    parts = re.split(r"\s+(?:AND|OR)\s+", re.sub(r"[()](?!MPL)", "", declared).strip()) if declared else []
    return [IN_SPDX.get(part, part) for part in parts]


def test_every_dependency_has_a_licence_that_ours_can_live_with() -> None:
    packages = {name: package for name, package in needed().items() if not NOT_OURS.match(name)}
    assert len(packages) > 50  # the walk has found them
    declared = {name: [KNOWN[name]] if name in KNOWN else licences(package) for name, package in packages.items()}
    assert {} == {name: names for name, names in declared.items() if not names or not ACCEPTED.issuperset(names)}
