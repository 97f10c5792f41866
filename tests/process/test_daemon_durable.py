"""A real daemon that is killed, or whose disk fails, loses no durable job."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Daemon, Peer, Start

#: A job of a second and a half, in a piece every twentieth of it.
SLOW: dict[str, Any] = {"seconds": 3.0, "segments": 10, "rtf": 0.5}


def submit(client: Peer, text: str, **keys: Any) -> str:
    """A durable job that is accepted; returns its name."""
    id = client.send("synthesize", text=text, **({"durable": True} | keys))
    return str(client.until(id, "accepted")["job"])


def outputs(daemon: Daemon) -> Path:
    return Path(daemon.state) / "outputs"


def test_jobs_that_waited_and_one_that_streamed_are_done_by_the_next_daemon(start: Start) -> None:
    daemon = start()
    client = daemon.client()
    streamed = client.send("synthesize", text="begun before the kill", stream=True, durable=True, options=SLOW)
    client.until(streamed, "audio")
    with daemon.workers_stand_still():
        jobs = {submit(client, f"waits {n}", priority="batch") for n in range(5)}
        lost = client.send("synthesize", text="not durable")
        client.until(lost, "accepted")
        begun = client.ask("jobs", state="running")["jobs"][0]["job"]
        daemon.kill()
    daemon.restart()
    again = daemon.client()
    done, audio = again.all(again.send("wait", job=begun))
    assert done[-1]["event"] == "done" and done[-1]["attempts"] == 2, done[-1]
    assert hashlib.sha256(audio).hexdigest() == done[-1]["sha256"] and "chunks" not in done[-1]
    _, undisturbed = again.speak("begun before the kill", stream=True, options=SLOW | {"rtf": 0.0})
    assert audio == undisturbed
    for job in jobs:
        assert again.ask("wait", job=job)["event"] == "done"
    assert daemon.status()["counts"]["done"] == len(jobs) + 2


def test_a_result_is_fetched_by_job_or_key_after_a_restart_and_when_it_is_no_longer_in_memory(
    start: Start,
) -> None:
    daemon = start(queue={"keep_results_s": 0.2})
    client = daemon.client()
    done, audio = client.speak("keep this", durable=True, key="k1")
    daemon.until(lambda: client.ask("jobs")["jobs"] == [], "memory has forgotten it")
    again, same = client.all(client.send("wait", job=done["job"]))
    assert same == audio and again[-1]["sha256"] == done["sha256"]
    daemon.kill()
    daemon.restart()
    after = daemon.client()
    events, same = after.all(after.send("wait", job=done["job"]))
    assert same == audio and [event["event"] for event in events] == ["done"]
    info = after.ask("job", job=done["job"])
    assert info["state"] == "done" and info["priority"] == "interactive"
    assert after.ask("cancel", job=done["job"])["state"] == "done"
    assert after.refused("wait", job="0-0")["code"] == "job_not_found"
    events, same = after.all(after.send("synthesize", text="keep this", durable=True, key="k1"))
    assert [event["event"] for event in events] == ["accepted", "done"]
    assert events[-1]["job"] == done["job"] and same == audio
    assert after.refused("synthesize", text="something else", durable=True, key="k1")["code"] == "bad_request"
    assert daemon.status()["counts"]["done"] == 0, "nothing was synthesized again"


def test_an_output_appears_once_though_the_daemon_dies_when_it_is_written(start: Start) -> None:
    daemon = start()
    client = daemon.client()
    path = outputs(daemon) / "chapter.wav"
    job = submit(client, "a chapter", output="chapter.wav", options={"seconds": 1.0})
    # Killed between the writing of the file and the report of it.
    while not path.exists():
        time.sleep(0.0005)
    daemon.kill()
    before = path.read_bytes()
    daemon.restart()
    after = daemon.client()
    done = after.ask("wait", job=job)
    assert done["event"] == "done" and done["path"] == str(path), done
    assert path.read_bytes() == before and hashlib.sha256(before).hexdigest() == done["sha256"]
    daemon.until(
        lambda: [file.name for file in outputs(daemon).iterdir()] == ["chapter.wav"], "marks of outputs are removed"
    )


def test_an_output_is_its_job_s_own_though_the_journal_can_t_be_read_at_the_start(start: Start) -> None:
    daemon = start()
    client = daemon.client()
    id = client.send("synthesize", text="x", output="a.wav", durable=True, options=SLOW | {"rtf": 10.0})
    job = client.until(id, "started")["job"]
    daemon.kill()
    # As its worker leaves it when it dies after writing the file.
    done, audio = b"RIFF of the first attempt", outputs(daemon) / "a.wav"
    audio.write_bytes(done)
    os.link(audio, outputs(daemon) / f".glmtts-job-{job}")
    database = daemon.state / "journal.db"
    database.rename(daemon.state / "elsewhere.db")
    database.mkdir()
    daemon.restart()
    database.rmdir()
    (daemon.state / "elsewhere.db").rename(database)
    again = daemon.client()
    daemon.until(lambda: again.ask("job", job=job)["event"] == "job", "the journal is read")
    assert again.ask("wait", job=job)["event"] == "done" and audio.read_bytes() == done


def test_a_stop_leaves_waiting_durable_jobs_to_the_next_daemon_and_says_so(start: Start) -> None:
    daemon = start()
    client = daemon.client()
    with daemon.workers_stand_still():
        running = client.send("synthesize", text="is finished", options={"seconds": 1.5})
        client.until(running, "started")
        id = client.send("synthesize", text="runs later", durable=True, priority="batch")
        job = client.until(id, "accepted")["job"]
        daemon.process.terminate()
        error = client.until(id, "error")
    assert error["code"] == "shutting_down" and error["retryable"] and "wait" in error["message"]
    assert client.until(running, "done")["event"] == "done"
    assert daemon.process.wait(10) == 0
    daemon.restart()
    after = daemon.client()
    assert after.ask("wait", job=job)["event"] == "done"
    # What the earlier daemon had spoken is counted too, that of its last moment included.
    (today,) = after.ask("usage")["days"]
    assert (today["jobs"], today["characters"]) == (2, len("is finished") + len("runs later"))
    assert daemon.control("usage")["days"][0]["audio_s"] == today["audio_s"] > 1.0


def test_a_client_that_goes_away_does_not_end_a_durable_job(start: Start) -> None:
    daemon = start()
    client = daemon.client()
    id = client.send("synthesize", text="streamed without a listener", stream=True, durable=True, options=SLOW)
    job = client.until(id, "accepted")["job"]
    client.until(id, "audio")
    client.close()
    other = daemon.client()
    _, undisturbed = other.speak("streamed without a listener", stream=True, options=SLOW | {"rtf": 0.0})
    # A client that waits for it gets it whole, before its end and after.
    events, audio = other.all(other.send("wait", job=job))
    assert [event["event"] for event in events if event["event"] != "progress"] == ["done"] and audio == undisturbed
    assert "chunks" not in events[-1]
    daemon.kill()
    daemon.restart()
    after = daemon.client()
    assert after.all(after.send("wait", job=job))[1] == undisturbed


def test_a_damaged_journal_stops_durable_jobs_alone_and_is_left_as_it_is(start: Start) -> None:
    daemon = start()
    daemon.client().speak("in the journal", durable=True)
    daemon.stop()
    journal = Path(daemon.state) / "journal.db"
    data = bytearray(journal.read_bytes())
    data[100:4000] = b"\xff" * 3900
    journal.write_bytes(data)
    damaged = journal.read_bytes()
    daemon.restart()
    client = daemon.client()
    assert client.speak("interactive still works")[0]["event"] == "done"
    error = client.refused("synthesize", text="durable", durable=True)
    assert error["code"] == "unavailable" and error["retryable"] and str(journal) in error["message"]
    status = daemon.status()
    assert not status["journal"]["ok"]
    assert [alert["name"] for alert in status["alerts"]] == ["journal"]
    assert client.speak("batch all the same", priority="batch", durable=False)[0]["event"] == "done"
    assert journal.read_bytes() == damaged
    # The remedy of the message helps, without a restart.
    for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
        with contextlib.suppress(FileNotFoundError):
            (Path(daemon.state) / name).rename(Path(daemon.state) / f"{name}.damaged")
    daemon.until(lambda: daemon.status()["journal"]["ok"], "the journal works again")
    assert daemon.status()["alerts"] == []
    assert client.speak("durable again", durable=True)[0]["event"] == "done"


def test_a_result_that_can_t_be_kept_is_sent_and_reported_and_no_more_are_accepted(start: Start) -> None:
    daemon = start(queue={"keep_results_mib": 0})
    client = daemon.client()
    kept, _ = client.speak("kept", durable=True)
    results = Path(daemon.state) / "results"
    results.rename(results.with_name("away"))
    # A folder that is gone is made again; a file in its place is reported.
    client.speak("in a new folder", durable=True)
    assert len(list(results.iterdir())) == 1
    results.rename(results.with_name("away too"))
    results.write_text("in the way")
    done, audio = client.speak("not kept", durable=True)
    assert hashlib.sha256(audio).hexdigest() == done["sha256"], "its client has it"
    (alert,) = daemon.status()["alerts"]
    assert alert["name"] == "results" and str(results) in alert["message"]
    refused = client.refused("synthesize", text="one more", durable=True)
    assert refused["code"] == "unavailable" and str(results) in refused["message"]
    assert client.speak("interactive still works")[0]["event"] == "done"
    lost = client.refused("wait", job=kept["job"])
    assert lost["code"] == "job_not_found" and "result" in lost["message"]


@contextlib.contextmanager
def on_small_disk(start: Start, size: str) -> Iterator[Daemon]:
    """A daemon whose state folder is a file system of that size."""
    daemon = start(wait=False)
    daemon.kill()
    state = Path(daemon.state)
    state.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(state)], check=True)
    try:
        daemon.restart()
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.wait()
        daemon.until_nothing_is_left()
        subprocess.run(["umount", str(state)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_speech_without_a_waiting_client_is_not_lost_to_a_full_disk(start: Start) -> None:
    with on_small_disk(start, "6m") as daemon:
        state = Path(daemon.state)
        daemon.control("pause")
        client = daemon.client()
        # 960 kB of speech each.
        sent = [client.send("synthesize", text=f"{n}", priority="batch", options={"seconds": 20.0}) for n in range(3)]
        jobs = [client.until(id, "accepted")["job"] for id in sent]
        client.close()
        daemon.until(lambda: not daemon.status()["connections"], "the client is gone")
        filler = state / "filler"
        free = os.statvfs(state)
        filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 500_000))
        daemon.control("resume")
        daemon.until(lambda: "results" in [alert["name"] for alert in daemon.status()["alerts"]], "it is reported")
        assert daemon.status()["journal"]["unfinished"] == 3
        filler.unlink()
        daemon.stop()
        daemon.restart()
        other = daemon.client()
        for job in jobs:
            events, audio = other.all(other.send("wait", job=job))
            assert events[-1]["event"] == "done" and len(audio) > 900_000
        daemon.stop()


def test_a_pause_outlives_the_daemon_however_it_ends(start: Start) -> None:
    daemon = start()
    daemon.control("pause")
    kept = Path(daemon.state) / "paused"
    daemon.until(kept.exists, "the pause is on disk", 5.0)
    for end in (daemon.kill, daemon.stop):
        end()
        daemon.restart()
        status = daemon.status()
        assert (status["state"], status["ready"]) == ("paused", False)
        assert status["paused_since"] == pytest.approx(float(kept.read_text()))
    daemon.control("resume")
    daemon.until(lambda: not kept.exists(), "the end of the pause is on disk", 5.0)
    daemon.kill()
    daemon.restart()
    assert daemon.status()["state"] == "running"
