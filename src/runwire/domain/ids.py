"""Fresh ids, and what names look like that become parts of subjects."""

from __future__ import annotations

import os
import time

SUBJECT_NAME = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*"
"""What a task may call a service, or a subject for messages: tokens of a NATS subject, and no wildcards."""
LONGEST_SUBJECT_NAME = 100
"""Characters of such a name."""


def uuid7() -> str:
    """A UUID version 7 (RFC 9562 section 5.7): sorts by the millisecond it was made in, 74 random bits.

    The standard library has one from Python 3.14 on.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10)) >> 6
    value = milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
