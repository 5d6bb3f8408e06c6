"""Load one more adapter on a replica that runs under serve.sh: DISTILL_PROMOTION__LOAD_COMMAND of TGI and llama.cpp.

    python load.py URL ADAPTER [--folder /adapters] [--keep 4] [--timeout-s 840]

It writes the list of wanted adapters, waits until the server was restarted with them, and until it is healthy. The
newest ``--keep`` adapters stay: the serving one and those that a rollback may return to. A server that ends, or is not
healthy in time, gets the adapters back that it had before, and the command fails: the night ends without a promotion,
and the fleet keeps serving.
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
    """Return 0 once the replica serves the adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the replica's base URL")
    parser.add_argument("adapter", help="name of the adapter")
    parser.add_argument("--folder", type=Path, default=Path("/adapters"), help="volume shared with the replica")
    parser.add_argument("--keep", type=int, default=4, help="most adapters that a replica serves at once")
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
        if served == names and _is_healthy(asked.url):
            return 0
        if served == [*names, "ended"]:
            break
        time.sleep(_POLL_S)
    _write(wanted, before)
    sys.stderr.write(f"{replica} was not healthy with {asked.adapter}; it gets its adapters from before back\n")
    return 1


def _names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def _write(path: Path, names: list[str]) -> None:
    """Replace the file in one step: serve.sh may read it at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    os.replace(draft, path)


def _is_healthy(url: str) -> bool:
    base = url.rstrip("/").removesuffix("/v1")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{base}/health", timeout=_ANSWER_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
