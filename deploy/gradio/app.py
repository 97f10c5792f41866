"""GLM-TTS's Gradio page over the speech daemon, in the place of upstream's tools/gradio_app.py.

It has the same port, options, fields and API names, and no model of its own: each visitor is a customer of the daemon,
with a place in its queue, limits and a fair share.

    pip install gradio    # where this package is installed
    python deploy/gradio/app.py --server_name 127.0.0.1
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import ipaddress
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from msgspec import UNSET

from glmtts.client import AsyncClient, Forbidden, GlmttsError, JobEvent, RequestFailed
from glmtts.protocol.events import Accepted, Progress, Queued, Started

_log = logging.getLogger("glmtts.gradio")

#: Of upstream's checkout, where the page is started in it.
_EXAMPLE = Path("examples/prompt/jiayan_zh.wav")
_EXAMPLE_TEXT = "他当时还跟线下其他的站姐吵架，然后，打架进局子了。"

#: The seconds after which a daemon that was away is given up: an error is better than a page that hangs.
_RECONNECT_S = 10.0


class Speaker:
    """The connection to the daemon, and the jobs of each visitor."""

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = endpoint
        self._client: AsyncClient | None = None
        self._jobs: defaultdict[str, set[asyncio.Future[Any]]] = defaultdict(set)

    @property
    def client(self) -> AsyncClient:
        if self._client is None:
            # Here and not at the start: it belongs to the event loop of the server.
            self._client = AsyncClient(self.endpoint, reconnect_s=_RECONNECT_S)
        return self._client

    async def speak(self, text: str, visitor: str, session: str, on_event: Any, **options: Any) -> Any:
        """Speak for a visitor, until the page is closed. Raises GlmttsError, and CancelledError for a closed page."""
        job = asyncio.ensure_future(self._speak(text, visitor, on_event=on_event, **options))
        self._jobs[session].add(job)
        try:
            return await job
        finally:
            self._jobs[session].discard(job)
            if not self._jobs[session]:
                del self._jobs[session]

    async def _speak(self, text: str, visitor: str, **options: Any) -> Any:
        try:
            return await self.client.speak(text, on_behalf_of=visitor, **options)
        except Forbidden as error:
            if "on_behalf_of" not in error.message:
                raise
            _log.warning("all visitors share one limit, until the daemon knows this user as a gateway: %s", error)
            return await self.client.speak(text, **options)

    def leave(self, request: gr.Request) -> None:
        """Cancel the jobs of a page that was closed."""
        for job in list(self._jobs.get(str(request.session_hash), ())):
            job.cancel()


speaker = Speaker()


async def run_inference(  # noqa: PLR0917 - Gradio gives the page's fields by their order
    prompt_text: str,
    prompt_audio_path: str | None,
    input_text: str,
    seed: float,
    sample_rate: int,
    use_cache: bool = True,
    progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio finds it by this default
    request: gr.Request | None = None,
) -> tuple[int, np.ndarray]:
    """Speak ``input_text`` with the voice of a recording.

    Args:
        prompt_text: what is said in the recording.
        prompt_audio_path: the recording.
        input_text: what is to be said.
        seed: the same seed gives the same speech.
        sample_rate: in Hz.
        use_cache: each segment continues those before it.
    """
    if not input_text or not input_text.strip():
        raise _refusal("Please provide text to synthesize.")
    context = contextvars.copy_context()

    def show(event: JobEvent) -> None:
        # One connection reads for all visitors: an event may arrive while another's function runs.
        context.run(_show, progress, event)

    session, visitor = _visitor(request)
    try:
        options = await _options(prompt_text, prompt_audio_path, seed, sample_rate, use_cache)
        speech = await speaker.speak(input_text, visitor, session, show, **options)
    except RequestFailed as error:
        wait = f" Try again in {error.retry_after_s:.0f} s." if error.retry_after_s else ""
        raise _refusal(f"{error.message}.{wait}") from None
    except GlmttsError as error:
        _log.warning("%s", error)
        raise _refusal("The speech service is away. Try again in a minute.") from None
    except OSError as error:
        raise _refusal(f"The recording can't be read: {error.strerror}.") from None
    except asyncio.CancelledError:
        raise _refusal("The page was closed.") from None
    return speech.sample_rate, np.frombuffer(speech.audio, np.int16)


def _refusal(words: str) -> gr.Error:
    """Words that stay on the page until they were read; the log needs no traceback of them."""
    return gr.Error(words, duration=None, print_exception=False)


async def _options(
    prompt_text: str, prompt_audio_path: str | None, seed: float, sample_rate: int, use_cache: bool
) -> dict[str, Any]:
    """What the daemon's engine takes of the fields."""
    info = await speaker.client.info(timeout=_RECONNECT_S)
    options: dict[str, Any] = {"format": "pcm_s16le", "sample_rate": int(sample_rate), "seed": int(seed or 0)}
    if "use_cache" in (info.options or {}).get("properties", {}):
        options["options"] = {"use_cache": bool(use_cache)}
    if not info.clones_voices:
        if prompt_audio_path:
            gr.Warning(f"The engine {info.engine} has voices of its own, and does not use the recording.")
    elif not prompt_audio_path:
        raise _refusal("Please upload a prompt audio file.")
    elif not prompt_text or not prompt_text.strip():
        raise _refusal("Please enter what is said in the prompt audio, word for word.")
    else:
        options |= {"prompt": await asyncio.to_thread(Path(prompt_audio_path).read_bytes), "prompt_text": prompt_text}
    return options


