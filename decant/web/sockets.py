"""A socket for a web application, opened before the application starts, so that its port is known and is ours."""

import socket

from decant.errors import DecantError


def listening(host: str, port: int, *, otherwise: str) -> socket.socket:
    """A TCP socket that listens on this address; port 0 takes a free one.

    otherwise: what the caller can do when the address is taken or is none of this machine's, for the error's text.

    Raises: DecantError.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise DecantError(f"{host}, port {port}: {error.strerror}; {otherwise}") from error
    listener.listen()
    return listener
