"""The key store in a PKCS#11 token: custody, and a token that comes and goes (SPEC B1, B3, B7)."""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

import pkcs11
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, Session
from pkcs11.exceptions import AttributeSensitive, KeyUnextractable

from birthmark import errors
from birthmark.adapters.custody import read_passphrase_file
from birthmark.adapters.pkcs11 import PKCS11KeyStore, custody_complaints
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.secret import SecretBytes
from tests.support.programs import missing
from tests.support.softhsm import SoftHSM, softhsm_token

LABEL = KeyLabel("ca.floor-7")
P256 = bytes.fromhex("06082a8648ce3d030107")
SIGNING = MechanismFlag.SIGN | MechanismFlag.VERIFY


@pytest.fixture
def token(tmp_path: Path) -> Iterator[SoftHSM]:
    with softhsm_token(tmp_path) as made:
        yield made


@pytest.fixture
def store(token: SoftHSM) -> Iterator[PKCS11KeyStore]:
    """A store that asks a token that was gone again at once."""
    with open_store(token) as opened:
        yield opened


def open_store(
    token: SoftHSM, *, label: str = "", timeout: float = 10.0, reopen_after: float = 0.0
) -> PKCS11KeyStore:
    return PKCS11KeyStore.open(
        token.module,
        label or token.label,
        read_passphrase_file(token.pin_file),
        timeout_seconds=timeout,
        reopen_after_seconds=reopen_after,
    )


def check(spki: bytes, signature: bytes, message: bytes) -> None:
    key = load_der_public_key(spki)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature, message, ec.ECDSA(hashes.SHA256()))


def make_pair(session: Session, label: str, **private: bool) -> tuple[pkcs11.PublicKey, pkcs11.PrivateKey]:
    """Make a key pair past our store, with private attributes of one's own choice."""
    curve = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: P256}, local=True)
    return curve.generate_keypair(
        label=label,
        store=True,
        capabilities=SIGNING,
        private_template={Attribute[name]: value for name, value in private.items()},
    )


# --- custody


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_a_private_key_cannot_leave_the_token(token: SoftHSM, algorithm: KeyAlgorithm) -> None:
    """B1: asked past our store, with the PIN: not readable, not wrappable, good for signing alone."""
    with open_store(token) as store:
        store.generate(LABEL, algorithm)
    with token.session() as session:
        (private,) = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})
        assert custody_complaints(private) == ()
        with pytest.raises(AttributeSensitive):
            private[Attribute.PRIVATE_EXPONENT if "rsa" in algorithm else Attribute.VALUE]
        wrapping = session.generate_key(
            KeyType.AES, 256, capabilities=MechanismFlag.WRAP, template={Attribute.TOKEN: False}
        )
        assert isinstance(wrapping, pkcs11.WrapMixin)
        assert isinstance(private, pkcs11.PrivateKey)
        with pytest.raises(KeyUnextractable):
            wrapping.wrap_key(private, mechanism=Mechanism.AES_KEY_WRAP_PAD)


def test_a_key_made_otherwise_is_complained_of(token: SoftHSM) -> None:
    """B1, B4: every attribute that matters, on keys the token really made so."""
    with token.session() as session:
        _, extractable = make_pair(session, "one", EXTRACTABLE=True)
        _, readable = make_pair(session, "two", SENSITIVE=False, EXTRACTABLE=True, PRIVATE=False)
        _, busy = make_pair(session, "three", DERIVE=True, DECRYPT=True, UNWRAP=True, SIGN=False)
        _, good = make_pair(session, "four", EXTRACTABLE=False)
        assert custody_complaints(extractable) == (
            "CKA_EXTRACTABLE is true",
            "CKA_NEVER_EXTRACTABLE is false",
        )
        assert custody_complaints(readable) == (
            "CKA_PRIVATE is false",
            "CKA_SENSITIVE is false",
            "CKA_ALWAYS_SENSITIVE is false",
            "CKA_EXTRACTABLE is true",
            "CKA_NEVER_EXTRACTABLE is false",
        )
        assert set(custody_complaints(busy)) >= {
            "CKA_SIGN is false",
            "CKA_DECRYPT is true",
            "CKA_UNWRAP is true",
            "CKA_DERIVE is true",
        }
        assert custody_complaints(good) == ()


