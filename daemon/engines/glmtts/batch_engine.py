"""The engine for many jobs at once, and the order of the work in each of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from glmtts.protocol.worker import MAX_SUSPENDED

from ... import malloc
from ..base import BatchEngine, Broken, Ended, Event, Handle, Piece, Reference, Spoken, Utterance
from .batch_job import BatchJob, Segment
from .device import slot_bytes, slots_for
from .models import Models, check_pending, transcript_of
from .text import check_speakable
from .text_tasks import Prepared

#: The flow model does a step more between two tokens for each further segment that waits for it, at most this many.
_MOST_FLOW_STEPS = 3
#: While segments of batch jobs wait for the flow model, at most this many of urgent jobs begin before one of theirs.
_MOST_URGENT = 4


class BatchedGlmttsEngine(Models, BatchEngine):
    """Draws a token for all jobs at once; flow model and vocoder take one segment at a time.

    The constructor raises the exceptions of Models, and UpstreamError for a model that only upstream's code can run.
    """

    experimental = 'batching = "on" in [engine.glmtts]'

    def __init__(self, settings: dict[str, Any], *, slots: int = 0, vram_share: float, **given: Any) -> None:
        """``slots``: the most jobs at once; 0: as many as the settings and the memory allow."""
        super().__init__(settings, vram_share=vram_share, **given)
        # Torch is imported now, and its device chosen.
        import torch

        from . import flow_batch, llm_batch, sampling

        self._llm_batch, self._flow_batch, self._draws = llm_batch, flow_batch, sampling.Draws
        llm = self._upstream.llm
        found = slots_for(settings["slots"], slot_bytes(llm.llama.config, settings["dtype"]), share=vram_share)
        self.slots = min(found, slots or found)
        # It applies to the language model too, so it is set before a step of that is captured.
        flow_batch.set_precision(settings["flow_precision"])
        self._llm = llm_batch.BatchedLlm(llm, rows=self.slots, parked=MAX_SUSPENDED, warn=self._warn)
        self._flow = flow_batch.Flow(self._upstream.flow)
        self._longest_prompt = int(self._upstream.inference.MAX_LLM_SEQ_INP_LEN)
        on_cpu = self._upstream.device.type == "cpu"
        # Equal bytes are likely on a GPU too, but were not seen yet.
        self.repeats = on_cpu
        self._wait_for_gpu: Callable[[], None] = (lambda: None) if on_cpu else torch.cuda.synchronize
        self._cuts_clause = settings["stream"] == "clause"
        parts = [f"{self.slots}slots", settings["dtype"], settings["flow_precision"], settings["stream"]]
        self.version = f"{self.version}+{'.'.join(parts)}"
        self._jobs: dict[BatchJob, None] = {}
        self._events: list[Event] = []
        self._steps = self._urgent_begun = 0

    # --- the contract

    def begin(self, utterance: Utterance) -> BatchJob:
        reference, choices = self._checked(utterance)
        job = BatchJob(utterance, choices, time.monotonic())
        job.transcript = self._front_end.ask_transcript(reference.text)
        self._ask(job, utterance.text)
        self._jobs[job] = None
        return job

    def advance(self) -> list[Event]:
        self._events = []
        self._front_end.poll()
        self._one_voice()
        flowing = self._most_needed()
        self._steps += 1
        others = sum(len(job.flowing) for job in self._active) - 1
        if flowing is None or self._steps % (1 + min(max(others, 0), _MOST_FLOW_STEPS)) == 0:
            self._draw_tokens()
        if flowing is not None:
            self._attempt(flowing, self._flow_on)
        if (joining := self._llm.joining) is not None:
            owner = next(job for job in self._jobs if job.reading is joining)
            self._attempt(owner, self._take_in)
        now = time.monotonic()
        for job in self._active:
            self._attempt(job, self._go_on)
            if job.flowing and job is not flowing:
                job.waits(now)
        self.record("", ())
        return self._events

    def idle_s(self) -> float | None:
        has_room = self._llm.has_room
        if any(job.has_work(has_room=has_room) for job in self._jobs):
            return 0.0
        return self._front_end.idle_s() if self._jobs else None

    def fileno(self) -> int:
        return self._front_end.fileno()

    def suspend(self, handle: Handle) -> None:
        self._set_suspended(handle, suspended=True)

    def resume(self, handle: Handle) -> None:
        self._set_suspended(handle, suspended=False)

    def cancel(self, handle: Handle) -> None:
        if isinstance(handle, BatchJob) and handle in self._jobs:
            self._drop(handle)

    @property
    def settled(self) -> bool:
        # The language model allocates nothing after its start.
        return not any(segment.run is not None for job in self._jobs for segment in job.flowing)

    # --- jobs

    @property
    def _active(self) -> list[BatchJob]:
        return [job for job in self._jobs if not job.suspended]

    def _set_suspended(self, handle: Handle, *, suspended: bool) -> None:
        assert isinstance(handle, BatchJob)
        handle.suspended = suspended
        handle.said_waits = False
        if handle.reading is not None:
            (self._llm.hold if suspended else self._llm.go_on)(handle.reading)

    def _drop(self, job: BatchJob) -> None:
        del self._jobs[job]
        for pending in (job.transcript, job.text):
            if pending is not None:
                self._front_end.drop(pending)
        if job.reading is not None:
            self._llm.leave(job.reading)
        job.reading = job.read_segment = None
        job.flowing.clear()
        # Tensors of changing sizes fragment the heap.
        malloc.trim()

    def _attempt(self, job: BatchJob, work: Callable[[BatchJob], None]) -> None:
        """Do ``work`` for one job; an exception ends the job."""
        if job not in self._jobs:
            return
        try:
            work(job)
        except Exception as error:
            self._break(job, error)

    def _break(self, job: BatchJob, error: Exception) -> None:
        self._drop(job)
        self._events.append(Broken(job, error))

    def _timed(self, job: BatchJob, segment: Segment | None, stage: str, work: Callable[[], Any]) -> Any:
        """Do a stage of one job alone, note it for the flight recorder, and charge the job for it."""
        self.record(stage, (job.utterance.job,))
        begun = time.monotonic()
        made = work()
        # An error on a GPU must come now: in the next stage, other jobs would be blamed. Its time would be theirs too.
        self._wait_for_gpu()
        now = time.monotonic()
        job.move(now)
        job.charge(segment, now - begun, self._max_segment_s)
        return made

    # --- voices and texts

    def _one_voice(self) -> None:
        """Extract the features of one recording, or find them in the cache: it takes some tenths of a second."""
        for job in self._active:
            if job.voice is None and job.transcript is not None and job.transcript.ended:
                self._attempt(job, self._hear)
                return

    def _hear(self, job: BatchJob) -> None:
        utterance, pending = job.utterance, job.transcript
        assert utterance.reference is not None and pending is not None
        reference: Reference = utterance.reference
        said = transcript_of(pending)
        voice = self._timed(
            job, None, "voice", lambda: self._voices.features(reference, said, utterance.sample_rate, lambda: None)
        )
        job.voice, job.transcript = voice, None
        job.history.append((voice.text_tokens[0].tolist(), list(voice.speech_tokens)))

    def _ask(self, job: BatchJob, text: str) -> None:
        job.text_is_all = not job.whole
        job.whole += text
        check_speakable(job.whole)
        cut_clause = self._cuts_clause and job.text_is_all
        job.text = self._front_end.ask(text, use_phoneme=job.choices.use_phoneme, cut_clause=cut_clause)
        job.counted = False

    def _go_on(self, job: BatchJob) -> None:
        """Begin the job's next segment, ask for more of its text, or find that it has ended."""
        pending = job.text
        if pending is not None:
            # The text is cut into segments; each text is counted once.
            if pending.texts is not None and not job.counted:
                job.counted = True
                job.known += len(pending.texts)
                job.expect(sum(map(len, pending.texts)))
            if job.may_read and (self._llm.has_room or not pending.ready):
                if (prepared := pending.take()) is not None:
                    self._read(job, prepared)
                elif pending.ended:
                    check_pending(pending, is_all=job.text_is_all)
                    self._front_end.drop(pending)
                    job.text = None
            if not job.in_flight and job.text is not None:
                job.waits(time.monotonic())
        if job.text is None and not job.complete:
            more = job.utterance.more
            text = more() if more is not None else None
            if text:
                job.said_waits = False
                self._ask(job, text)
            elif text is None:
                job.complete = True
            elif not job.in_flight and not job.said_waits:
                job.said_waits = True
                waiting = Piece(np.zeros(0, np.float32), job.spoken, job.known, False, waits=True)
                self._events.append(Spoken(job, waiting))
        if job.complete and not job.in_flight:
            self._drop(job)
            self._events.append(Ended(job))

    # --- the language model

    def _read(self, job: BatchJob, prepared: Prepared) -> None:
        """Give a segment to the language model, seeded as upstream seeds each."""
        import torch

        llm = self._upstream.llm
        said, spoken = job.prompt(prepared.tokens, self._longest_prompt)
        ids = [*said, *prepared.tokens, llm.boa, *(llm.ats + token for token in spoken)]
        wanted = job.most(len(prepared.tokens))
        most = self._llm_batch.fit(len(ids), wanted)
        if most < wanted:
            self._warn(
                f"a segment of job {job.utterance.job} may have {most} tokens instead of {wanted}: its prompt of "
                f"{len(ids)} leaves no room for more in a slot"
            )
        generator = torch.Generator().manual_seed(job.utterance.seed)
        draws = self._draws(job.choices.sampling, job.choices.top_k, generator, 2 * len(prepared.tokens))
        job.reading = self._llm_batch.Reading(job.utterance.job, ids, draws, most)
        job.read_segment = Segment(prepared.tokens, generator, [])
        self._llm.join(job.reading)

    def _take_in(self, job: BatchJob) -> None:
        reading = job.reading
        assert reading is not None
        self._timed(job, job.read_segment, "prefill", lambda: self._llm.take_in(reading))
        self._look_at_reading(job)

    def _draw_tokens(self) -> None:
        """One token for every job whose segment is in the language model."""
        live = {id(reading) for reading in self._llm.live}
        if not live:
            return
        jobs = [job for job in self._jobs if id(job.reading) in live]
        self.record("decode", [job.utterance.job for job in jobs])
        begun = time.monotonic()
        self._llm.step()
        now = time.monotonic()
        for job in jobs:
            job.move(now)
            self._attempt(job, lambda job: self._drawn(job, (now - begun) / len(jobs)))

    def _drawn(self, job: BatchJob, seconds: float) -> None:
        job.charge(job.read_segment, seconds, self._max_segment_s)
        self._look_at_reading(job)

    def _look_at_reading(self, job: BatchJob) -> None:
        """Hand the job's segment to the flow model, if all its tokens are drawn."""
        reading, segment = job.reading, job.read_segment
        assert reading is not None and segment is not None
        if reading.error is not None:
            raise reading.error
        if not reading.ended:
            return
        if reading.cut_off:
            self._warn(f"a segment was cut off after {reading.most} tokens; the model had not ended it")
        job.reading = job.read_segment = None
        segment.tokens = [token - self._upstream.llm.ats for token in reading.draws.tokens]
        if job.choices.use_cache:
            job.history.append((segment.text_tokens, segment.tokens))
        job.flowing.append(segment)

    # --- flow model and vocoder

    def _most_needed(self) -> BatchJob | None:
        """The job for the flow model's next step.

        A segment that is begun is finished first. Then comes an urgent job, and of these the one with the least audio
        ahead; of the others, one in its turn.
        """
        now = time.monotonic()
        waiting = [job for job in self._active if job.flowing]
        begun = [job for job in waiting if job.flowing[0].run is not None]
        urgent = [job for job in waiting if job.is_urgent(now)]
        if not begun and 0 < len(urgent) < len(waiting):
            self._urgent_begun = (self._urgent_begun + 1) % (_MOST_URGENT + 1)
            if self._urgent_begun == 0:
                urgent = [job for job in waiting if job not in urgent]
        return min(begun or urgent or waiting, key=lambda job: job.ahead_s(now), default=None)

    def _flow_on(self, job: BatchJob) -> None:
        """Do a step of the flow model, or the vocoder after the last."""
        segment, voice, rate = job.flowing[0], job.voice, job.utterance.sample_rate
        assert voice is not None
        if segment.run is None:
            segment.run = self._timed(
                job, segment, "flow", lambda: self._flow.start(segment.tokens, voice, rate, segment.generator)
            )
            return
        run = segment.run
        if run.mel is None:
            self._timed(job, segment, "flow", run.step)
            return
        vocoder = self._upstream.vocoders[rate].vocoder
        samples = self._timed(
            job, segment, "vocoder", lambda: self._flow_batch.vocode(vocoder, run.mel, segment.generator)
        )
        job.flowing.popleft()
        if not job.spoken:
            job.first_audio_at = time.monotonic()
        job.audio_s += len(samples) / rate
        self._events.append(Spoken(job, Piece(samples, job.spoken, job.known, ends_segment=True)))
        job.spoken += 1
