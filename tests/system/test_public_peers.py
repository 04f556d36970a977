"""The public role and relying parties written in Java and Python (SPEC F3)."""

from datetime import timedelta

from tests.support.checkers.java import java
from tests.support.checkers.pyhanko import pyhanko
from tests.support.server import birthmark
from tests.system.test_public import VERDICTS, Scene, live, now, request_for

__all__ = ["live"]  # the fixture


def test_the_jdk_and_pyhanko_get_the_right_answer_live(live: Scene) -> None:  # the fixture
    with java() as jdk, pyhanko() as hanko:
        for name, status in VERDICTS.items():
            chain, at = live.chains[name], now()
            verdict = jdk.ocsp_verdict(chain, f"{live.host.url}/ocsp", at=at)
            assert verdict.status is status, verdict
            got = live.host.ask("POST", "/ocsp", request_for(chain))
            assert hanko.ocsp_verdict(chain, got.body, at=at + timedelta(seconds=1)).status is status


def test_the_jdk_and_pyhanko_read_the_served_crl(live: Scene) -> None:  # the fixture
    crl = live.host.get("/crl/issuing-1.crl").body
    with java() as jdk, pyhanko() as hanko:
        for name, status in VERDICTS.items():
            at = now() + timedelta(seconds=1)
            assert jdk.crl_verdict(live.chains[name], [crl], at=at).status is status
            assert hanko.crl_verdict(live.chains[name], [crl], at=at).status is status


def test_the_settings_of_a_public_host_can_be_checked(live: Scene) -> None:  # the fixture
    done = birthmark("config", "check", "--settings", live.host.settings, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
