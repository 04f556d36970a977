"""The public plane while files that are published cannot be read (SPEC F3, F4)."""

import asyncio
import os
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from cryptography.x509 import ocsp

from birthmark import app
from birthmark.edge.application import PublicApplication
from birthmark.edge.http import answering
from birthmark.edge.http.public import PublicPlane
from birthmark.pki.keys import KeyLabel
from birthmark.ports import KeyStore
from birthmark.settings import load
from tests.support.server import birthmark
from tests.system.test_public import Scene, make_scene, request_for

GOOD, TRY_LATER, UNAUTHORIZED = "SUCCESSFUL", "TRY_LATER", "UNAUTHORIZED"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = make_scene(tmp_path_factory.mktemp("live"), "live")
    public_key = scene.host.path / "responder.pem"
    public_key.write_text(birthmark("responder", "key", "--settings", scene.host.settings).stdout)
    scene.realm.run("responder", "enrol", "--authority", "issuing-1", "--key", public_key)
    scene.publish()
    return scene


@pytest.fixture(scope="module")
def presigned(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = make_scene(tmp_path_factory.mktemp("presigned"), "presigned")
    scene.realm.run("responder", "enrol", "--authority", "issuing-1")
    scene.publish("--ocsp")
    return scene


@pytest.fixture(autouse=True)
def looking_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_LOOK_SECONDS", 0.0)


@contextmanager
def serving(scene: Scene, application: PublicApplication | None = None) -> Iterator[PublicPlane]:
    """Give the plane of a host, in this process; what is published is put back afterwards."""
    kept = scene.host.path / "kept"
    shutil.copytree(scene.host.www, kept, symlinks=True)
    built = application or app.build_public(load(scene.host.settings))
    try:
        with closing(PublicPlane(built)) as plane:
            yield plane
    finally:
        built.close()
        shutil.rmtree(scene.host.www)
        kept.rename(scene.host.www)


async def get(plane: PublicPlane, path: str) -> tuple[int, dict[str, str], bytes]:
    """Send one GET through the application."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": []}
    await plane(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent)


def got(plane: PublicPlane, path: str) -> tuple[int, dict[str, str], bytes]:
    return asyncio.run(get(plane, path))


def said(plane: PublicPlane, *bodies: bytes) -> Sequence[str]:
    """Return the status of the answers to requests that are asked one after the other."""

    async def ask(body: bytes) -> str:
        assert plane.answering is not None
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        plane.answering.ask(body, lambda found: future.set_result(found.octets))
        octets = await asyncio.wait_for(future, 10)
        return ocsp.load_der_ocsp_response(octets).response_status.name

    async def every() -> list[str]:
        return [await ask(body) for body in bodies]

    return asyncio.run(every())


@contextmanager
def no_file_can_be_opened() -> Iterator[None]:
    """Leave this process no file descriptor (EMFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- files


def test_a_file_that_cannot_be_opened_is_not_told_to_be_missing(presigned: Scene) -> None:
    """SPEC F4; RFC 9110 section 15.6.4: a cache would keep a 404, and relying parties would fail."""
    with serving(presigned) as plane:

        async def ask() -> list[tuple[int, dict[str, str], bytes]]:
            with no_file_can_be_opened():
                return [await get(plane, path) for path in ("/crl/issuing-1.crl", "/ca/root.cer", "/nothing")]

        crl, certificate, nothing = asyncio.run(ask())
        assert (crl[0], certificate[0], nothing[0]) == (503, 503, 404)
        assert crl[1]["cache-control"] == "no-store"
        assert got(plane, "/crl/issuing-1.crl")[0] == 200


def test_what_is_no_file_is_nothing(presigned: Scene) -> None:
    """SPEC F4: links are not followed, and nobody waits for the other end of a pipe."""
    www = presigned.host.www
    with serving(presigned) as plane:
        (www / "crl/link.crl").symlink_to(www / "crl/issuing-1.crl")
        (www / "crl/folder.crl").mkdir()
        os.mkfifo(www / "crl/pipe.crl")
        for name in ("link", "folder", "pipe", "missing", "issuing-1.crl/of"):
            status, headers, _ = got(plane, f"/crl/{name}.crl")
            assert (status, headers["cache-control"]) == (404, "public, max-age=5"), name


@pytest.mark.parametrize("octets", [b"", b"0", b"no list of revocations"])
def test_a_crl_that_cannot_be_read_is_served_and_not_kept(presigned: Scene, octets: bytes) -> None:
    """SPEC F4: nothing says how long it may be kept."""
    with serving(presigned) as plane:
        (presigned.host.www / "crl/odd.crl").write_bytes(octets)
        status, headers, body = got(plane, "/crl/odd.crl")
        assert (status, headers["cache-control"], body) == (200, "no-cache", octets)


def test_how_long_a_crl_may_be_kept_is_of_the_file_that_is_sent(presigned: Scene) -> None:
    """SPEC F4: of the one that was opened, whatever has taken its name meanwhile."""
    with serving(presigned) as plane:
        path = presigned.host.www / "crl/issuing-1.crl"
        whole = path.read_bytes()
        for octets, wanted in ((whole, "public, max-age=3600, must-revalidate"), (b"no crl", "no-cache")):
            new = path.with_suffix(".new")
            new.write_bytes(octets)
            new.rename(path)
            status, headers, body = got(plane, "/crl/issuing-1.crl")
            assert (status, headers["cache-control"], body) == (200, wanted, octets)


# --- answers


@pytest.mark.parametrize("kind", ["live", "presigned"])
@pytest.mark.parametrize("odd", ["garbage", "folder", "loop"])
def test_one_file_that_cannot_be_read_does_not_silence_the_others(
    request: pytest.FixtureRequest, kind: str, odd: str
) -> None:
    """SPEC F3: it is passed over, and told."""
    scene: Scene = request.getfixturevalue(kind)
    body = request_for(scene.chains["good"])
    for folder in ("ca", "responders/ocsp"):
        with serving(scene) as plane:
            file = scene.host.www / folder / "another.cer"
            if odd == "garbage":
                file.write_bytes(b"no certificate")
            elif odd == "folder":
                file.mkdir()
            else:
                file.symlink_to(file)
            assert said(plane, body, body) == [GOOD, GOOD]


@pytest.mark.parametrize("kind", ["live", "presigned"])
def test_what_cannot_be_read_for_a_while_stays_as_it_was(request: pytest.FixtureRequest, kind: str) -> None:
    """SPEC F3: without a file descriptor left, and with a certificate that cannot be read."""
    scene: Scene = request.getfixturevalue(kind)
    body = request_for(scene.chains["good"])
    with serving(scene) as plane:
        assert said(plane, body) == [GOOD]
        for name in ("responders/ocsp/issuing-1.cer", "ca/issuing-1.cer"):
            file = scene.host.www / name
            octets = file.read_bytes()
            file.unlink()
            file.mkdir()
            assert said(plane, body, body) == [GOOD, GOOD]
            file.rmdir()
            file.write_bytes(octets)
        assert said(plane, body) == [GOOD]

        async def ask() -> bytes:
            assert plane.answering is not None
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            with no_file_can_be_opened():
                plane.answering.ask(body, lambda found: future.set_result(found.octets))
                return await asyncio.wait_for(future, 10)

        answer = ocsp.load_der_ocsp_response(asyncio.run(ask()))
        assert answer.response_status.name in {GOOD, TRY_LATER}
        assert said(plane, body) == [GOOD]


def test_answers_that_cannot_be_read_are_to_be_asked_for_later(presigned: Scene) -> None:
    """SPEC F3; RFC 6960 section 2.3: unauthorized would say that nobody answers here."""
    body, answers = request_for(presigned.chains["good"]), presigned.host.www / "answers"
    with serving(presigned) as plane:
        away = answers.rename(presigned.host.path / "away")
        assert said(plane, body) == [UNAUTHORIZED]
        answers.symlink_to(answers)
        assert said(plane, body) == [TRY_LATER]
        answers.unlink()
        away.rename(answers)
        assert said(plane, body) == [GOOD]


class _FailingKeys:
    """A key store whose library fails in a way that nobody foresaw."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self.failing = True

    def public_key(self, label: KeyLabel) -> bytes:
        if self.failing:
            raise RuntimeError("the library of the token")
        return self._keys.public_key(label)


def test_no_failure_ends_the_thread_that_answers(live: Scene) -> None:
    """SPEC F3: every later request would wait for ever."""
    built = app.build_public(load(live.host.settings))
    assert built.keys is not None
    failing = _FailingKeys(built.keys)
    body = request_for(live.chains["good"])
    with serving(live, replace(built, keys=cast("KeyStore", failing))) as plane:
        assert said(plane, body, body) == [TRY_LATER, TRY_LATER]
        failing.failing = False
        assert said(plane, body) == [GOOD]


def test_the_plane_needs_what_it_answers_from(presigned: Scene) -> None:
    built = app.build_public(load(presigned.host.settings))
    with pytest.raises(ValueError, match="a record and a key"):
        answering.LiveAnswers(built)
    built.close()
