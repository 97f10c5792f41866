"""Whether eSpeak NG loads in the workers' interpreter."""

from __future__ import annotations

from ..checks import Check, EngineChecks, Workplace, ask, ok, wrong

_TIMEOUT_S = 14.0

_LOAD = """
import ctypes, json, espeakng_loader
library = ctypes.CDLL(espeakng_loader.get_library_path())
library.espeak_Info.restype = ctypes.c_char_p
rate = library.espeak_Initialize(2, 0, str(espeakng_loader.get_data_path()).encode(), 0x8000)
print(json.dumps({"version": library.espeak_Info(None).decode(), "rate": rate}))
"""


class EspeakChecks(EngineChecks):
    """Loads the library of the package espeakng-loader."""

    def installed(self, place: Workplace) -> list[Check]:
        return self.packages(place)

    def packages(self, place: Workplace) -> list[Check]:
        answer = ask(place.python, _LOAD, timeout_s=_TIMEOUT_S)
        if not isinstance(answer, str) and int(answer["rate"]) > 0:
            return [ok("eSpeak NG", f"{answer['version']}, {answer['rate']} Hz")]
        seen = answer if isinstance(answer, str) else "its library or its data can't be loaded"
        remedy = f"{place.python} -m pip install espeakng-loader"
        return [wrong("eSpeak NG", seen, "the engine 'espeak' can't speak", remedy)]
