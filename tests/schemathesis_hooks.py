"""What schemathesis does to the calls it makes (tests/integration/test_openapi.py)."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import schemathesis

from runwire.http.idempotency import KEY


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """A well-formed Idempotency-Key is made a new one: the example of the document is for one request only."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and KEY.fullmatch(key):
        case.headers["Idempotency-Key"] = str(uuid4())
        case._sync_validated_hashes()  # no new kind of case: schemathesis would lose what it is meant to show
