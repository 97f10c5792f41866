"""The kind of a file by its first bytes, and WAV files whose header was never finished.

The daemon itself uses it: nothing here decodes, or imports numpy.
"""

from __future__ import annotations

import struct

ACCEPTED = "send a WAV, FLAC, OGG or MP3 file"
CONVERT = "convert it, for example with `ffmpeg -i FILE -ac 1 recording.wav`"
_BAD = "the recording can't be decoded"

#: What people send instead, by the bytes at an offset.
_CONTAINERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media (WMA) file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"ADIF", "an AAC file"),
    (0, b"caff", "a Core Audio (CAF) file"),
    (0, b".snd", "an AU file"),
    (0, b"riff\x2e\x91\xcf\x11", "a Wave64 file"),
    (0, b"wvpk", "a WavPack file"),
    (0, b"MAC ", "a Monkey's Audio (APE) file"),
    (0, b"TTA1", "a TTA file"),
    (0, b"DSD ", "a DSD file"),
    (0, b"Creative Voice File", "a VOC file"),
    (0, b"FLV\x01", "a Flash video"),
    (0, b"\x00\x00\x01\xba", "an MPEG video"),
    (8, b"AIFF", "an AIFF file"),
    (8, b"AIFC", "an AIFF file"),
    (8, b"AVI ", "an AVI video"),
)
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"MThd", "a MIDI file, which has notes and no sound"),
    (b"%PDF", "a PDF file"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"GIF8", "a picture (GIF)"),
    (b"PK\x03\x04", "a ZIP file, to be unpacked first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file, to be unpacked first"),
    (b"Rar!", "a RAR file, to be unpacked first"),
    (b"\x1f\x8b", "a gzip file, to be unpacked first"),
    (b"\x7fELF", "a program"),
)
#: ISO base media files: the brand, at byte 8, and what people call the file.
_BRANDS = {
    b"M4A": "an M4A file",
    b"M4B": "an M4A file",
    b"qt ": "a QuickTime (MOV) file",
    b"3gp": "a 3GP file",
    b"3g2": "a 3GP file",
}


def recording_ending(data: bytes) -> str:
    """The file name ending by the first bytes: ``.wav``, ``.flac``, ``.ogg``, ``.mp3``, or ``""`` for none of them."""
    if data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE":
        return ".wav"
    if data[:4] == b"fLaC":
        return ".flac"
    if data[:4] == b"OggS":
        return ".ogg"
    # ISO/IEC 11172-3: eleven bits set begin a frame, then no reserved version and layer III; ID3v2 tags come before it.
    frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2 and data[1] & 0x18 != 0x08
    return ".mp3" if data[:3] == b"ID3" or frame else ""


def not_a_recording(data: bytes) -> str:
    """Why a file without a :func:`recording_ending` can't be decoded, and what to do."""
    if not data:
        return f"the recording is empty (0 bytes); {ACCEPTED}"
    if not any(data[:4096]):
        return f"the recording begins with {min(len(data), 4096)} zero bytes: it was not written to the end; {ACCEPTED}"
    if data[:10].lstrip(b"\x02").startswith(b"#!SILK"):
        return f"{_BAD}: it is a SILK file, as WeChat's voice messages are; {ACCEPTED}: convert it with a SILK decoder"
    other = next((name for begin, name in _OTHERS if data.startswith(begin)), "") or _text(data)
    if other:
        return f"{_BAD}: it is {other}; {ACCEPTED}"
    if name := _container(data):
        return f"{_BAD}: it is {name}; {ACCEPTED}: {CONVERT}"
    return f"{_BAD}: it is no WAV, FLAC, OGG or MP3 file; if there is sound in it, {CONVERT}"


def _container(data: bytes) -> str:
    for offset, magic, name in _CONTAINERS:
        if data[offset : offset + len(magic)] == magic:
            return name
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:11], "an MP4 file")
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "a WebM file" if b"webm" in data[:64] else "a Matroska (MKV) file"
    # An ADTS frame (ISO/IEC 13818-7), and layer II of MPEG audio.
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return "an AAC file"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE4:
        return "an MP2 file"
    return "an MPEG transport stream" if data[:1] == b"\x47" and data[188:189] == b"\x47" else ""


def _text(data: bytes) -> str:
    """The name of a kind of text, or ``""``."""
    begin = data[:1024]
    if begin[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "a text file (UTF-16)"
    begin = begin.removeprefix(b"\xef\xbb\xbf").lstrip()
    # The cut may go through a character.
    if any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in begin) or not begin.decode(errors="ignore"):
        return ""
    lower = begin.lower()
    if lower.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML), perhaps the error page of a download"
    if lower.startswith((b"<?xml", b"<")):
        return "an XML file"
    if lower.startswith((b"{", b"[")):
        return "a JSON file"
    if begin.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (`git lfs pull` fetches the file itself)"
    if begin.startswith((b"data:", b"UklGR", b"SUQz", b"T2dnUw", b"ZkxhQ", b"//u", b"//v")):
        return "Base64 text, to be decoded first"
    try:
        begin.decode()
    except UnicodeDecodeError as error:
        if error.start < len(begin) - 4:
            return ""
    return "a text file"


def with_true_size(data: bytes) -> bytes:
    """A WAV file as it would be had its recorder ended it; any other file as it is.

    A recorder that is killed, or that writes to a pipe, leaves the size of the samples at 0 or at what it was a while
    ago. The samples go to the end of the file then: no other chunk follows. libsndfile itself copes with sizes that are
    too large.
    """
    order = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">"}.get(data[:4], "")
    if not order or data[8:12] != b"WAVE":
        return data
    at = 12
    long_size: int | None = None
    while at + 8 <= len(data):
        name, size = struct.unpack_from(f"{order}4sI", data, at)
        if name == b"ds64" and at + 24 <= len(data):
            long_size = struct.unpack_from("<Q", data, at + 16)[0]
        if name == b"data":
            break
        at += 8 + size + size % 2
    else:
        return data
    rest = len(data) - at - 8
    if data[:4] == b"RF64":
        if long_size != 0:
            return data
    elif size >= rest or _is_chunk(data, at + 8 + size + size % 2, order):
        return data
    repaired = bytearray(data)
    if data[:4] == b"RF64":
        repaired[:4] = b"RIFF"
    struct.pack_into(f"{order}I", repaired, 4, len(data) - 8)
    struct.pack_into(f"{order}I", repaired, at + 4, rest)
    return bytes(repaired)


def _is_chunk(data: bytes, at: int, order: str) -> bool:
    """Whether a chunk that fits begins at ``at``, or the file ends there."""
    if len(data) - at < 8:
        return True
    name, size = struct.unpack_from(f"{order}4sI", data, at)
    return all(32 <= byte < 127 for byte in name) and bool(name.strip()) and size <= len(data) - at - 8
