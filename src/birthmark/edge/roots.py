"""Which roots a credential is to believe.

A realm may have several roots: DLMS/COSEM and Matter want their own.  Whom clients and the service believe
about each other is the root above the authority that certified the service; whom they believe about devices
is every root above an authority that issues here.  Nothing asks for "the root" of a realm.
"""

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.floor.authorities import Authority, AuthorityKind, AuthorityStatus, Custody
from birthmark.floor.clients import Credential, Role
from birthmark.ports import carry
from birthmark.services.runs import authority_chain

__all__ = ["device_roots", "root_of", "service_root"]


def root_of(application: Application, authority: str) -> Authority:
    """Return the root above an authority.

    Raises:
        errors.NotFound: there is no such authority.
    """
    chain: list[Authority] = carry(application.store, authority_chain(authority))
    return chain[-1]


def service_root(application: Application) -> Authority:
    """Return the root above the authority that certified the service, for the certificate that ends last.

    Raises:
        errors.NotFound: the service has no certificate.
    """
    held = [
        credential
        for credential in application.store.scan(Credential)
        if credential.client.partition(":")[0] == Role.SERVER
    ]
    if not held:
        raise errors.NotFound("the service has no certificate")
    return root_of(application, max(held, key=lambda one: one.not_after).authority)


def device_roots(application: Application) -> list[Authority]:
    """Return the roots above the authorities that issue here, sorted by their ids."""
    authorities = {authority.id: authority for authority in application.store.scan(Authority)}
    roots: dict[str, Authority] = {}
    for authority in authorities.values():
        revoked = authority.status is AuthorityStatus.REVOKED
        if authority.kind is AuthorityKind.ISSUING and authority.custody is Custody.SERVICE and not revoked:
            root = root_of(application, authority.id)
            roots[root.id] = root
    return [roots[name] for name in sorted(roots)]
