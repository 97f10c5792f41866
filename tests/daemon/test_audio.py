"""daemon/worker/audio.py: what a client's player gets."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest
import soundfile

from glmtts.daemon.worker import audio
from glmtts.daemon.worker.stream_encoders import stream_encoder
from glmtts.protocol.audio_formats import ENCODER_RATES, FORMATS


def tone(seconds: float = 1.0, rate: int = 24_000, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encode(audio_format: str, samples: np.ndarray, rate: int = 24_000, chunk: int = 5_000) -> bytes:
    encoder = audio.encoder(audio_format, rate)
    for start in range(0, len(samples), chunk):
        encoder.add(samples[start : start + chunk])
    return encoder.finish()


@pytest.mark.parametrize("audio_format", ["wav", "flac", "ogg", "mp3"])
def test_a_file_plays_as_long_as_loud_and_as_high_as_it_was_spoken(audio_format: str) -> None:
    samples = tone()
    decoded, rate = soundfile.read(io.BytesIO(encode(audio_format, samples)))
    assert rate == 24_000 and decoded.ndim == 1
    assert len(decoded) == pytest.approx(len(samples), abs=24)
    assert np.sqrt(np.mean(decoded**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.02)
    assert np.argmax(np.abs(np.fft.rfft(decoded))) * rate / len(decoded) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("law", ["ulaw", "alaw"])
def test_telephony_is_g711_with_a_header_or_bare(law: str) -> None:
    samples = tone(rate=8_000)
    bare, file = (encode(audio_format, samples, 8_000) for audio_format in (law, f"wav_{law}"))
    assert file[-8_000:] == bare and len(bare) == 8_000
    assert soundfile.info(io.BytesIO(file)).subtype == law.upper()
    decoded, rate = soundfile.read(io.BytesIO(file), dtype="float32")
    assert rate == 8_000 and np.abs(decoded - samples).max() < 0.02


@pytest.mark.parametrize("audio_format", FORMATS)
@pytest.mark.parametrize("seconds", [0.0, 0.05, 3.3])
def test_the_pieces_of_a_stream_are_a_file_with_the_same_sound(audio_format: str, seconds: float) -> None:
    rate = 8_000 if "law" in audio_format else 24_000
    samples = tone(seconds, rate)

    def pieces() -> list[bytes]:
        encoder = stream_encoder(audio_format, rate)
        return [encoder.add(samples[start : start + 2_400]) for start in range(0, len(samples), 2_400)] + [
            encoder.finish()
        ]

    kept = stream_encoder(audio_format, rate, keep=True)
    in_pieces = [kept.add(samples), kept.finish()]
    assert kept.whole(b"".join(in_pieces)) == (
        b"".join(in_pieces) if audio_format == "ogg" else encode(audio_format, samples, rate)
    )
    sent = pieces()
    assert sent == pieces(), "equal sound makes equal bytes"
    stream, file = b"".join(sent), encode(audio_format, samples, rate)
    if audio_format == "ogg":
        # The pages are the same but for the serial number.
        assert [page[27:] for page in audio.ogg_pages(stream)] == [page[27:] for page in audio.ogg_pages(file)]
        heard, expected = (soundfile.read(io.BytesIO(data))[0].tolist() for data in (stream, file))
        assert heard == expected
        return
    # Sizes and checksums that are known at the end alone: in the header, and in a frame without sound.
    lacks = {"wav": 44, "wav_ulaw": 44, "wav_alaw": 44, "flac": 42}.get(audio_format, 0)
    assert file.endswith(stream) if audio_format == "mp3" else stream[lacks:] == file[lacks:]
    if audio_format.startswith("wav"):
        assert soundfile.read(io.BytesIO(stream))[0].tolist() == soundfile.read(io.BytesIO(file))[0].tolist()


@pytest.mark.parametrize("rate", ENCODER_RATES["mp3"])
def test_an_mp3_stream_is_read_to_its_end_at_every_rate_though_no_frame_has_its_length(rate: int) -> None:
    encoder, samples = stream_encoder("mp3", rate), np.concatenate([tone(2.0, rate), 0.01 * tone(2.0, rate)])
    stream = encoder.add(samples) + encoder.finish()
    assert stream[0] == 0xFF and stream[1] & 0xE0 == 0xE0 and b"Info" not in stream[:64] and b"Xing" not in stream[:64]
    heard = soundfile.read(io.BytesIO(stream))[0]
    assert 4.0 <= len(heard) / rate < 4.25


@pytest.mark.parametrize(("audio_format", "seconds"), [("wav", 0.1), ("mp3", 0.1), ("ogg", 0.1), ("flac", 0.2)])
def test_the_first_piece_of_a_stream_comes_with_the_first_sound(audio_format: str, seconds: float) -> None:
    assert len(stream_encoder(audio_format, 24_000).add(tone(seconds))) > 150


def test_the_wav_header_tells_the_truth_to_a_strict_reader() -> None:
    data = encode("wav", tone(0.5))
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (
            1,
            2,
            24_000,
            12_000,
        )
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    assert int.from_bytes(data[40:44], "little") == len(data) - 44


@pytest.mark.parametrize("audio_format", FORMATS)
def test_no_sound_at_all_is_still_a_valid_file(audio_format: str) -> None:
    data = encode(audio_format, np.zeros(0, np.float32))
    if audio_format in ("wav", "flac", "ogg", "mp3", "wav_ulaw", "wav_alaw"):
        assert soundfile.info(io.BytesIO(data)).frames <= 2_000


def test_too_loud_samples_are_clipped_and_do_not_wrap_into_noise() -> None:
    loud = np.array([0.0, 1.0, -1.0, 1.5, -9.0, 0.5 / 32_767, 1e-9], np.float32)
    pcm = np.frombuffer(audio.pcm_s16le(loud), "<i2")
    assert pcm.tolist() == [0, 32_767, -32_767, 32_767, -32_768, 0, 0]
    assert np.frombuffer(audio.pcm_f32le(loud), "<f4").tolist() == loud.tolist()
    flac, _ = soundfile.read(io.BytesIO(encode("flac", loud[:5])), dtype="float32")
    assert flac[3] > 0.99 and flac[4] < -0.99


@pytest.mark.parametrize("audio_format", FORMATS)
def test_the_same_samples_are_the_same_file_every_time(audio_format: str) -> None:
    samples = tone()
    assert encode(audio_format, samples) == encode(audio_format, samples)
    assert encode(audio_format, samples) != encode(audio_format, tone(hz=441.0))


def test_every_page_of_an_ogg_file_keeps_a_valid_checksum_and_one_serial_number() -> None:
    data = encode("ogg", tone(5.0))
    serials = set()
    at = pages = 0
    while at < len(data):
        assert data[at : at + 4] == b"OggS"
        lacing_end = at + 27 + data[at + 26]
        end = lacing_end + sum(data[at + 27 : lacing_end])
        page = bytearray(data[at:end])
        stored = int.from_bytes(page[22:26], "little")
        page[22:26] = bytes(4)
        crc = 0
        for byte in page:  # RFC 3533, bit by bit
            crc ^= byte << 24
            for _ in range(8):
                crc = ((crc << 1) ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
        assert crc == stored
        serials.add(bytes(page[14:18]))
        at, pages = end, pages + 1
    assert pages > 3 and len(serials) == 1
    assert data[14:18] != encode("ogg", tone(5.0, hz=300.0))[14:18]


@pytest.mark.parametrize("audio_format", ["ogg", "mp3"])
def test_every_rate_that_the_protocol_promises_can_be_encoded(audio_format: str) -> None:
    for rate in ENCODER_RATES[audio_format]:
        assert soundfile.info(io.BytesIO(encode(audio_format, tone(0.3, rate), rate))).samplerate == rate


@pytest.mark.parametrize(
    ("requested", "default", "audio_format", "rate"),
    [
        (None, 24_000, "wav", 24_000),
        (44_100, 24_000, "wav", 44_100),
        (None, 24_000, "ogg", 24_000),
        (None, 22_050, "ogg", 24_000),
        (None, 44_100, "ogg", 48_000),
        (None, 20_000, "mp3", 22_050),
        (8_000, 24_000, "mp3", 8_000),
    ],
)
def test_without_a_wish_the_rate_is_one_that_the_format_holds(
    requested: int | None, default: int, audio_format: str, rate: int
) -> None:
    assert audio.output_rate(requested, default, audio_format) == rate


def test_a_rate_that_the_format_can_t_hold_is_refused_with_those_that_it_can() -> None:
    with pytest.raises(ValueError, match="8000, 12000, 16000, 24000, 48000"):
        audio.output_rate(44_100, 24_000, "ogg")
    with pytest.raises(ValueError, match="aiff is not one of wav"):
        audio.encoder("aiff", 24_000)


@pytest.mark.parametrize(
    ("rate", "native", "chosen"),
    [(24_000, (24_000, 32_000), 24_000), (28_000, (24_000, 32_000), 32_000), (48_000, (24_000, 32_000), 32_000)],
)
def test_speech_is_made_at_the_native_rate_that_loses_least(rate: int, native: tuple[int, ...], chosen: int) -> None:
    assert audio.native_rate(rate, native) == chosen


@pytest.mark.parametrize(("from_rate", "to_rate"), [(22_050, 24_000), (24_000, 8_000), (32_000, 44_100)])
def test_a_resampled_stream_is_the_whole_sound_however_it_was_cut(from_rate: int, to_rate: int) -> None:
    def resample(chunk: int) -> np.ndarray:
        resampler = audio.Resampler(from_rate, to_rate)
        samples = tone(1.0, from_rate)
        parts = [resampler.add(samples[start : start + chunk]) for start in range(0, len(samples), chunk)]
        return np.concatenate([*parts, resampler.finish()])

    whole = resample(from_rate)
    assert np.array_equal(whole, resample(137))
    assert len(whole) == pytest.approx(to_rate, abs=2)
    middle = slice(to_rate // 10, -to_rate // 10)
    assert np.max(np.abs(whole[middle] - tone(1.0, to_rate)[: len(whole)][middle])) < 1e-3


@pytest.mark.parametrize("audio_format", FORMATS)
@pytest.mark.parametrize("seconds", [0.0, 0.02, 1.3])
def test_how_long_a_file_is_can_be_told_from_the_file(audio_format: str, seconds: float) -> None:
    data = encode(audio_format, tone(seconds))
    assert audio.duration_s(data, audio_format, 24_000) == pytest.approx(seconds, abs=1 / 24_000)


@pytest.mark.parametrize("audio_format", FORMATS)
def test_what_is_no_file_any_more_has_no_length(audio_format: str) -> None:
    assert audio.duration_s(b"", audio_format, 24_000) == 0.0
