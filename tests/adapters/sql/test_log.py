"""The log in the database: proofs old and new, each checkpoint a prefix of the next (SPEC E3, E5)."""

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from birthmark import errors
from birthmark.floor.devices import Device
from birthmark.floor.runs import Run
from birthmark.ledger import merkle
from birthmark.ledger.checkpoint import Checkpoint, open_note
from birthmark.ledger.proof import decode, verify
from birthmark.services.check import check
from tests.support.acts import note
from tests.support.realm import Line, hierarchy, provision_in_another_process


def split(size: int) -> int:
    """Return the largest power of two below a size (RFC 6962 section 2.1)."""
    return 1 << (size - 1).bit_length() - 1


def root(hashes: list[bytes]) -> bytes:
    """Return the Merkle tree hash, by the definition of RFC 6962 section 2.1 and nothing of ours."""
    if len(hashes) == 1:
        return hashes[0]
    k = split(len(hashes))
    return hashlib.sha256(b"\x01" + root(hashes[:k]) + root(hashes[k:])).digest()


def path(index: int, hashes: list[bytes]) -> list[bytes]:
    """Return the audit path, by the definition of RFC 6962 section 2.1.1."""
    if len(hashes) == 1:
        return []
    k = split(len(hashes))
    if index < k:
        return [*path(index, hashes[:k]), root(hashes[k:])]
    return [*path(index - k, hashes[k:]), root(hashes[:k])]


def leaf_hashes(line: Line) -> list[bytes]:
    return [hashlib.sha256(b"\x00" + item.entry).digest() for item in line.service.store.log.entries()]


def checkpoints(line: Line) -> list[Checkpoint]:
    return [open_note(text, line.vkey) for _, text in line.service.store.log.checkpoints()]


def test_every_leaf_is_proved_under_its_checkpoint_across_the_borders_of_tiles(line: Line) -> None:
    """SPEC E5: by proofs computed from scratch with RFC 6962's own definition."""
    store = line.service.store
    for entries in (249, 1, 1, 300, 3, 212, 7):  # 256, 512 and 768 are passed inside and between trains
        store.submit([note({"n": n}) for n in range(entries)]).result(20)
    hashes, signed = leaf_hashes(line), checkpoints(line)
    assert len(hashes) > 768
    assert signed[-1].size == len(hashes) == store.log.size()
    for checkpoint in signed:
        assert checkpoint.root == root(hashes[: checkpoint.size])
    borders = {
        0,
        1,
        6,
        254,
        255,
        256,
        257,
        511,
        512,
        513,
        767,
        768,
        len(hashes) - 1,
        *range(0, len(hashes), 61),
    }
    for index in sorted(borders):
        text = store.token(index)
        token = decode(text)
        covering = open_note(token.checkpoint_note, line.vkey)
        assert covering == next(found for found in signed if found.size > index)
        assert list(token.path) == path(index, hashes[: covering.size])
        verify(text, line.vkey)
        for checkpoint in signed:
            if checkpoint.size > index:
                found = merkle.inclusion_proof(index, checkpoint.size, store.log.node)
                assert list(found) == path(index, hashes[: checkpoint.size])
                merkle.verify_inclusion(hashes[index], index, found, checkpoint.size, checkpoint.root)


def test_every_checkpoint_is_consistent_with_every_later_one(small_line: Line) -> None:
    """SPEC E3."""
    log = small_line.service.store.log
    for entries in (3, 250, 1, 260, 2):
        small_line.service.store.submit([note() for _ in range(entries)]).result(20)
    signed = checkpoints(small_line)
    assert len(signed) >= 9
    for number, old in enumerate(signed):
        for new in signed[number:]:
            consistent = merkle.consistency_proof(old.size, new.size, log.node)
            merkle.verify_consistency(old.size, new.size, consistent, old.root, new.root)


def test_the_token_of_the_train_and_the_token_asked_for_later_are_the_same(line: Line) -> None:
    committed = line.service.store.submit([note({"n": n}) for n in range(5)]).result(10)
    for item in committed:
        (leaf,) = item.leaves
        assert item.token(leaf.index) == line.service.store.token(leaf.index)


def test_entries_come_in_order_and_in_the_range_that_was_asked_for(line: Line) -> None:
    line.service.store.submit([note({"n": n}) for n in range(1100)]).result(20)
    log = line.service.store.log
    everything = list(log.entries())
    assert [item.index for item in everything] == list(range(log.size()))
    assert list(log.entries(1020, 1030)) == everything[1020:1030]
    assert list(log.entries(log.size())) == []
    assert list(log.entries(5, 5)) == []
    sizes = [size for size, _ in log.checkpoints()]
    assert sizes == sorted(set(sizes))
    assert [size for size, _ in log.checkpoints(after=sizes[2])] == sizes[3:]


def test_what_is_not_in_the_log_has_no_proof(line: Line) -> None:
    for index in (line.size(), 10**9, -1):
        with pytest.raises(errors.NotFound, match=f"the log has no entry {index}"):
            line.service.store.token(index)


def test_several_services_on_one_database_never_fork_the_log_or_lose_an_act(line: Line) -> None:
    """Strictly ordered whatever number of processes share the database."""
    services = [line.service, line.another_service(), line.another_service()]

    def work(number: int) -> list[str]:
        service, tokens = services[number % 3], []
        for turn in range(6):
            item, *_ = service.store.submit([note({"by": number, "turn": turn})] * (1 + number % 2)).result(
                20
            )
            tokens.append(item.token(item.leaves[0].index))
        return tokens

    size = line.size()
    with ThreadPoolExecutor(9) as threads:
        tokens = [token for found in threads.map(work, range(9)) for token in found]
    assert line.size() == size + sum(6 * (1 + number % 2) for number in range(9))
    said = [(entry["by"], entry["turn"]) for entry in (verify(token, line.vkey) for token in tokens)]
    assert sorted(said) == [(number, turn) for number in range(9) for turn in range(6)]
    hashes = leaf_hashes(line)
    for checkpoint in checkpoints(line):
        assert checkpoint.root == root(hashes[: checkpoint.size])


def test_two_processes_keep_one_quota_and_one_log(line: Line) -> None:
    """SPEC C3, E3."""
    line.open_run("R2", quantity=25)
    station = line.station.caller.credential.der
    work = [[f"P{process}N{number}" for number in range(20)] for process in range(2)]
    arguments = [(line.url, str(hierarchy().directory), station, names) for names in work]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as processes:
        found = [processes.submit(provision_in_another_process, *each) for each in arguments]
        tokens = [token for future in found for token in future.result(60)]
    assert len(tokens) == 25
    assert len({str(verify(token, line.vkey)["device"]) for token in tokens}) == 25
    assert line.the(Run, "R2").admitted == line.the(Run, "R2").released == 25
    assert sum(device.run == "R2" for device in line.service.store.scan(Device)) == 25
    report = check(line.service.store, line.service.store.log, line.realm)
    assert report.findings == []
