"""What a frame is made of, and how fast it is reached."""

from __future__ import annotations

MEL = 80
#: The first numbers of a frame are the pitch in kHz, the next the loudness, all others what is said.
PITCH = 16
LOUDNESS = 16
#: The largest step of the ten is 0.16.
HASTE = 3.0
