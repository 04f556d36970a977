"""What a CMP client can ask besides certificates: general messages (RFC 9483 section 4.3).

Authorities, a newer root, what requests should look like, and CRLs: always of one run, which says authority,
profile and partition.  Everything is public, or says no more than a certificate of the run does.
"""

from collections.abc import Awaitable, Callable

from birthmark import errors
from birthmark.edge.http.deviceplane import DevicePlaneApp
from birthmark.floor.locations import crl_path
from birthmark.pki import cmp_bodies, cmp_requests, cmp_template
from birthmark.pki.cmp import InfoTypeAndValue
from birthmark.pki.cmp_der import NULL
from birthmark.pki.crl_reading import read_crl
from birthmark.services.acts import Caller
from birthmark.services.runs import RunContext, values_known

__all__ = ["Information"]

LARGEST_CRL = 1_048_576
"""Octets of a CRL that goes into a message; larger ones are fetched from where certificates say."""
_WITHOUT_VALUE = frozenset({cmp_bodies.CA_CERTS, cmp_bodies.CERT_REQ_TEMPLATE, cmp_bodies.CURRENT_CRL})

_Told = Callable[[InfoTypeAndValue, Caller, RunContext], Awaitable[InfoTypeAndValue]]


class Information:
    """Answers what is asked."""

    def __init__(self, plane: DevicePlaneApp) -> None:
        """Answer from this plane's record and publication."""
        self._plane = plane
        self._told: dict[bytes, _Told] = {
            cmp_bodies.CA_CERTS: self._ca_certs,
            cmp_bodies.ROOT_CA_CERT: self._root_update,
            cmp_bodies.CERT_REQ_TEMPLATE: self._template,
            cmp_bodies.CRL_STATUS_LIST: self._crls,
            cmp_bodies.CURRENT_CRL: self._current_crl,
        }

    async def about(self, info: InfoTypeAndValue, caller: Caller, context: RunContext) -> InfoTypeAndValue:
        """Return the answer to one piece of a genm.

        Args:
            info: what is asked.
            caller: who asks.
            context: of the run that it is about.

        Raises:
            errors.PolicyRefused: nothing is told about that, or there is nothing (rule
                ``information-available``).
            errors.MalformedRequest: it has a value that does not belong there.
            errors.Unavailable: what is published cannot be read now.
        """
        told = self._told.get(info.info_type)
        if told is None:
            raise errors.PolicyRefused(
                "information-available", f"nothing is told about {info.info_type.hex()[:80]}"
            )
        # OpenSSL has a NULL where there should be nothing.
        if info.info_type in _WITHOUT_VALUE and info.value not in {None, NULL}:
            raise errors.MalformedRequest("the question has a value, and there should be none")
        return await told(info, caller, context)

    async def _ca_certs(
        self, _info: InfoTypeAndValue, _caller: Caller, context: RunContext
    ) -> InfoTypeAndValue:
        return cmp_bodies.ca_certs(context.chain)

    async def _root_update(
        self, _info: InfoTypeAndValue, _caller: Caller, _context: RunContext
    ) -> InfoTypeAndValue:
        return cmp_bodies.root_ca_key_update(None)  # no root here is ever replaced by another

    async def _template(
        self, _info: InfoTypeAndValue, caller: Caller, context: RunContext
    ) -> InfoTypeAndValue:
        profile = context.template.profile
        wanted = cmp_template.wanted(profile, values_known(profile, context.licence, caller.client))
        return cmp_bodies.cert_req_template(wanted, profile.subject_key_algorithms)

    async def _current_crl(
        self, _info: InfoTypeAndValue, _caller: Caller, context: RunContext
    ) -> InfoTypeAndValue:
        found = await self._published(context)
        if found is None:
            raise errors.PolicyRefused("information-available", "no CRL of this run is published here")
        return cmp_bodies.current_crl(found)

    async def _crls(self, info: InfoTypeAndValue, _caller: Caller, context: RunContext) -> InfoTypeAndValue:
        """Answer a CRL if it is asked for and new to the client (RFC 9483 section 4.3.4)."""
        asked = cmp_requests.read_crl_statuses(info.value or b"")
        found = await self._published(context)
        if found is None:
            return cmp_bodies.crls([])
        crl, location = read_crl(found), context.licence.variables.get("crl_url")
        return cmp_bodies.crls([found] if any(one.wants(crl, location) for one in asked) else [])

    async def _published(self, context: RunContext) -> bytes | None:
        licence = context.licence
        path = crl_path(licence.authority, licence.partition)
        found: bytes | None = await self._plane.border.read(self._read, path)
        return found

    def _read(self, path: str) -> bytes | None:
        publication = self._plane.application.publication
        if publication is None:
            return None
        with publication.read(path) as octets:
            if octets is not None and len(octets) > LARGEST_CRL:
                raise errors.PolicyRefused(
                    "information-available",
                    f"the CRL has {len(octets)} octets: fetch it from where certificates say",
                )
            return None if octets is None else bytes(octets)
