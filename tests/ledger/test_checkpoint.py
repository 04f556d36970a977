from base64 import b64decode, b64encode
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.ledger import checkpoint
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, open_note, sign_note
from tests.ledger.sample import KEY, ORIGIN, PUBLIC, VKEY, signed

ROOT = sha256(b"a root").digest()
NOTE = signed(Checkpoint(ORIGIN, 17, ROOT))
BODY, SIGNATURE = NOTE.split("\n\n")

# C2SP signed-note, "Verifier keys", Example: the key, the text and its signature line.
EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_TEXT = b"This is an example message.\n"
EXAMPLE_SIGNATURE = (
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
)


def test_the_standards_example_key_verifies_the_standards_example_note() -> None:
    """C2SP signed-note, Verifier keys, Example."""
    key = VerifierKey.parse(EXAMPLE_KEY)
    assert (key.name, str(key)) == ("example.com/foo", EXAMPLE_KEY)
    signature = b64decode(EXAMPLE_SIGNATURE)
    assert signature[:4] == key.key_id
    key.verify(EXAMPLE_TEXT, signature[4:])
    with pytest.raises(errors.IntegrityFailure):
        key.verify(EXAMPLE_TEXT + b"\n", signature[4:])


def test_a_checkpoint_is_three_lines_and_a_signature_line() -> None:
    """E3; C2SP tlog-checkpoint, Note text."""
    assert f"{BODY}\n" == f"{ORIGIN}\n17\n{b64encode(ROOT).decode()}\n"
    key_id = sha256(ORIGIN.encode() + b"\n\x01" + PUBLIC).digest()[:4]
    line = b64encode(key_id + KEY.sign(f"{BODY}\n".encode())).decode()
    assert f"\u2014 {ORIGIN} {line}\n" == SIGNATURE
    assert open_note(NOTE, VKEY) == Checkpoint(ORIGIN, 17, ROOT)
    assert checkpoint.vkey(ORIGIN, PUBLIC) == str(VKEY)
    assert VerifierKey.parse(f"{VKEY}\n") == VKEY


def test_an_empty_log_has_a_checkpoint() -> None:
    empty = Checkpoint(ORIGIN, 0, sha256(b"").digest())
    assert empty.body().split(b"\n")[1] == b"0"
    assert open_note(signed(empty), VKEY) == empty


def test_extension_lines_are_kept() -> None:
    extended = Checkpoint(ORIGIN, 17, ROOT, ("an extension", "another"))
    assert open_note(signed(extended), VKEY) == extended


def test_signatures_of_unknown_keys_are_ignored_and_those_of_the_log_are_all_checked() -> None:
    """C2SP signed-note, Signatures."""
    witness = f"— witness.example {b64encode(b'1234' + bytes(72)).decode()}\n"
    same_name = f"— {ORIGIN} {b64encode(b'1234' + bytes(64)).decode()}\n"
    same_id = f"— other.example {b64encode(VKEY.key_id + bytes(64)).decode()}\n"
    for extra in (witness, same_name, same_id):
        assert open_note(f"{BODY}\n\n{extra}{SIGNATURE}{extra}", VKEY).size == 17
        with pytest.raises(errors.IntegrityFailure, match="no signature"):
            open_note(f"{BODY}\n\n{extra}", VKEY)
    forged = f"— {ORIGIN} {b64encode(VKEY.key_id + bytes(64)).decode()}\n"
    with pytest.raises(errors.IntegrityFailure, match="not valid"):
        open_note(f"{BODY}\n\n{SIGNATURE}{forged}", VKEY)


def test_sixteen_signatures_of_post_quantum_size_are_read() -> None:
    """C2SP signed-note, Format: verifiers "MUST accept at least up to 16 signatures"."""
    lines = "".join(f"— w{n}.example {b64encode(bytes(5000)).decode()}\n" for n in range(16))
    assert open_note(f"{BODY}\n\n{lines}{SIGNATURE}", VKEY).size == 17


def test_more_signatures_than_the_limit_are_refused() -> None:
    line = f"— w.example {b64encode(bytes(68)).decode()}\n"
    with pytest.raises(errors.MalformedRequest, match="at most"):
        open_note(f"{BODY}\n\n{SIGNATURE}{line * checkpoint.SIGNATURE_LIMIT}", VKEY)
    with pytest.raises(errors.MalformedRequest, match="longer"):
        open_note("x" * (checkpoint.NOTE_LIMIT + 1), VKEY)


def test_a_checkpoint_of_another_log_under_this_logs_key_is_refused() -> None:
    other = Checkpoint("factory.example/log/other", 17, ROOT)
    with pytest.raises(errors.IntegrityFailure, match="another log"):
        open_note(sign_note(other.body(), ORIGIN, PUBLIC, KEY.sign), VKEY)


