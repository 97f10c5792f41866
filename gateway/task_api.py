"""``/api/tts``: tasks with a place in the queue, in the words of a widely copied Flask service for GLM-TTS."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glmtts.client import AsyncClient, QueueFull, RateLimited, ShuttingDown
from glmtts.client.errors import Unavailable

from . import bodies, jobs, requests

#: Tasks before the new one from which on the answer warns of a wait.
_WARN_FROM = 4


class Task(Struct, kw_only=True):
    """The body of ``POST /api/tts``. ``prompt_audio``: the name of a voice, or a recording as a ``data:`` URI."""

    input_text: str
    prompt_audio: str = ""
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
    options: dict[str, Any] = {
        "format": "wav",
        "sample_rate": task.sample_rate,
        "on_behalf_of": customer.name,
        "durable": True,
    }
    if task.prompt_audio.startswith("data:"):
        options["prompt"] = bodies.recording(task.prompt_audio, "prompt_audio")
        await requests.check_size(client, options["prompt"], "prompt_audio")
        options["prompt_text"] = task.prompt_text
    elif task.prompt_audio:
        options["voice"] = task.prompt_audio
    try:
        job = await client.submit(task.input_text, **options)
    except RateLimited as error:
        headers = {"retry-after": str(int(error.retry_after_s or 1) + 1)}
        return JSONResponse({"error": "请求过于频繁，请稍后再试", "code": 429}, 429, headers)
    except (QueueFull, Unavailable, ShuttingDown):
        return JSONResponse({"error": "系统繁忙，请稍后再试", "code": 503}, 503)
    client.leave(job)
    answer: dict[str, Any] = {"message": "任务已提交", "task_id": job.id, "queue_size": job.queue_size}
    if job.position >= _WARN_FROM:
        answer["warning"] = "当前请求较多，生成时间将延长"
        if job.estimated_wait_s is not None:
            answer["estimated_wait"] = round(job.estimated_wait_s)
    return JSONResponse(answer, 202)


async def one(request: Request) -> Response:
    """The state of a task."""
    customer = request.app.state.customers.of(request)
    id = request.path_params["id"]
    info = await request.app.state.client.job(id, on_behalf_of=customer.name)
    answer: dict[str, Any] = {"task_id": id, "status": info.state}
    if info.position is not UNSET:
        answer["queue_position"] = info.position
    if info.estimated_wait_s is not UNSET:
        answer["estimated_wait"] = round(info.estimated_wait_s)
    if info.segments is not UNSET and info.segment is not UNSET and info.segments:
        answer["progress"] = round(100 * info.segment / info.segments)
    if info.state == "done":
        answer["progress"] = 100
        answer["download_url"] = f"/api/tts/{id}/audio"
    if info.message is not UNSET:
        answer["error"] = info.message
    return JSONResponse(answer)


audio = jobs.audio
