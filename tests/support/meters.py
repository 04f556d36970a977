"""The authorities of meters as DLMS/COSEM has them: a root and a sub-CA of their own, in a ceremony file."""

__all__ = ["authorities_of_meters"]

_FILE = """\
ceremony: dlms-1
realm: "{realm}"
environment: test
purpose: "authorities of meters"
required: 1
custodians:
  - id: "anna"
    role: "operator"
    public-key: |
      {public_key}
steps:
  - generate-key: dlms-root
    store: offline dlms
    purpose: root-ca
    kind: {kind}
  - certificate: dlms-root
    kind: root
    profile: dlms-root
    key: dlms-root
    issuer: self
    subject:
      organization: "{organization}"
      authority: "{organization} Meters Root"
    licence:
      owner: "quality"
  - generate-key: dlms-1
    store: service
    purpose: issuing-ca
    kind: {kind}
  - certificate: dlms-1
    kind: issuing
    profile: dlms-ca
    key: dlms-1
    issuer: dlms-root
    subject:
      organization: "{organization}"
      authority: "{organization} Meters 1"
    licence:
      owner: "quality"
      scope: "product=meter"
      profiles: [{profiles}]
      ends: 2040-01-01T00:00:00Z
"""


def authorities_of_meters(realm: str, organization: str, public_key: str, *, kind: str = "ec-p256") -> str:
    """Return the file of a ceremony that anna attends alone; the offline store is called ``dlms``.

    Args:
        realm: whose authorities they become.
        organization: of their names.
        public_key: anna's (PEM).
        kind: of the authorities' keys; with ``ec-p384`` they certify suite 2, too.
    """
    indented = public_key.strip().replace("\n", "\n      ")
    suites = (1, 2) if kind == "ec-p384" else (1,)
    profiles = [f'"dlms-{what}-{suite}"' for suite in suites for what in ("signature", "agreement", "tls")]
    return _FILE.format(
        realm=realm,
        organization=organization,
        public_key=indented,
        kind=kind,
        profiles=", ".join(profiles),
    )
