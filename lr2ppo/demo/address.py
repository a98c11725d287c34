"""Where a page's server listens, and the names by which it may be asked."""

import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass

from lr2ppo.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens at a host's first address; raises `UserError` if that is not possible."""
    try:
        if not host or not 0 <= port < 2**16:
            raise OSError("wanted a name or an address, and a port from 0 to 65535")
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
    # A name that cannot be one, such as a label of 64 letters, is a UnicodeError.
    except (OSError, ValueError) as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be used: {error}; give others, such as --port 7861"
        ) from None


def address_of(host: str, listener: socket.socket) -> str:
    """The address for a browser on this machine."""
    name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
    return f"http://{name}:{listener.getsockname()[1]}/"


@dataclass(frozen=True)
class Hosts:
    """The names by which a server may be asked: loopback names, `names`, and if `any_address` every IP address.

    A web page of another site can make its own name point here (DNS rebinding), but not a number or one of these names.
    """

    names: frozenset[str] = frozenset()
    any_address: bool = False

    @classmethod
    def of(cls, host: str, listener: socket.socket) -> "Hosts":
        """The names of a server that listens at `host`; of all the machine's if it listens at every address."""
        address = listener.getsockname()[0]
        if ipaddress.ip_address(address).is_unspecified:
            return cls(frozenset(map(plain_host, (host, socket.gethostname(), socket.getfqdn()))), any_address=True)
        return cls(frozenset(map(plain_host, (host, address))))

    def allow(self, host: str) -> bool:
        name = plain_host(host)
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost" or name in self.names
        return self.any_address or address.is_loopback or name in self.names


def plain_host(name: str) -> str:
    """Write a host's name or address in its one usual form."""
    name = name.strip("[]").lower().removesuffix(".")
    with suppress(ValueError):
        return str(ipaddress.ip_address(name))
    return name
