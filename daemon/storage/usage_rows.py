"""The journal's rows of usage: what each client had spoken on each day."""

from __future__ import annotations

import sqlite3

from ..core.inputs import Spoken, UsageRow


def add(connection: sqlite3.Connection, usage: dict[tuple[str, int], Spoken], oldest: int) -> None:
    """Add amounts by client and day; rows of days before ``oldest`` go."""
    connection.executemany(
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?) ON CONFLICT (client, day) DO UPDATE SET jobs = jobs + excluded.jobs,"
        " characters = characters + excluded.characters, audio_s = audio_s + excluded.audio_s",
        [(*key, spoken.jobs, spoken.characters, spoken.audio_s) for key, spoken in usage.items()],
    )
    connection.execute("DELETE FROM usage WHERE day < ?", (oldest,))


def read(connection: sqlite3.Connection) -> list[UsageRow]:
    """All rows; those that another program has spoilt are left out."""
    found = connection.execute("SELECT client, day, jobs, characters, audio_s FROM usage ORDER BY day")
    return [
        UsageRow(client, day, Spoken(jobs, characters, audio_s))
        for client, day, jobs, characters, audio_s in found
        if isinstance(client, str)
        and all(isinstance(value, int) for value in (day, jobs, characters))
        and isinstance(audio_s, float)
    ]
