"""What a call of the client may end with instead of an answer.

::

    ClientError
      Problem           the adapter refused the call: `code`, `status`, `detail`, `errors`
      RunFailed         the run ended as ERROR, and the caller asked to be told so: `code`, `message`, `run`
      NotFinished       the caller's wait is over, the run is not (a TimeoutError)
      NoAnswer          no adapter answered within the client's timeout (a TimeoutError)
      DownloadDamaged   the file that came is not the one that was stored
      NoToken           there is no access token to call with

and of the bus

::

      CommandRefused    the broker did not store the command: `code`, `run`
      OutcomeUnknown    the broker did not say whether it stored the command: `run` (a NoAnswer)
      NotLetIn          the broker does not let the token in
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from runwire.domain.errors import FieldError, RunwireError


class ClientError(RunwireError):
    """Whatever a method of the client raises about a call."""


class Problem(ClientError):
    """The adapter refused the call (RFC 9457)."""

    code: str
    """Stable, snake_case: see ``/problems``. ``http_<status>`` when the answer is somebody else's, on the way."""
    status: int
    """The HTTP status."""
    detail: str
    """A sentence for people."""
    errors: tuple[FieldError, ...]
    """Of invalid input: what is wrong with which field."""
    members: Mapping[str, Any]
    """Everything that the problem says."""
    retry_after: float | None
    """Seconds after which another try is worth it; None: not said."""

    def __init__(self, answer: httpx.Response) -> None:
        """Take the problem from an answer that has been read."""
        self.members = _members(answer)
        self.status = answer.status_code
        self.code = str(self.members.get("code", f"http_{answer.status_code}"))
        self.detail = str(
            self.members.get("detail", f"the adapter answered {answer.status_code} {answer.reason_phrase}")
        )
        self.errors = tuple(_field(error) for error in self.members.get("errors", ()) if isinstance(error, dict))
        after = answer.headers.get("retry-after", "")
        self.retry_after = float(after) if after.isascii() and after.isdecimal() else None
        super().__init__(self.detail)

    def __str__(self) -> str:
        fields = "; ".join(f"{e.pointer or e.parameter or 'body'}: {e.detail}" for e in self.errors)
        return f"{self.detail} {fields}".strip()


def _members(answer: httpx.Response) -> dict[str, Any]:
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return {}
    try:
        members = answer.json()
    except ValueError:
        return {}
    return members if isinstance(members, dict) else {}


def _field(error: Mapping[str, Any]) -> FieldError:
    return FieldError(
        detail=str(error.get("detail", "")), pointer=error.get("pointer"), parameter=error.get("parameter")
    )


class RunFailed(ClientError):
    """The run ended as ERROR."""

    def __init__(self, code: str, message: str, *, run: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        """Why: the stable code of the run's error."""
        self.message = message
        """Why, in words."""
        self.run = run
        """Id of the run."""


class NotFinished(ClientError, TimeoutError):
    """The caller did not want to wait any longer. The run, if there is one, goes on."""

    code = "not_finished"

    def __init__(self, message: str, *, run: str | None) -> None:
        super().__init__(message)
        self.run = run
        """Id of the run that goes on; None: not known, it may or may not have been accepted."""


class NoAnswer(ClientError, TimeoutError):
    """No adapter answered for as long as the client was told to try; whether the call took effect is not known."""

    code = "no_answer"


class DownloadDamaged(ClientError):
    """The bytes that came do not have the digest of the file. Nothing is left of them."""

    code = "download_damaged"


class NoToken(ClientError):
    """No access token was given, none is in RUNWIRE_TOKEN, and none is kept on this machine."""

    code = "no_token"


class CommandRefused(ClientError):
    """The broker did not store the command; nothing will run."""

    def __init__(self, code: str, message: str, *, run: str) -> None:
        super().__init__(message)
        self.code = code
        """``task_busy``: another command of the task is queued or running; ``not_accepted``: anything else."""
        self.run = run
        """Id the run would have had."""


class OutcomeUnknown(NoAnswer):
    """Nobody said whether the command was stored. Published again with the same run id, it is one run."""

    code = "outcome_unknown"

    def __init__(self, message: str, *, run: str) -> None:
        super().__init__(message)
        self.run = run
        """Id to publish it again with."""


class NotLetIn(ClientError):
    """The broker does not let the token into the chain, or nobody is there to answer its login."""

    code = "not_let_in"