def _show(progress: gr.Progress, event: JobEvent) -> None:
    match event:
        case Accepted() | Queued():
            wait = "" if event.estimated_wait_s is UNSET else f", about {event.estimated_wait_s:.0f} s"
            progress(0, desc=f"{event.position} ahead of you{wait}" if event.position else "You are next")
        case Started():
            progress(0, desc="Speaking" if event.attempt == 1 else "Speaking, once more after a fault")
        case Progress():
            progress((event.segment, event.segments), desc="Speaking", unit="segments")


def _visitor(request: gr.Request | None) -> tuple[str, str]:
    """The page's session, and the customer: an address, of IPv6 its network."""
    host = request.client.host if request is not None and request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "", "local"
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        address = mapped or ipaddress.ip_network((address, 64), strict=False).network_address
    assert request is not None
    return str(request.session_hash), f"ip:{address}"


def clear_memory() -> str:
    """Say how memory is handled: nothing is to be cleared."""
    return "There is nothing to clear: the speech daemon has the model for all visitors, and watches its memory itself."


with gr.Blocks(title="GLMTTS Inference") as app:
    gr.Markdown("# GLM-TTS")
    gr.Markdown("Zero-shot text-to-speech, from the speech daemon.")
    with gr.Row():
        with gr.Column(scale=1):
            gr.Markdown("### 1. Zero-Shot Prompt Settings")
            prompt_audio = gr.Audio(
                label="Upload Prompt Audio (Reference Voice)",
                type="filepath",
                value=str(_EXAMPLE) if _EXAMPLE.is_file() else None,
            )
            prompt_text = gr.Textbox(
                label="Prompt Text",
                placeholder="What is said in the prompt audio, word for word",
                lines=2,
                info="The speech is best when every word is right.",
                value=_EXAMPLE_TEXT if _EXAMPLE.is_file() else "",
            )
            gr.Markdown("### 2. Input Settings")
            input_text = gr.Textbox(label="Text to Synthesize", value="我最爱吃人参果，你喜欢吃吗？", lines=5)
            with gr.Accordion("Advanced Settings", open=True):
                sample_rate = gr.Radio([24_000, 32_000], value=24_000, label="Sample Rate (Hz)")
                seed = gr.Number(label="Seed", value=42, precision=0)
                use_cache = gr.Checkbox(
                    label="Use KV Cache", value=True, info="Each segment continues those before it: steadier."
                )
            generate = gr.Button("Generate Audio", variant="primary", size="lg")
            clear = gr.Button("Clear VRAM", variant="secondary")
        with gr.Column(scale=1):
            gr.Markdown("### 3. Output")
            output_audio = gr.Audio(label="Synthesized Result")
            status = gr.Textbox(label="System Status", interactive=False)
    # The daemon has the queue: Gradio's own would let one visitor in at a time.
    generate.click(
        run_inference,
        [prompt_text, prompt_audio, input_text, seed, sample_rate, use_cache],
        [output_audio],
        concurrency_limit=None,
    )
    clear.click(clear_memory, None, [status])
    app.unload(speaker.leave)


def main() -> None:
    """Serve the page."""
    parser = argparse.ArgumentParser(description="GLM-TTS's Gradio page, over the speech daemon.")
    parser.add_argument("--server_name", default="0.0.0.0", help="address to listen at; 127.0.0.1: this machine alone")
    parser.add_argument("--server_port", type=int, default=8048, help="port to listen at")
    parser.add_argument("--share", action="store_true", help="share it by a tunnel of Gradio's makers")
    parser.add_argument("--mcp_server", action="store_true", help="serve the functions by MCP too")
    parser.add_argument("--endpoint", help="the daemon's requests socket; by default found as by other clients")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    speaker.endpoint = options.endpoint
    app.queue().launch(
        server_name=options.server_name,
        server_port=options.server_port,
        share=options.share,
        mcp_server=options.mcp_server,
        theme=gr.themes.Soft(),
    )


if __name__ == "__main__":
    main()
