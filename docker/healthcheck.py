"""A container's HEALTHCHECK: whether a URL of this container answers with 200. The slim images have no curl."""

import http.client
import sys
from urllib.parse import urlsplit


def main(url: str) -> int:
    """0 where it does, as HEALTHCHECK wants it."""
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
