"""`glmttsctl gpus`: each GPU, who has its memory, how it does, and what NVML says where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from .session import session, shared_options
from .ui.humanize import age, memory, memory_bar, part_of, vram
from .ui.output import clean, humanise, plain, print_json
from .ui.table import echo
from .ui.wrap import hung, terminal_width

Gpu = Mapping[str, Any]

_LABEL = 10
_WIDEST_BAR = 40
#: Readings older than this are said to be old.
_STALE_S = 30.0


@click.command()
@shared_options
def gpus() -> None:
    """Every GPU: memory by who has it, load, temperature, and room for more workers."""
    run = session()
    with run.control() as control:
        answer: dict[str, Any] = plain(control.gpus())
    if run.json:
        print_json(answer)
        return
    found = answer.get("gpus") or []
    width = terminal_width()
    for gpu in found:
        _print_gpu(gpu, width)
        click.echo()
    if not found:
        _print_words("", no_gpu_in_words(answer.get("nvml")), width)
    else:
        _print_words("NVML", nvml_in_words(answer.get("nvml")), width)
    host = answer.get("host")
    if isinstance(host, Mapping) and host.get("total"):
        click.echo(f"{'host':<{_LABEL}}{part_of(host.get('available'), host['total'])} memory available")


def _print_words(label: str, words: str, width: int | None, style: str = "") -> None:
    head = f"{label:<{_LABEL}}" if label else ""
    for line in hung(head, words, width):
        echo([(line, style)])


def _print_gpu(gpu: Gpu, width: int | None) -> None:
    state = str(gpu.get("state", "?"))
    name = clean(str(gpu.get("name") or "unnamed")) + (" (MIG)" if gpu.get("mig") else "")
    echo([(f"{_title(gpu):<{_LABEL}}", "cyan"), (name, ""), ("  " + state, "green" if state == "ok" else "red")])
    if state != "ok" or gpu.get("detail"):
        # The daemon puts what NVML's words mean behind them.
        _print_words(" ", clean(str(gpu.get("detail") or state)), width, "red")
    ours, others = shares(gpu)
    total = gpu.get("total")
    if total:
        bar = memory_bar(ours, others, total, min(_WIDEST_BAR, (width or 100) - _LABEL - 14))
        echo([(f"{'  memory':<{_LABEL}}", ""), *bar, (f"  {part_of(gpu.get('used'), total)}", "")])
        legend = [("█", "cyan"), (f" our workers {memory(ours)}  ", "")]
        others_words = "unknown" if gpu.get("others") is None else memory(others)
        legend += [("▒", "yellow"), (f" others {others_words}  ", "")]
        legend += [("·", "bright_black"), (f" free {memory(gpu.get('free'))}", "")]
        echo([(" " * _LABEL, ""), *legend])
    load = load_in_words(gpu)
    if load:
        click.echo(f"{'  load':<{_LABEL}}{load}")
    has = [
        f"{clean(str(w.get('name', '?')))} {vram(w.get('vram'), w.get('vram_trust'))}" for w in gpu.get("workers") or []
    ]
    _print_words("  workers", ", ".join(has) or "none", width)
    if room := _room_in_words(gpu):
        click.echo(f"{'  room':<{_LABEL}}{room}")
    ago = gpu.get("sampled_ago_s")
    if isinstance(ago, (int, float)) and ago > _STALE_S:
        echo([(f"{'':<{_LABEL}}these numbers are {age(ago)} old", "yellow")])


def _title(gpu: Gpu) -> str:
    return f"GPU {humanise('', gpu.get('index'))}"


def shares(gpu: Gpu) -> tuple[float, float]:
    """Bytes that our workers have, and that others have. What nobody can tell apart counts as others'."""
    ours = float(sum(worker.get("vram") or 0 for worker in gpu.get("workers") or []))
    others = gpu.get("others")
    if others is None:
        others = max(0.0, float(gpu.get("used") or 0) - ours)
    return ours, float(others)


def load_in_words(gpu: Gpu) -> str:
    """``87 %, 64 °C``."""
    words = []
    if gpu.get("utilization") is not None:
        words.append(f"{gpu['utilization']} %")
    if gpu.get("temperature") is not None:
        words.append(f"{gpu['temperature']} °C")
    return ", ".join(words)


def _room_in_words(gpu: Gpu) -> str:
    room, need = gpu.get("room"), gpu.get("need")
    if gpu.get("state") != "ok":
        return "for none while it is like this"
    each = f" ({memory(need)} each)" if need else ""
    if room is None:
        return "" if not need else f"unknown; a worker needs {memory(need)}"
    if room == 0:
        return f"for no more workers{each}"
    return f"for {room} more worker{'s' if room != 1 else ''}{each}"


def nvml_in_words(nvml: Any) -> str:
    """``ok, driver 550.54.14``; what is wrong with it and what that means."""
    if not isinstance(nvml, Mapping):
        return "unknown"
    state, detail = str(nvml.get("state", "?")), clean(str(nvml.get("detail") or ""))
    words = state + (f": {detail}" if detail else "")
    if state == "blocked":
        words += " (a call into the driver has not returned; what is shown is what was last known)"
    if nvml.get("driver"):
        words += f", driver {clean(str(nvml['driver']))}"
    if nvml.get("version"):
        words += f", NVML {clean(str(nvml['version']))}"
    return words


def no_gpu_in_words(nvml: Any) -> str:
    """Why no GPU is shown, and whether that is a problem."""
    state = str(nvml.get("state", "?")) if isinstance(nvml, Mapping) else "?"
    if state == "ok":
        return f"No GPU: the driver answers and lists none. NVML is {nvml_in_words(nvml)}."
    if state == "absent":
        return (
            f"No GPU (NVML is {nvml_in_words(nvml)}). That is as it should be where workers use none; "
            "elsewhere `glmttsctl doctor` says what is missing."
        )
    return f"No GPU can be seen: NVML is {nvml_in_words(nvml)}. `glmttsctl doctor` says more."
