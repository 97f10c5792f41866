"""What the measurements of faults.py say: a table, and a verdict for every target."""

from __future__ import annotations

import report
from faulty_daemon import HANG_TIMEOUT_S

#: What the sampler is measured with.
GPUS, WORKERS = 8, 16


def targets(results: report.Results) -> list[report.Target]:
    """The targets of the project and how they stand."""

    def ms(part: str, key: str) -> float | None:
        found = results.get(part)
        return None if found is None else found[key] * 1e3

    def grown(key: str) -> float | None:
        found = results.get("cycles")
        return None if found is None else float(found["grown"][key])

    bound_ms = (HANG_TIMEOUT_S + 0.5) * 1e3
    growth = results.get("cycles", {}).get("grows_mib_per_1000")
    looking = results.get("sampling", {})
    what = f"of a core, for {GPUS} GPUs and {WORKERS} workers"
    return [
        report.Target("kill -9 to its client's answer, median", ms("answers", "median_s"), 50.0, "ms"),
        report.Target(
            "kill -9 to its client's answer: mosec's", ms("answers", "median_s"), ms("mosec", "median_s"), "ms"
        ),
        report.Target("kill -9 to the job done elsewhere, median", ms("retry_done", "median_s"), 100.0, "ms"),
        report.Target("a hang is noticed, longest", ms("hang", "longest_s"), bound_ms, "ms"),
        report.Target("a hang with the GIL held is noticed, longest", ms("hang_gil", "longest_s"), bound_ms, "ms"),
        report.Target("growth over 1,000 crashes: memory", growth, 0.5, "MiB"),
        report.Target("growth over all crashes: descriptors", grown("descriptors"), 0.0, ""),
        report.Target("growth over all crashes: threads", grown("threads"), 0.0, ""),
        report.Target("left unreaped: processes", grown("zombies"), 0.0, ""),
        report.Target(f"the sampler {what}", looking.get("cpu_percent"), 1.0, "%"),
        report.Target(f"the idle daemon {what}", looking.get("idle_daemon_percent"), 1.0, "%"),
    ]


def text(results: report.Results) -> str:
    """Everything that a person wants to read."""
    labels = {
        "answers": "kill -9 to its client's error",
        "retry_started": "kill -9 to the next attempt's start",
        "retry_done": "kill -9 to its end, on another worker",
        "hang": f"a hang is noticed (timeout {HANG_TIMEOUT_S:g} s)",
        "hang_gil": "a hang with the GIL held",
        "mosec": "mosec: kill -9 to its client's answer",
    }
    rows = [["", "times", "median ms", "p99 ms", "longest ms"]]
    for part, label in labels.items():
        if part in results:
            values = [f"{results[part][key] * 1e3:,.1f}" for key in ("median_s", "p99_s", "longest_s")]
            rows.append([label, str(results[part]["times"]), *values])
    parts = [report.table(rows)] if len(rows) > 1 else []
    if "cycles" in results:
        found = results["cycles"]
        before, after = found["before"], found["after"]
        parts.append(
            f"{found['times']:,} crashes in {found['seconds']:.0f} s. The supervisor at rest before and after: "
            + "; ".join(f"{key} {before[key]:.10g} {after[key]:.10g}" for key in before)
        )
    heads = [["target", "measured", "bound", "verdict"]]
    heads += [
        [t.name, "-" if t.value is None else f"{t.value:,.2f} {t.unit}", f"<= {t.bound:,.1f} {t.unit}", t.verdict]
        for t in targets(results)
        if t.bound is not None
    ]
    parts.append(report.table(heads))
    if results["not_measured"]:
        parts.append("\n".join(["Not measured:", *(f"{k}: {v}" for k, v in results["not_measured"].items())]))
    return "\n\n".join(parts)