def test_two_keys_of_one_label_are_used_neither(token: SoftHSM) -> None:
    with token.session() as session:
        make_pair(session, LABEL)
        make_pair(session, LABEL)
    with open_store(token) as store:
        uses: tuple[Callable[[], object], ...] = (
            lambda: store.sign(LABEL, b"m"),
            lambda: store.public_key(LABEL),
        )
        for use in uses:
            with pytest.raises(errors.IntegrityFailure, match="2 private and 2 public keys"):
                use()
        with pytest.raises(errors.IllegalTransition):
            store.generate(LABEL, KeyAlgorithm.EC_P256)
        assert store.labels() == (LABEL,)


def test_a_public_key_that_belongs_to_another_private_key_is_found_out(token: SoftHSM) -> None:
    """B1: otherwise certificates would be made whose signatures nobody can verify."""
    with token.session() as session:
        one_public, _ = make_pair(session, "one")
        other_public, other_private = make_pair(session, "other")
        other_public.destroy()
        one_public[Attribute.LABEL] = other_private[Attribute.LABEL] = LABEL
    with open_store(token) as store, pytest.raises(errors.IntegrityFailure, match="no pair"):
        store.sign(LABEL, b"m")


def test_a_key_that_may_not_sign_is_refused(token: SoftHSM) -> None:
    with token.session() as session:
        make_pair(session, LABEL, SIGN=False)
    with open_store(token) as store, pytest.raises(errors.IntegrityFailure, match="CKA_SIGN is false"):
        store.sign(LABEL, b"m")


def test_keys_of_others_in_the_token_are_let_be(token: SoftHSM) -> None:
    with token.session() as session:
        make_pair(session, "Somebody Else's")
    with open_store(token) as store:
        store.generate(LABEL, KeyAlgorithm.EC_P256)
        assert store.labels() == (LABEL,)


@pytest.mark.parametrize(
    ("offered", "missing"),
    [("CKM_EC_EDWARDS_KEY_PAIR_GEN", "CKM_EDDSA"), ("CKM_EDDSA", "CKM_EC_EDWARDS_KEY_PAIR_GEN")],
)
def test_a_missing_mechanism_is_named(tmp_path: Path, offered: str, missing: str) -> None:
    mechanisms = f"CKM_ECDSA,CKM_EC_KEY_PAIR_GEN,{offered}"
    with softhsm_token(tmp_path, mechanisms=mechanisms) as token, open_store(token) as store:
        with pytest.raises(errors.PolicyRefused, match=f"has no {missing}, which ed25519 needs") as refusal:
            store.generate(LABEL, KeyAlgorithm.ED25519)
        assert refusal.value.rule == "token-mechanism"
        assert store.labels() == ()
        store.generate(LABEL, KeyAlgorithm.EC_P256)


# --- opening


def test_a_wrong_pin_is_refused_without_showing_it(token: SoftHSM) -> None:
    """B7."""
    with pytest.raises(errors.NotPermitted, match="refuses the PIN") as refusal:
        PKCS11KeyStore.open(token.module, token.label, SecretBytes(b"wrong-pin-1234"))
    assert "1234" not in str(refusal.value) + repr(refusal.value.__cause__)
    with open_store(token) as store:
        assert store.labels() == ()
        assert "4711" not in repr(store)


def test_a_pin_that_is_no_text_is_refused_without_showing_it(token: SoftHSM) -> None:
    with pytest.raises(errors.MalformedRequest, match="not UTF-8") as refusal:
        PKCS11KeyStore.open(token.module, token.label, SecretBytes(b"\xff1234"))
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


def test_what_cannot_be_opened_is_named(token: SoftHSM, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match=r"missing\.so"):
        PKCS11KeyStore.open(tmp_path / "missing.so", token.label, token.pin)
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(errors.Unavailable, match=r"text\.so"):
        PKCS11KeyStore.open(tmp_path / "text.so", token.label, token.pin)
    with pytest.raises(errors.Unavailable, match="'nowhere' cannot be reached: token not present"):
        PKCS11KeyStore.open(token.module, "nowhere", token.pin)
    token.initialise(token.label)
    with pytest.raises(errors.IntegrityFailure, match="2 tokens are labelled"):
        open_store(token)


def test_a_process_opens_a_token_once_and_a_closed_store_is_closed(token: SoftHSM) -> None:
    """Who logs out of a token logs out every session of the process."""
    with open_store(token) as store:
        with pytest.raises(RuntimeError, match="open in this process already"):
            open_store(token)
        assert store.labels() == ()
    store.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.labels()


