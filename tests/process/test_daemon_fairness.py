"""Many users, one GPU: a book does not delay another client's sentence, and a client can't dodge its limits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import pytest
import zmq

from .conftest import Peer, Start

#: A book of twenty segments of 0.2 s each.
SEGMENT_S = 0.2
BOOK: dict[str, Any] = {"seconds": 10.0, "segments": 20, "rtf": 0.4}
#: What the machine may take on top, which is shared; the rest of a book takes longer.
SLACK_S = 1.0
GATEWAY = {"gateways": [str(os.geteuid())]}


def waited(client: Peer, text: str, **keys: Any) -> float:
    """Have a sentence spoken; returns how long it waited for its start."""
    done, _ = client.speak(text, options={"seconds": 0.2}, **keys)
    return float(done["waited_s"])


def test_a_sentence_waits_for_one_segment_of_a_book_whose_sound_is_not_touched(start: Start) -> None:
    daemon = start()
    client, other = daemon.client(), daemon.client()
    _, undisturbed = client.speak("a book", priority="batch", options=BOOK | {"rtf": 0.0})
    book = client.send("synthesize", text="a book", priority="batch", durable=False, options=BOOK)
    for _ in range(4):
        client.until(book, "progress")
        assert waited(other, "a sentence") < SEGMENT_S + SLACK_S
    events, audio = client.all(book)
    assert events[-1]["event"] == "done" and events[-1]["attempts"] == 1
    assert hashlib.sha256(audio).digest() == hashlib.sha256(undisturbed).digest()


def test_a_thousand_jobs_of_one_client_delay_another_s_sentence_by_no_more_than_a_segment(start: Start) -> None:
    daemon = start(limits=GATEWAY)
    client, other = daemon.client(), daemon.client()
    keys: dict[str, Any] = {"priority": "batch", "durable": False, "on_behalf_of": "bulk", "options": BOOK}
    ids = [client.send("synthesize", text=f"chapter {n}", **keys) for n in range(1_000)]
    client.until(ids[-1], "accepted")
    client.until(ids[0], "progress")
    assert waited(other, "interactive", on_behalf_of="reader") < SEGMENT_S + SLACK_S
    # In the same class too: it is another's, and much shorter than the rest of the chapter.
    assert waited(other, "batch", priority="batch", durable=False, on_behalf_of="reader") < SEGMENT_S + SLACK_S
    queue = daemon.control("queue", limit=3)
    assert queue["classes"]["batch"]["waiting"] >= 998 and queue["clients"][0]["client"].endswith("/bulk")
    assert daemon.control("cancel", client=queue["clients"][0]["client"])["cancelled"] >= 998
    assert daemon.status()["queue"]["waiting"] == 0


# --- limits


def test_a_rate_is_not_dodged_by_sockets_identities_ids_or_reconnecting(start: Start) -> None:
    daemon = start(limits={"rate": "5/hour"})
    results = []
    for number in range(12):
        options = {"IDENTITY": f"another {number}".encode()} if number % 2 else {}
        peer = daemon.client(zmq.REQ if number % 3 == 2 else zmq.DEALER, **options)
        results.append(peer.ask("synthesize", text="hello", id=f"id{number}"))
        peer.close()
    assert [event["event"] for event in results] == ["done"] * 5 + ["error"] * 7
    refused = results[-1]
    assert refused["code"] == "rate_limited" and refused["retryable"] and 0 < refused["retry_after_s"] <= 720
    shown = daemon.control("limits")["clients"][0]
    assert shown["tokens"] < 1 and shown["rate"] == "5/hour"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch users")
def test_the_kernel_says_who_a_client_is_and_each_user_has_limits_of_its_own(start: Start) -> None:
    daemon = start(limits={"rate": "2/hour", "clients": {"65534": {"rate": "4/hour"}}}, daemon={"socket_mode": "0666"})
    daemon.folder.chmod(0o755)
    # What it imports may lie where others can't read: it switches users afterwards.
    script = (
        "import os, sys, msgpack, zmq\n"
        "os.setuid(int(sys.argv[1]))\n"
        "s = zmq.Context().socket(zmq.DEALER); s.connect(sys.argv[2])\n"
        "for n in range(6):\n"
        "    s.send(msgpack.packb({'v': 1, 'op': 'synthesize', 'id': str(n), 'text': 'x', 'events': 'final'}))\n"
        "ends = [msgpack.unpackb(s.recv_multipart()[0])['event'] for _ in range(6) if s.poll(20000)]\n"
        "print(ends.count('done'))\n"
    )
    spoken: dict[int, list[int]] = {}
    for uid in (65533, 65534, 65533):
        command = [sys.executable, "-c", script, str(uid), daemon.endpoint]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        spoken.setdefault(uid, []).append(int(ran.stdout))
    assert spoken == {65533: [2, 0], 65534: [4]}