def test_another_key_of_the_same_name_does_not_speak_for_the_log() -> None:
    forger = Ed25519PrivateKey.generate()
    public = forger.public_key().public_bytes_raw()
    forged = sign_note(Checkpoint(ORIGIN, 17, ROOT).body(), ORIGIN, public, forger.sign)
    with pytest.raises(errors.IntegrityFailure):
        open_note(forged, VKEY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        BODY,
        f"{BODY}\n\n",
        f"{BODY}\n{SIGNATURE}",
        NOTE.removesuffix("\n"),
        NOTE + "\n",
        NOTE + "x",
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("— ", "- "),
        NOTE.replace("— ", "—"),
        NOTE.replace("— ", "—  "),
        f"{BODY}\n\n— {ORIGIN} {b64encode(b'1234').decode()}\n",
        f"{BODY}\n\n— name+plus {b64encode(bytes(68)).decode()}\n",
        f"{BODY}\n\n— na\u00a0me {b64encode(bytes(68)).decode()}\n",
        f"{BODY}\n\n{SIGNATURE.rstrip()}=\n",
        f"{BODY}\n\n{SIGNATURE.rstrip()} \n",
        f"\x00{NOTE}",
        f"\ud800{NOTE}",
        f"{NOTE}\udfff\n",
    ],
)
def test_a_text_that_is_no_note_is_malformed(text: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        open_note(text, VKEY)


@pytest.mark.parametrize(
    "body",
    [
        f"{ORIGIN}\n17\n",
        f"{ORIGIN}\n017\n{b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n+17\n{b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n-1\n{b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n١٧\n{b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n{1 << 63}\n{b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n17\n{b64encode(ROOT[1:]).decode()}\n",
        f"{ORIGIN}\n17\n{ROOT.hex()}\n",
        f"{ORIGIN}\n17\n{b64encode(ROOT).decode()[:-2]}_=\n",
        f"\n17\n{b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n17\n{b64encode(ROOT).decode()}\n\nafter a blank line\n",
    ],
)
def test_a_signed_text_that_is_no_checkpoint_is_malformed(body: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        open_note(sign_note(body.encode(), ORIGIN, PUBLIC, KEY.sign), VKEY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "a+b",
        EXAMPLE_KEY + "\n\n",
        EXAMPLE_KEY[:-1],
        EXAMPLE_KEY.replace("530d903a", "530d903b"),
        EXAMPLE_KEY.replace("530d903a", "530D903A"),
        EXAMPLE_KEY.replace("530d903a", "30d903a"),
        EXAMPLE_KEY.replace("example", "exampl"),
        EXAMPLE_KEY.replace("/foo", "/f oo"),
        EXAMPLE_KEY.replace("AekyeRrm", "AukyeRrm"),
        "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "a\ud800+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
    ],
)
def test_a_text_that_is_no_verifier_key_is_malformed(text: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        VerifierKey.parse(text)


@given(st.text(max_size=200))
def test_any_text_is_a_verifier_key_or_malformed(text: str) -> None:
    try:
        key = VerifierKey.parse(text)
    except errors.MalformedRequest:
        return
    assert str(key) == text.removesuffix("\n")


@given(st.data())
@settings(max_examples=100)
def test_a_note_changed_anywhere_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(NOTE)))
    changed = NOTE[:at] + data.draw(st.text(max_size=3)) + NOTE[at + data.draw(st.integers(0, 3)) :]
    if changed == NOTE:
        return
    with pytest.raises((errors.MalformedRequest, errors.IntegrityFailure)):
        open_note(changed, VKEY)


def test_a_key_store_that_answers_nonsense_makes_no_note() -> None:
    with pytest.raises(errors.IntegrityFailure):
        sign_note(Checkpoint(ORIGIN, 17, ROOT).body(), ORIGIN, PUBLIC, lambda message: message[:63])
    for body in (b"no newline", b"tab\t\n", b""):
        with pytest.raises(errors.MalformedRequest):
            sign_note(body, ORIGIN, PUBLIC, KEY.sign)


@pytest.mark.parametrize("origin", ["", "two\nlines", "tab\t"])
def test_an_origin_is_one_line(origin: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        Checkpoint(origin, 17, ROOT)


def test_a_checkpoint_and_a_key_have_the_sizes_they_have() -> None:
    for size, root in ((-1, ROOT), (1 << 63, ROOT), (17, ROOT[1:])):
        with pytest.raises(errors.MalformedRequest):
            Checkpoint(ORIGIN, size, root)
    with pytest.raises(errors.MalformedRequest):
        VerifierKey(ORIGIN, PUBLIC[1:])


def respelled(text: str) -> str:
    """The same octets in base64 with one of the unused bits set."""
    head, last = text[:-2], text[-2]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = head + alphabet[alphabet.index(last) | 1] + "="
    assert text.endswith("=")
    assert not text.endswith("==")
    assert other != text
    assert b64decode(other) == b64decode(text)
    return other


def test_base64_has_one_spelling() -> None:
    """Two texts that say the same would let a note change unseen."""
    encoded = SIGNATURE.split()[-1]
    with pytest.raises(errors.MalformedRequest):
        open_note(NOTE.replace(encoded, respelled(encoded)), VKEY)
    root = b64encode(ROOT).decode()
    body = BODY.replace(root, respelled(root)) + "\n"
    with pytest.raises(errors.MalformedRequest):
        open_note(sign_note(body.encode(), ORIGIN, PUBLIC, KEY.sign), VKEY)
    for text in (" " + root, root + "\n", root[:10] + "\n" + root[10:], root[:-1], root + "=", "ä" + root):
        with pytest.raises(errors.MalformedRequest):
            checkpoint.decode_base64(text)