def test_two_tokens_of_one_library_serve_side_by_side(token: SoftHSM) -> None:
    """B3, B5: the library is shared; when one token's session is renewed, the other's is, too."""
    token.initialise("mirror")
    with open_store(token) as store, open_store(token, label="mirror") as mirror:
        here = store.generate(LABEL, KeyAlgorithm.EC_P256)
        there = mirror.generate(LABEL, KeyAlgorithm.EC_P256)
        assert here != there
        for _ in range(3):
            check(here, store.sign(LABEL, b"m"), b"m")
            check(there, mirror.sign(LABEL, b"m"), b"m")
            close_all_sessions(token)
        with token.gone(), pytest.raises(errors.Unavailable):
            mirror.sign(LABEL, b"m")
        check(there, mirror.sign(LABEL, b"m"), b"m")
        check(here, store.sign(LABEL, b"m"), b"m")


# --- a token that comes and goes


def close_all_sessions(token: SoftHSM) -> None:
    """C_CloseAllSessions behind the store's back, on every slot; its worker is idle meanwhile."""
    library = ctypes.CDLL(str(token.module.resolve()))
    for slot in pkcs11.lib(str(token.module.resolve())).get_slots(token_present=True):
        assert library.C_CloseAllSessions(ctypes.c_ulong(slot.slot_id)) == 0


def restart_library(token: SoftHSM) -> None:
    """C_Finalize and C_Initialize behind the store's back: all handles are void, nobody is logged in."""
    pkcs11.lib(str(token.module.resolve())).reinitialize()


def finalise_library(token: SoftHSM) -> None:
    """C_Finalize behind the store's back: every call says CKR_CRYPTOKI_NOT_INITIALIZED."""
    library = ctypes.CDLL(str(token.module.resolve()))
    assert library.C_Finalize(None) == 0


@pytest.mark.parametrize("lose", [close_all_sessions, restart_library, finalise_library])
def test_a_lost_session_is_opened_again_without_anybody_noticing(
    store: PKCS11KeyStore, token: SoftHSM, lose: Callable[[SoftHSM], None]
) -> None:
    """B3."""
    spki = store.generate(LABEL, KeyAlgorithm.EC_P256)
    for use in (
        lambda: check(spki, store.sign(LABEL, b"m"), b"m"),
        store.labels,
        lambda: store.generate(KeyLabel("another"), KeyAlgorithm.EC_P256),
    ):
        lose(token)
        use()
    assert store.labels() == ("another", LABEL)


def test_while_the_token_is_gone_all_say_so_and_then_all_goes_on(
    store: PKCS11KeyStore, token: SoftHSM
) -> None:
    """B3: held with one clear reason; resumed without a restart.  Nothing is "not found" meanwhile."""
    spki = store.generate(LABEL, KeyAlgorithm.EC_P256)
    unknown = KeyLabel("unknown")
    for _ in range(2):
        reasons = set()
        with token.gone():
            for use in (
                lambda: store.sign(LABEL, b"m"),
                store.labels,
                lambda: store.public_key(unknown),
                lambda: store.generate(unknown, KeyAlgorithm.EC_P256),
            ):
                with pytest.raises(errors.Unavailable, match="'floor' cannot be reached") as refusal:
                    use()
                reasons.add(str(refusal.value))
            assert store.public_key(LABEL) == spki
        assert len(reasons) == 1
        check(spki, store.sign(LABEL, b"m"), b"m")
        assert store.labels() == (LABEL,)
        with pytest.raises(errors.NotFound):
            store.public_key(unknown)


def test_a_key_unknown_to_the_session_is_not_called_missing_while_the_token_is_gone(token: SoftHSM) -> None:
    """SoftHSM finds nothing in a token that is gone, and does not say so; the first question counts, too."""
    with open_store(token) as store:
        store.generate(LABEL, KeyAlgorithm.EC_P256)
    firsts: tuple[Callable[[PKCS11KeyStore], object], ...] = (
        lambda fresh: fresh.sign(LABEL, b"m"),
        lambda fresh: fresh.labels(),
        lambda fresh: fresh.generate(LABEL, KeyAlgorithm.EC_P256),
    )
    for first in firsts:
        with open_store(token) as fresh, token.gone(), pytest.raises(errors.Unavailable):
            first(fresh)


