"""RSA moduli with the mark of a broken generator: refused before anybody certifies them.

Three kinds, each of which was found in devices in the field, and whose private key anybody can compute: a
modulus with a small factor, one whose two primes are close together (Fermat's method; CVE-2022-26320), and
one made by the fast generator of certain secure elements (ROCA, CVE-2017-15361: Nemec and others, "The Return
of Coppersmith's Attack", CCS 2017, section 2.3: every prime is a power of 65537 modulo many small primes, and
so is the modulus).  A modulus that passes is not thereby good.
"""

from math import gcd, isqrt, prod

__all__ = ["weakness"]

_SMALL_PRIMES = tuple(n for n in range(3, 2048, 2) if all(n % d for d in range(3, isqrt(n) + 1, 2)))
_SMALL_PRODUCT = prod(_SMALL_PRIMES)
_FERMAT_ROUNDS = 100


def _powers(prime: int) -> frozenset[int]:
    """Return the powers of 65537 modulo a prime."""
    found, power = set(), 1
    while power not in found:
        found.add(power)
        power = power * 65537 % prime
    return frozenset(found)


_FINGERPRINT = tuple(
    (prime, powers) for prime in _SMALL_PRIMES if prime <= 167 and len(powers := _powers(prime)) < prime - 1
)
"""The primes of the fingerprint that tell anything, with the residues that a modulus of the generator has."""


def weakness(modulus: int) -> str | None:
    """Return what is wrong with an RSA modulus, or None."""
    if all(modulus % prime in powers for prime, powers in _FINGERPRINT):
        return "the modulus is of a generator whose keys can be computed (ROCA, CVE-2017-15361)"
    if modulus % 2 == 0 or gcd(modulus, _SMALL_PRODUCT) != 1:
        return "the modulus has a small factor"
    root = isqrt(modulus)
    for candidate in range(root + 1, root + 1 + _FERMAT_ROUNDS):
        rest = candidate * candidate - modulus
        if isqrt(rest) ** 2 == rest:
            return "the two primes of the modulus are close together (CVE-2022-26320)"
    return "the modulus is a square" if root * root == modulus else None
