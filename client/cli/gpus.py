"""`glmttsctl gpus`: the memory, load and state of each GPU, and the state of NVML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from .session import session, shared_options
from .ui.humanize import Piece, age, humanise, memory, memory_bar, part_of, vram
from .ui.wrap import clean, hanging, terminal_width

Gpu = Mapping[str, Any]

_LABEL = 10
_WIDEST_BAR = 40
#: Older readings are marked as old.
_STALE_S = 30.0


@click.command()
@shared_options
def gpus() -> None:
    """Every GPU: its memory, load, and room for workers."""
    run = session()
    run.show(run.ask("gpus"), _print)


def _print(answer: Mapping[str, Any]) -> None:
    width = terminal_width()
    found = answer.get("gpus") or []
    for gpu in found:
        _print_gpu(gpu, width)
        click.echo()
    if found:
        _print_words("NVML", nvml_in_words(answer.get("nvml")), width)
    else:
        click.echo("\n".join(hanging("", no_gpu_in_words(answer.get("nvml")), width)))
    host = answer.get("host") or {}
    if host.get("total"):
        _print_words("host", f"{part_of(host.get('available'), host['total'])} memory available", width)


def _print_words(label: str, words: str, width: int | None, style: str | None = None) -> None:
    for line in hanging(f"{label:<{_LABEL}}", words, width):
        click.secho(line, fg=style)


def _print_pieces(label: str, *pieces: Piece) -> None:
    click.echo(f"{label:<{_LABEL}}" + "".join(click.style(text, fg=style or None) for text, style in pieces))


def _print_gpu(gpu: Gpu, width: int | None) -> None:
    state = str(gpu.get("state", "?"))
    name = clean(str(gpu.get("name") or "unnamed")) + (" (MIG)" if gpu.get("mig") else "")
    title = click.style(f"GPU {humanise('', gpu.get('index')):<{_LABEL - 4}}", fg="cyan")
    click.echo(f"{title}{name}  {click.style(state, fg='green' if state == 'ok' else 'red')}")
    if state != "ok" or gpu.get("detail"):
        _print_words("", clean(str(gpu.get("detail") or state)), width, "red")
    ours, others = shares(gpu)
    if total := gpu.get("total"):
        bar = memory_bar(ours, others, total, min(_WIDEST_BAR, (width or 100) - _LABEL - 16))
        _print_pieces("  memory", *bar, (f"  {part_of(gpu.get('used'), total)}", ""))
        others_words = "unknown" if gpu.get("others") is None else memory(others)
        _print_pieces(
            "",
            ("█", "cyan"),
            (f" our workers {memory(ours)}  ", ""),
            ("▒", "yellow"),
            (f" others {others_words}  ", ""),
            ("·", "bright_black"),
            (f" free {memory(gpu.get('free'))}", ""),
        )
    if load := ", ".join(loads(gpu)):
        _print_words("  load", load, width)
    has = [f"{clean(str(w.get('name')))} {vram(w.get('vram'), w.get('vram_trust'))}" for w in gpu.get("workers") or []]
    _print_words("  workers", ", ".join(has) or "none", width)
    if room := _room_in_words(gpu):
        _print_words("  room", room, width)
    ago = gpu.get("sampled_ago_s")
    if ago is not None and ago > _STALE_S:
        _print_words("", f"these numbers are {age(ago)} old", width, "yellow")


def shares(gpu: Gpu) -> tuple[float, float]:
    """Bytes of our workers and of others. Bytes that can't be attributed count as others'."""
    ours = float(sum(worker.get("vram") or 0 for worker in gpu.get("workers") or []))
    others = gpu.get("others")
    return ours, max(0.0, float(gpu.get("used") or 0) - ours) if others is None else float(others)


def loads(gpu: Gpu) -> list[str]:
    """``87 %`` and ``64 °C``, as far as they are known."""
    units = (("utilization", "%"), ("temperature", "°C"))
    return [f"{gpu[key]} {unit}" for key, unit in units if gpu.get(key) is not None]


def _room_in_words(gpu: Gpu) -> str:
    room, need = gpu.get("room"), gpu.get("need")
    if gpu.get("state") != "ok":
        return "none in this state"
    if room is None:
        return f"unknown; a worker needs {memory(need)}" if need else ""
    each = f" ({memory(need)} each)" if need else ""
    return f"for {room or 'no'} more worker{'s' if room != 1 else ''}{each}"


def nvml_in_words(nvml: Mapping[str, Any] | None) -> str:
    """``ok, driver 550.54.14``; or what is wrong with it."""
    if nvml is None:
        return "unknown"
    state, detail = str(nvml.get("state", "?")), clean(str(nvml.get("detail") or ""))
    words = state + (f": {detail}" if detail else "")
    if state == "blocked":
        words += " (a call into the driver does not return; the numbers are the last known ones)"
    for key, name in (("driver", "driver"), ("version", "NVML")):
        if nvml.get(key):
            words += f", {name} {clean(str(nvml[key]))}"
    return words


def no_gpu_in_words(nvml: Mapping[str, Any] | None) -> str:
    """Why no GPU is shown, and whether that is a problem."""
    state = (nvml or {}).get("state")
    if state == "ok":
        return f"No GPU: the driver answers and lists none. NVML is {nvml_in_words(nvml)}."
    if state == "absent":
        return (
            f"No GPU (NVML is {nvml_in_words(nvml)}). That is right for workers on the CPU; otherwise "
            "`glmttsctl doctor` says what is missing."
        )
    return f"No GPU can be seen: NVML is {nvml_in_words(nvml)}. `glmttsctl doctor` says more."
