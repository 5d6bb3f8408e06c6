"""TLS contexts for outgoing calls: which CA certificates we trust."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

from gateway.errors import SettingsError


@functools.cache
def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return the context that checks a server's name and certificate. Cached, because making it reads files.

    Args:
        ca_file: Certificates (PEM) of the CAs to trust; None for the system's.

    Raises:
        SettingsError: The file cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"the CA file {ca_file} cannot be used: {error.strerror or type(error).__name__}"
        ) from error
