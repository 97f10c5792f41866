"""The journal under SIGKILL: a record that was reported as written is there afterwards, once."""

from __future__ import annotations

import json
from pathlib import Path

from .journal_rig import run

TIMES = 30

#: Children write as fast as they can and are killed; the answers that they got are compared with the file.
KILLS = """
import json, os, random, select, signal, sqlite3, sys, time

folder, times = Path(sys.argv[1]), int(sys.argv[2])

def write_for_ever(number, out):
    rig = Rig(folder)
    for job in rig.opened.rows:
        rig.journal.end(end(job.job))
    count = 0
    while True:
        for _ in range(8):
            job = f"{number}-{count}"
            recording = b"x" * 40_000 if count % 50 == 0 else None
            rig.journal.add(effects.JournalAdd(row(job, key=f"key {job}", recording=recording)))
            count += 1
        select.select([rig._read], [], [])
        os.read(rig._read, 4096)
        words = []
        for answer in rig.journal.collect():
            assert answer.problem == "", answer
            if isinstance(answer, inputs.JournalAdded):
                words.append(f"added {answer.job}")
                rig.journal.start(effects.JournalStart(answer.job, 1))
                if int(answer.job.split("-")[1]) % 2:
                    rig.journal.end(end(answer.job, keep_s=1e9))
            else:
                words.append(f"ended {answer.job}")
        if words:
            os.write(out, ("\\n".join(words) + "\\n").encode())

random.seed(7)
added, ended, counts = set(), set(), []
for number in range(times):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        write_for_ever(number, write)
    os.close(write)
    data = os.read(read, 65536)
    deadline = time.monotonic() + random.uniform(0.0, 0.06)
    while (left := deadline - time.monotonic()) > 0 and select.select([read], [], [], left)[0]:
        data += os.read(read, 65536)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(read, 65536):
        data += more
    os.close(read)
    lines = [line.split() for line in data.decode().splitlines() if data.endswith(b"\\n")]
    counts.append(len(lines))
    added |= {job for word, job in lines if word == "added"}
    ended |= {job for word, job in lines if word == "ended"}

with Rig(folder) as rig:
    waiting = [job.job for job in rig.opened.rows]
    problem = rig.opened.problem
rows = sqlite3.connect(folder / "journal.db").execute("SELECT job, expires_at FROM jobs").fetchall()
there = [job for job, _ in rows]
have_ended = {job for job, at in rows if at is not None}
print(json.dumps({
    "problem": problem, "counts": counts, "lost": sorted(added - set(there)), "twice": len(there) - len(set(there)),
    "ends lost": sorted(ended - have_ended), "would run again": sorted(ended & set(waiting)),
}))
"""


def test_what_was_answered_before_a_kill_is_there_afterwards_and_once(tmp_path: Path) -> None:
    found = json.loads(run(KILLS, str(tmp_path), str(TIMES)))
    counts = found.pop("counts")
    assert found == {"problem": "", "lost": [], "twice": 0, "ends lost": [], "would run again": []}
    assert len(counts) == TIMES and min(counts) > 0