def test_a_dead_token_is_left_alone_for_a_while(token: SoftHSM) -> None:
    """B3: it must not stall each request; seen here by its not being asked though it is back."""
    with open_store(token, reopen_after=3600.0) as store:
        store.generate(LABEL, KeyAlgorithm.EC_P256)
        with token.gone(), pytest.raises(errors.Unavailable) as first:
            store.sign(LABEL, b"m")
        with pytest.raises(errors.Unavailable) as second:
            store.sign(LABEL, b"m")
        assert str(first.value) == str(second.value)


def test_another_key_under_a_known_label_stops_the_line(store: PKCS11KeyStore, token: SoftHSM) -> None:
    """B3: a token that comes back with other keys is not the token that went."""
    store.generate(LABEL, KeyAlgorithm.EC_P256)
    store.close()
    with open_store(token) as later:
        later.public_key(LABEL)
        program = [sys.executable, "-c", REPLACE_KEY, str(token.module.resolve()), str(token.pin_file)]
        subprocess.run(program, check=True, timeout=60)
        restart_library(token)
        with pytest.raises(errors.IntegrityFailure, match="another one than before"):
            later.sign(LABEL, b"m")


REPLACE_KEY = """
import pathlib, sys
import pkcs11
from pkcs11 import Attribute, KeyType
session = pkcs11.lib(sys.argv[1]).get_token(token_label="floor").open(
    rw=True, user_pin=pathlib.Path(sys.argv[2]).read_text().strip()
)
for key in list(session.get_objects({Attribute.LABEL: "ca.floor-7"})):
    key.destroy()
curve = session.create_domain_parameters(
    KeyType.EC, {Attribute.EC_PARAMS: bytes.fromhex("06082a8648ce3d030107")}, local=True
)
curve.generate_keypair(label="ca.floor-7", store=True)
"""

CHANGE_PIN = """
import sys
import pkcs11
session = pkcs11.lib(sys.argv[1]).get_token(token_label="floor").open(rw=True, user_pin=sys.argv[2])
session.set_pin(sys.argv[2], sys.argv[3])
"""


def test_a_refused_pin_is_not_sent_again(store: PKCS11KeyStore, token: SoftHSM) -> None:
    """Tokens lock after a few wrong PINs.  That it was not sent shows when it would be right again."""
    store.generate(LABEL, KeyAlgorithm.EC_P256)
    module, pin = str(token.module.resolve()), token.pin.reveal().decode()
    subprocess.run([sys.executable, "-c", CHANGE_PIN, module, pin, "98765"], check=True, timeout=60)
    restart_library(token)
    with pytest.raises(errors.NotPermitted, match="not tried again"):
        store.sign(LABEL, b"m")
    subprocess.run([sys.executable, "-c", CHANGE_PIN, module, "98765", pin], check=True, timeout=60)
    with pytest.raises(errors.NotPermitted, match="not tried again"):
        store.sign(LABEL, b"m")
    store.close()
    with open_store(token) as again:
        again.sign(LABEL, b"m")


# --- a token that hangs


HOLD_LOCKS = """
import fcntl, pathlib, sys
files = [path.open("r+b") for path in pathlib.Path(sys.argv[1]).rglob("*") if path.is_file()]
for file in files:
    fcntl.lockf(file, fcntl.LOCK_EX)
print(len(files), flush=True)
sys.stdin.read()
"""


