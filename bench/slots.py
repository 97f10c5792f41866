"""What a worker makes of its slots: seconds of audio a second with 1, 4 and 16 jobs side by side.

Real daemons with the fault engine, whose jobs take as long as their audio and no processor time, so that only the
daemon, the worker's loop and the streams can hold them up. ``make bench`` runs it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import faults
import overhead
import report
import running
from speakers import Speakers, config, drain

HERE = Path(__file__).parent
SLOTS = (1, 4, 16)
#: The aim: at the most slots, this many times one slot's audio a second.
AIM = 15.5
_TIMEOUT_S = 60.0


def audio_a_second(slots: int, seconds: float, folder: Path) -> float:
    """One stream of ``seconds`` in each slot, from the first request to the end of the last."""
    text = f"{config('fault')}[engine.fault]\nslots = {slots}\n"
    options = {"seconds": seconds, "rtf": 1.0, "segments": max(1, round(seconds))}
    with ExitStack() as stack:
        speakers = Speakers(stack, folder, f"slots-{slots}", text)
        begin = time.perf_counter()
        for number in range(slots):
            request = {"text": f"job {number}", "format": "pcm_s16le", "stream": True, "options": options}
            speakers.ask(f"user{number}", request)
        drain(speakers, seconds + _TIMEOUT_S)
        return sum(spoken.audio_s for spoken in speakers.done) / (time.perf_counter() - begin)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(prog="slots.py", description="what a worker makes of its slots")
    parser.add_argument("--seconds", type=float, default=20.0, help="audio of each job")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for JSON")
    options = parser.parse_args(argv)
    running.end_in_time(600)
    results: report.Results = {"machine": overhead.machine(), "seconds": options.seconds, "audio_a_second": {}}
    with tempfile.TemporaryDirectory(prefix="glmtts-bench-") as folder:
        for slots in SLOTS:
            overhead.note(f"{slots} slots")
            results["audio_a_second"][str(slots)] = audio_a_second(slots, options.seconds, Path(folder))
    found = results["audio_a_second"]
    results["gain"] = gain = found[str(SLOTS[-1])] / found["1"]
    files = running.save(results, "slots", options.out)
    rows = [["slots", "audio s a second", "times one slot's"]]
    rows += [[slots, f"{value:.2f}", f"{value / found['1']:.2f}"] for slots, value in found.items()]
    print(faults.heading(results["machine"]))
    verdict = "met" if gain >= AIM else "missed"
    print(f"{report.table(rows)}\n\n{SLOTS[-1]} slots: {gain:.2f} times one slot's, aim {AIM:g}: {verdict}\n\n{files}")


if __name__ == "__main__":
    main()
