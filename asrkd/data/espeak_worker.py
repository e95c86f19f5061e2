"""Speaks with the espeak-ng library: run as a script, in a process of its own, never imported.

One JSON object comes in on standard input: ``library``, ``data`` (paths), ``voice``, ``rate_wpm``, ``pitch``,
``pitch_range`` (0 to 100), ``texts``. Standard output carries the sample rate and then, for each text, the number of
samples and the samples themselves; all integers little-endian, 32 bits for counts and 16 for samples. A crash of the
library ends this process alone, and what has been written says which text it was.

Only the standard library's lightest modules are used, so that a fresh process a speaker costs some 20 ms. It must be
fresh: the library's pitch jitter runs on from one text to the next and even survives its re-initialisation.
"""

import ctypes
import json
import os
import struct
import sys

_SYNCHRONOUS = 2  # speak within the call; the asynchronous mode waits ten times longer than it works
_NO_EXIT = 0x8000
_RATE, _PITCH, _RANGE = 1, 3, 4
_UTF8 = 1


def main() -> int:
    request = json.load(sys.stdin)
    # Whatever the C library prints must not end up among the samples.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    library = ctypes.CDLL(request["library"])
    rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(request["data"]), _NO_EXIT)
    if rate_hz <= 0:
        print(f"espeak-ng cannot start with the data in {request['data']}", file=sys.stderr)
        return 3
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath is noise, seeded by the clock otherwise
    callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    pieces: list[bytes] = []

    def collect(samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = callback_type(collect)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    if library.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        print(f"espeak-ng has no voice {request['voice']!r}", file=sys.stderr)
        return 3
    for parameter, key in ((_RATE, "rate_wpm"), (_PITCH, "pitch"), (_RANGE, "pitch_range")):
        library.espeak_SetParameter(parameter, int(request[key]), 0)

    out.write(struct.pack("<I", rate_hz))
    for text in request["texts"]:
        pieces.clear()
        data = text.encode()
        library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        speech = b"".join(pieces)
        out.write(struct.pack("<I", len(speech) // 2) + speech)
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