@contextmanager
def hanging(token: SoftHSM) -> Iterator[None]:
    """Lock SoftHSM's files from another process: it waits for them in fcntl(F_SETLKW), for ever."""
    command = [sys.executable, "-c", HOLD_LOCKS, str(token.tokens)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert int(holder.stdout.readline()) > 0
        yield
        holder.communicate()


def test_a_token_that_hangs_is_unavailable_and_comes_back(token: SoftHSM) -> None:
    """B3: nobody waits longer than the limit, and who asks next does not wait at all."""
    with open_store(token, timeout=0.5) as store:
        spki = store.generate(LABEL, KeyAlgorithm.EC_P256)
        with hanging(token):
            with pytest.raises(errors.Unavailable, match=r"'floor' did not answer within 0\.5 s"):
                store.labels()
            begun = monotonic()
            for _ in range(100):
                with pytest.raises(errors.Unavailable, match=r"did not answer within 0\.5 s"):
                    store.sign(LABEL, b"m")
            assert monotonic() - begun < 5, "each of the hundred waited"
        signature = None
        until = monotonic() + 30
        while signature is None and monotonic() < until:
            with suppress(errors.Unavailable):
                signature = store.sign(LABEL, b"m")
        assert signature is not None
        check(spki, signature, b"m")


# --- threads and processes


def run(program: str, token: SoftHSM, *, module: Path | None = None) -> str:
    """Run a program in a process of its own, for it may crash or hang where we are wrong."""
    root = Path(__file__).parents[2]
    seen = {"PKCS11SPY": str(token.module), "PKCS11SPY_OUTPUT": str(token.tokens.parent / "calls")}
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            PREAMBLE + program,
            str(module or token.module),
            str(token.pin_file),
        ],
        env=os.environ | seen | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


PREAMBLE = """
import os, sys, threading
from pathlib import Path
from birthmark.adapters.custody import read_passphrase_file
from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from tests.adapters.test_pkcs11 import check

LABEL = KeyLabel("ca.floor-7")

def open_store(label="floor"):
    return PKCS11KeyStore.open(Path(sys.argv[1]), label, read_passphrase_file(Path(sys.argv[2])))
"""


def test_sixteen_threads_on_two_tokens_neither_hang_nor_crash(token: SoftHSM) -> None:
    """The defect this store is built around: python-pkcs11 in two threads corrupts the library."""
    token.initialise("mirror")
    program = """
stores = [open_store("floor"), open_store("mirror")]
keys = [(store, store.generate(LABEL, KeyAlgorithm.EC_P256)) for store in stores]
right = []
def work(number):
    for turn in range(100):
        store, spki = keys[(number + turn) % 2]
        message = f"{number} {turn}".encode()
        if turn % 25 == 0:
            store.generate(KeyLabel(f"k{number}.{turn}"), KeyAlgorithm.EC_P256)
        check(spki, store.sign(LABEL, message), message)
        right.append(number)
threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(right), *(len(store.labels()) for store in stores))
"""
    assert run(program, token).split() == ["1600", "33", "33"]


def test_a_forked_child_must_open_its_own_store(token: SoftHSM) -> None:
    program = """
store = open_store()
spki = store.generate(LABEL, KeyAlgorithm.EC_P256)
child = os.fork()
if child == 0:
    status = 1
    try:
        store.sign(LABEL, b"m")
    except RuntimeError as refusal:
        assert "forked" in str(refusal)
        store.close()
        own = open_store()
        check(spki, own.sign(LABEL, b"child"), b"child")
        own.close()
        status = 0
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
check(spki, store.sign(LABEL, b"parent"), b"parent")
print("both")
"""
    # Python 3.12 warns of forking with threads, which is what this is about.
    assert run("import warnings; warnings.simplefilter('ignore')\n" + program, token) == "both\n"


def test_ending_the_process_amid_signing_does_not_crash(token: SoftHSM) -> None:
    """Nobody has to call close()."""
    assert run(SIGN_UNTIL_THE_END, token) == "end\n"


def test_a_process_that_ends_leaves_no_session_behind(token: SoftHSM) -> None:
    """B3: what the library was asked, as OpenSC's pkcs11-spy saw it."""
    folder = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu"
    spy = next(
        (path for path in (folder / "pkcs11-spy.so", folder / "pkcs11/pkcs11-spy.so") if path.exists()), None
    )
    if spy is None:
        missing("pkcs11-spy is not installed (Debian package opensc)")
    run(SIGN_UNTIL_THE_END, token, module=spy)
    calls = re.findall(r"^\d+: (C_\w+)", (token.tokens.parent / "calls").read_text(), re.MULTILINE)
    assert calls.count("C_OpenSession") == calls.count("C_Login") == calls.count("C_Finalize") == 1
    assert calls[-1] == "C_Finalize"


SIGN_UNTIL_THE_END = """
store = open_store()
store.generate(LABEL, KeyAlgorithm.EC_P256)
begun = threading.Barrier(5)
def work():
    begun.wait()
    while True:
        store.sign(LABEL, b"m")
for _ in range(4): threading.Thread(target=work, daemon=True).start()
begun.wait()
for _ in range(20): store.sign(LABEL, b"m")
print("end")
"""
