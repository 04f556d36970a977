"""Which authority is meant where nobody names it."""

from collections.abc import Iterable, Sequence

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.roots import root_of, service_root
from birthmark.floor.authorities import Authority, AuthorityKind, AuthorityStatus, Custody, Dimension, Scope
from birthmark.floor.clients import Role
from birthmark.pki.profiles import Profile

__all__ = ["certifier", "only_authority", "only_root"]


def only_authority(
    application: Application, *, product: str | None = None, profiles: Sequence[str] = ()
) -> Authority:
    """Return the only authority that issues these profiles now, with a scope that allows the product.

    Args:
        application: whose authorities are looked through.
        product: what is made; None where no product is.
        profiles: all of which it has to be allowed to issue.

    Raises:
        errors.NotFound: there is none, or no such profile.
        errors.MalformedRequest: there are several: one must be named.
    """
    return _only(_issuing(application, product, profiles), product, profiles)


def certifier(application: Application, role: Role) -> str:
    """Return the id of the authority that certifies clients of this role, if nobody names one.

    Where several could, it is the one below the service's own root: whom else would the service believe?

    Raises:
        errors.NotFound: there is none.
        errors.MalformedRequest: there are several: one must be named.
    """
    profiles = (role.kind,)
    found = _issuing(application, None, profiles)
    if len(found) > 1:
        root = service_root(application)
        found = [one for one in found if root_of(application, one.id) == root] or found
    return _only(found, None, profiles).id


def only_root(application: Application) -> Authority:
    """Return the only active root.

    Raises:
        errors.NotFound: there is none.
        errors.MalformedRequest: there are several: one must be named.
    """
    found = [
        authority
        for authority in application.store.scan(Authority)
        if authority.kind is AuthorityKind.ROOT
        and authority.status is AuthorityStatus.ACTIVE
        and authority.successor is None
    ]
    if not found:
        raise errors.NotFound("there is no active root authority")
    if len(found) > 1:
        raise errors.MalformedRequest(f"say with --issuer which of {_names(found)} is meant")
    return found[0]


def _issuing(application: Application, product: str | None, profiles: Sequence[str]) -> list[Authority]:
    wanted = [application.catalogue.load(name) for name in profiles]
    return [
        authority
        for authority in application.store.scan(Authority)
        if authority.kind is AuthorityKind.ISSUING
        and authority.custody is Custody.SERVICE
        and authority.status is AuthorityStatus.ACTIVE
        and authority.successor is None
        and all(_may_issue(authority, profile) for profile in wanted)
        and (product is None or _covers(authority, product))
    ]


def _may_issue(authority: Authority, profile: Profile) -> bool:
    made_for_it = not profile.issued_by or authority.profile in profile.issued_by
    return made_for_it and authority.allows(profile.name)


def _covers(authority: Authority, product: str) -> bool:
    return product in Scope.parse(authority.scope).limits.get(Dimension.PRODUCT, {product})


def _only(found: Sequence[Authority], product: str | None, profiles: Sequence[str]) -> Authority:
    if not found:
        wanted = "" if product is None else f" for {product}"
        allowed = "" if not profiles else f" that may issue {', '.join(profiles)}"
        raise errors.NotFound(f"there is no active issuing authority{wanted}{allowed}")
    if len(found) > 1:
        raise errors.MalformedRequest(f"say with --authority which of {_names(found)} is meant")
    return found[0]


def _names(found: Iterable[Authority]) -> str:
    return ", ".join(authority.id for authority in found)
