"""Under which name or address, of those that its certificate has, the service is found."""

from pathlib import Path

from cryptography import x509

from birthmark import errors
from birthmark.pki.certificates import from_pem
from birthmark.pki.library import UNREADABLE
from birthmark.settings import Settings

__all__ = ["device_plane_url", "known_as", "plane_url", "public_host", "station_plane_url"]


def known_as(certificate_file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the DNS names and the IP addresses of the server's present certificate.

    Raises:
        errors.NotFound: there is no certificate, or one without names.
    """
    try:
        leaf = x509.load_der_x509_certificate(from_pem(certificate_file.read_text(encoding="ascii"))[0])
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, errors.MalformedRequest, x509.ExtensionNotFound, *UNREADABLE) as cause:
        raise errors.NotFound(f"{certificate_file} is no server certificate") from cause
    addresses = names.get_values_for_type(x509.IPAddress)
    return tuple(names.get_values_for_type(x509.DNSName)), tuple(str(address) for address in addresses)


def public_host(host: str, dns_names: tuple[str, ...], ip_addresses: tuple[str, ...]) -> str:
    """Return under which of the server's names clients find it: where it listens, or else the first."""
    known = (*dns_names, *ip_addresses)
    return host if host in known else known[0]


def plane_url(host: str, port: int) -> str:
    """Return the address of a plane."""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def station_plane_url(settings: Settings) -> str:
    """Return where clients find the station plane.

    Raises:
        errors.NotFound: there is no such plane, or its certificate has no names.
    """
    plane = settings.station_plane
    return plane_url(public_host(plane.host, *known_as(plane.certificate_file)), plane.port)


def device_plane_url(settings: Settings) -> str:
    """Return where devices find the device plane, which has the station plane's certificate.

    Raises:
        errors.NotFound: there is no such plane, or its certificate has no names.
    """
    names = known_as(settings.station_plane.certificate_file)
    return plane_url(public_host(settings.device_plane.host, *names), settings.device_plane.port)
