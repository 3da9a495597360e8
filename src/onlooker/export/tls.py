"""TLS of the exporters' connections."""

from __future__ import annotations

import ssl

from onlooker.errors import ConfigError
from onlooker.export.endpoint import Tls


def client_context(tls: Tls) -> ssl.SSLContext:
    """The TLS settings as a context.

    Raises:
        ConfigError: A file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_file or None)
        if tls.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if tls.certificate_file:
            context.load_cert_chain(tls.certificate_file, tls.key_file or None)
    except (OSError, ssl.SSLError) as err:
        files = ", ".join(f for f in (tls.ca_file, tls.certificate_file, tls.key_file) if f)
        raise ConfigError(f"cannot use the TLS files of the exporter ({files}): {err}") from err
    return context
