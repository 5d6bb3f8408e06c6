"""HEALTHCHECK of a container: ask a URL of the container for a 200. The slim images have no curl."""

import http.client
import sys
from urllib.parse import urlsplit


def main(url: str) -> int:
    """Return 0 if the URL answers with 200, else 1."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=4)
    try:
        connection.request("GET", parts.path)
        return int(connection.getresponse().status != 200)
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
