"""``/api/tts``: tasks with a place in the queue, in the words of a widely copied Flask service for GLM-TTS."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glmtts.client import AsyncClient, ConnectionLost, DaemonNotRunning, QueueFull, RateLimited, ShuttingDown
from glmtts.client.errors import Unavailable

from . import bodies, errors, jobs, prompts, requests
from .errors import HttpError
from .settings import Settings

#: Waiting tasks, the new one included, from which on the answer warns of a wait.
_WARN_FROM = 4


class Task(Struct, kw_only=True):
    """The body of ``POST /api/tts``."""

    input_text: str
    #: The name of a voice, a recording as a ``data:`` URI, or a file below ``[gateway] prompts_folder``.
    prompt_audio: str = ""
    #: What is said in the recording; the file may have it beside it, as ``NAME.txt``.
    prompt_text: str = ""
    sample_rate: Annotated[int, Meta(ge=8_000, le=48_000)] = 24_000
    #: Taken, and of no effect: the file is fetched from ``download_url``.
    output_name: str = ""


async def create(request: Request) -> Response:
    """Take a task."""
    state = request.app.state
    customer = state.customers.of(request)
    task, _ = bodies.decode(await bodies.read(request, state.settings.body_mib << 20), Task)
    client: AsyncClient = state.client
    # Its callers can't name a class.
    priority = "interactive" if "interactive" in customer.priorities else "batch"
    customer.check_priority(priority)
    options: dict[str, Any] = {
        "format": "wav",
        "sample_rate": task.sample_rate,
        "priority": priority,
        "on_behalf_of": customer.name,
        "durable": True,
    }
    try:
        options |= await _prompt(task, state.settings, client)
        job = await client.submit(task.input_text, **options)
    except (RateLimited, QueueFull, Unavailable, ShuttingDown, ConnectionLost, DaemonNotRunning) as error:
        headers = errors.of_daemon(error).all_headers
        if isinstance(error, RateLimited):
            return JSONResponse({"error": "请求过于频繁，请稍后再试", "code": 429}, 429, headers)
        return JSONResponse({"error": "系统繁忙，请稍后再试", "code": 503}, 503, headers)
    client.leave(job)
    answer: dict[str, Any] = {"message": "任务已提交", "task_id": job.id, "queue_size": job.queue_size}
    if job.queue_size >= _WARN_FROM:
        answer["warning"] = "当前请求较多，生成时间将延长"
        if job.estimated_wait_s is not None:
            answer["estimated_wait"] = math.ceil(job.estimated_wait_s)
    return JSONResponse(answer, 202)


async def _prompt(task: Task, settings: Settings, client: AsyncClient) -> dict[str, Any]:
    """The voice or the recording, as options of the client library. Raises HttpError."""
    asked, text = task.prompt_audio, task.prompt_text
    if not asked:
        return {}
    if asked.startswith("data:"):
        recording = bodies.recording(asked, "prompt_audio")
        await requests.check_size(client, recording, "prompt_audio")
    elif asked in settings.voices or not prompts.is_file_name(asked):
        return {"voice": settings.voices.get(asked, asked)}
    else:
        # Over a far larger body the daemon would close the connection, with the streams of other customers.
        most = (await client.info()).limits["body_bytes"] if settings.prompts_folder else 0
        recording, beside = await asyncio.to_thread(prompts.read, settings.prompts_folder, asked, most)
        text = text or beside
    if not text.strip():
        raise HttpError(400, "prompt_text: what is said in prompt_audio is missing", param="prompt_text")
    return {"prompt": recording, "prompt_text": text}


async def one(request: Request) -> Response:
    """The state of a task."""
    customer = request.app.state.customers.of(request)
    id = request.path_params["id"]
    info = await request.app.state.client.job(id, on_behalf_of=customer.name)
    # Its callers read every key without asking whether it is there.
    answer: dict[str, Any] = {
        "task_id": id,
        "status": info.state,
        "queue_position": 0 if info.position is UNSET else info.position,
        "estimated_wait": 0 if info.estimated_wait_s is UNSET else math.ceil(info.estimated_wait_s),
        "progress": 0,
        "download_url": None,
    }
    if info.segments is not UNSET and info.segment is not UNSET and info.segments:
        answer["progress"] = round(100 * info.segment / info.segments)
    if info.state == "done":
        answer["progress"] = 100
        answer["download_url"] = f"/api/tts/{id}/audio"
    if info.message is not UNSET:
        answer["error"] = info.message
    return JSONResponse(answer)


audio = jobs.audio
