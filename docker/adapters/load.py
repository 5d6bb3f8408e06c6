"""Have a replica that runs under serve.sh serve one more adapter: DISTILL_PROMOTION__LOAD_COMMAND of TGI and llama.cpp.

    python load.py URL ADAPTER [--folder /adapters] [--keep 4] [--timeout-s 840]

It says what is wanted, waits until the server has been started with it, and until that server is well. The newest
``--keep`` adapters stay: what serves, what came before it, and what a rollback may go back to. A server that ends, or
does not become well in time, gets the adapters that it had before, and the command fails: the night ends without a
promotion, and the fleet serves on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

_POLL_S = 0.5
_ANSWER_S = 5.0


def main() -> int:
    """Run the command; 0 once the replica serves the adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the replica's base URL")
    parser.add_argument("adapter", help="name of the adapter")
    parser.add_argument("--folder", type=Path, default=Path("/adapters"), help="volume shared with the replica")
    parser.add_argument("--keep", type=int, default=4, help="adapters that a replica serves at once, at most")
    parser.add_argument("--timeout-s", type=float, default=840.0, help="longest wait for the replica")
    asked = parser.parse_args()
    replica = (urlsplit(asked.url).hostname or "").partition(".")[0]
    wanted, serving = asked.folder / "wanted" / replica, asked.folder / "serving" / replica
    before = _names(wanted)
    names = [*(name for name in before if name != asked.adapter), asked.adapter][-asked.keep :]
    deadline = time.monotonic() + asked.timeout_s
    _write(wanted, names)
    while time.monotonic() < deadline:
        served = _names(serving)
        if served == names and _is_well(asked.url):
            return 0
        if served == [*names, "ended"]:
            break
        time.sleep(_POLL_S)
    _write(wanted, before)
    sys.stderr.write(f"{replica} did not become well with {asked.adapter}; it gets back what it had\n")
    return 1


def _names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def _write(path: Path, names: list[str]) -> None:
    """Replace the file at once: the other side reads it at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    os.replace(draft, path)


def _is_well(url: str) -> bool:
    base = url.rstrip("/").removesuffix("/v1")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{base}/health", timeout=_ANSWER_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
