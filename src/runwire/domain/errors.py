"""Everything that can go wrong, as a tree; each leaf has a stable ``code``.

::

    RunwireError
      SetupError              a setting, a port, a directory: one line on the CLI
        BrokerUnreachable       it may work later
      RequestError            what a caller did or met; http/problems.py maps it to a status
        BadRequest              what came is not HTTP
        RequestTimeout          the headers or the body did not come in time
        TargetTooLong, HeadersTooLarge
        TooManyConnections      this adapter serves as many connections as it may: try again
        MalformedId             the id in the path is no task or run id
        MalformedKey            the Idempotency-Key is not one
        MalformedEventId        the Last-Event-ID is not one
        MalformedIfMatch        the If-Match header is no list of entity tags
        MalformedBody           the body is no JSON
        MalformedHost           the Host header cannot be part of an address
        BodyTooLarge            more bytes than accepted
        InvalidFields           the body is JSON, but not what is asked for
        Unauthenticated         no valid access token
        Forbidden               the token's access level or chains do not allow it
        TaskNotFound, RunNotFound, TokenNotFound, DeadLetterNotFound, SubscriptionNotFound, ProblemNotFound
        TaskBusy                the task is already queued or running
        KeyReused               the Idempotency-Key was used with another request
        NotRunning              there is no run to cancel, or it is another one
        Stale                   the task is not the version that If-Match asks for
        IdTaken                 a task with this id exists
        OwnToken                a token cannot shut itself out
        NotACommand             a dead letter that is an event cannot be replayed
        ReplyTooLarge           on the bus: what was asked for does not fit into a message
        NotAWebHook             a subscription that is pulled has neither secret nor receiver
        TooManySubscriptions    the token, or the chain, has as many subscriptions as it may
        RateLimited             the token, or the chain, has made too many calls: later
        TooManyOutstanding      the chain has too many runs queued or running: later
        NotAccepted             it is not known to be stored: try again
        BrokerAway              the broker does not answer, and the read model alone cannot tell: try again
        NoDownload              the task has no exported file to download
        LinkInvalid             a download link that was not signed here
        LinkExpired             a download link that is too old
        FileGone                a good link, but the file is no longer kept
        RangeUnsatisfiable      the wanted range begins after the end of the file
        RunFailed               the run ended as ERROR, and the caller asked for a failing status
        Draining                this adapter is stopping: try again
        TooManyStreams          this adapter serves as many event streams as it may: try again, or another one
        TooManyDownloads        this adapter serves as many downloads as it may: try again, or another one
      Conflict                somebody else appended to the task first
      Undecodable             a message of the bus that is not what its subject promises
      Retry, Fail             what an action raises to say how it ended

Codes of a *run* that ended badly (``run.error.code``) are in :mod:`runwire.domain.run`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


class RunwireError(Exception):
    """Something runwire knows by name."""

    code = "internal"


class SetupError(RunwireError):
    """The process cannot start or go on as configured; the message is one line for people."""

    code = "setup"


class BrokerUnreachable(SetupError):
    """The broker does not answer at the start; another try later may work."""

    code = "broker_unreachable"


class RequestError(RunwireError):
    """A request that cannot be carried out; the message is a sentence the caller may read."""

    chain: int | None = None
    """The chain whose audit trail tells of the refusal, where one does; None: each that the token reaches."""


class BadRequest(RequestError):
    """What came is not HTTP, or not in a way it is spoken here."""

    code = "bad_request"


class RequestTimeout(RequestError):
    """The headers or the body did not come in time. Nothing was done."""

    code = "request_timeout"


class TargetTooLong(RequestError):
    """Path and query are longer than accepted."""

    code = "target_too_long"


class HeadersTooLarge(RequestError):
    """The headers are more, or larger, than accepted."""

    code = "headers_too_large"


class TooManyConnections(RequestError):
    """This adapter serves as many connections as it may."""

    code = "too_many_connections"


class MalformedId(RequestError):
    """The id in the path is not a positive integer, or not a run id."""

    code = "malformed_id"


class MalformedKey(RequestError):
    """The Idempotency-Key header is not 1 to 255 visible ASCII characters."""

    code = "malformed_idempotency_key"


class MalformedEventId(RequestError):
    """The Last-Event-ID header is not the id of an event: a number, or two with a dash between them."""

    code = "malformed_event_id"


class MalformedIfMatch(RequestError):
    """The If-Match header is neither ``*`` nor a list of entity tags (RFC 9110 section 13.1.1)."""

    code = "malformed_if_match"


class MalformedBody(RequestError):
    """The body is not JSON."""

    code = "malformed_body"


class MalformedHost(RequestError):
    """The Host header is missing, or cannot be part of an address."""

    code = "malformed_host"


class BodyTooLarge(RequestError):
    """The body, or the task that would come of it, is larger than accepted."""

    code = "body_too_large"


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One invalid field: ``pointer`` is a JSON pointer into the body, or ``parameter`` names a query parameter."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class InvalidFields(RequestError):
    """The request is well formed, but fields are missing, unknown or out of range."""

    code = "invalid_fields"

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("The request has invalid fields.")
        self.errors = errors


class Unauthenticated(RequestError):
    """No valid access token. ``attempted`` is False when the call carried no credential at all."""

    code = "unauthenticated"

    def __init__(self, *, attempted: bool) -> None:
        super().__init__("A valid access token is required: Authorization: Bearer ID:SECRET.")
        self.attempted = attempted


class Forbidden(RequestError):
    """The token is valid, but does not allow this here. ``needs`` names the missing scope."""

    code = "forbidden"

    def __init__(self, message: str, *, needs: str, chain: int | None = None) -> None:
        super().__init__(message)
        self.needs = needs
        self.chain = chain


class TaskNotFound(RequestError):
    """No such task for this token; the same answer when it is another chain's, which ``chain`` then names."""

    code = "task_not_found"

    def __init__(self, message: str, *, chain: int | None = None) -> None:
        super().__init__(message)
        self.chain = chain


class RunNotFound(RequestError):
    """No such run of this task."""

    code = "run_not_found"


class TokenNotFound(RequestError):
    """No such access token for this one; the same answer when it reaches other chains only."""

    code = "token_not_found"


class DeadLetterNotFound(RequestError):
    """No such dead letter for this token; the same answer when it is another chain's, which ``chain`` then names."""

    code = "dead_letter_not_found"

    def __init__(self, message: str, *, chain: int | None = None) -> None:
        super().__init__(message)
        self.chain = chain


class SubscriptionNotFound(RequestError):
    """No such subscription for this token; the same when it is somebody else's, of this ``chain``."""

    code = "subscription_not_found"

    def __init__(self, message: str, *, chain: int | None = None) -> None:
        super().__init__(message)
        self.chain = chain


class ProblemNotFound(RequestError):
    """No such kind of problem."""

    code = "problem_not_found"


class TaskBusy(RequestError):
    """The task is already queued or running. ``run`` is the run it is busy with."""

    code = "task_busy"

    def __init__(self, run: str) -> None:
        super().__init__(f"The task is already queued or running: run {run}.")
        self.run = run


class KeyReused(RequestError):
    """The caller used this Idempotency-Key with another request before."""

    code = "key_reused"


class NotRunning(RequestError):
    """The task has no run that could be cancelled, or another one than the caller named."""

    code = "not_running"


class Stale(RequestError):
    """The task has changed since the caller read it. ``version`` is the one it has now."""

    code = "stale"

    def __init__(self, version: int) -> None:
        super().__init__(f"The task has changed: it is at version {version}.")
        self.version = version


class IdTaken(RequestError):
    """A task with the wanted id exists, in this chain or another."""

    code = "id_taken"


class RateLimited(RequestError):
    """More calls than allowed. ``retry_after`` is in seconds: then there is room for one more."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyOutstanding(RequestError):
    """The chain has as many runs queued or running as it may have. ``retry_after`` is in seconds."""

    code = "too_many_outstanding"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoDownload(RequestError):
    """The task has no exported file; the message says why."""

    code = "no_download"


class LinkInvalid(RequestError):
    """The link was not signed here, or not like this. The same sentence whatever is wrong with it."""

    code = "link_invalid"

    def __init__(self) -> None:
        super().__init__("This link is not valid.")


class LinkExpired(RequestError):
    """The link was signed here, but too long ago."""

    code = "link_expired"

    def __init__(self) -> None:
        super().__init__("This link has expired.")


class FileGone(RequestError):
    """The link is good, but its file is no longer kept."""

    code = "file_gone"

    def __init__(self) -> None:
        super().__init__("The file is no longer kept.")


class RangeUnsatisfiable(RequestError):
    """No byte of the wanted range exists. ``size`` is that of the whole file."""

    code = "range_unsatisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(f"The file has {size:,} bytes; the range lies beyond.")
        self.size = size


class OwnToken(RequestError):
    """A token is not deactivated or deleted by a call that it authenticates: nobody locks themselves out."""

    code = "own_token"


class NotACommand(RequestError):
    """The dead letter is an event that a web hook did not take: it asks for no run."""

    code = "not_a_command"


class ReplyTooLarge(RequestError):
    """On the bus: the answer does not fit into a message of the broker."""

    code = "reply_too_large"


class NotAWebHook(RequestError):
    """A subscription that is pulled has no secret to rotate, and no receiver that could be gone."""

    code = "not_a_web_hook"


class TooManySubscriptions(RequestError):
    """The token, or the chain, has as many subscriptions as it may."""

    code = "too_many_subscriptions"


class NotAccepted(RequestError):
    """It is not known to be stored. The same call with the same Idempotency-Key may be repeated."""

    code = "not_accepted"


class BrokerAway(RequestError):
    """The broker does not answer. Nothing was changed."""

    code = "broker_unavailable"


class RunFailed(RequestError):
    """The run ended as ERROR. Only raised for ``?on_error=status``; ``facts`` goes into the answer."""

    code = "task_failed"

    def __init__(self, message: str, *, facts: dict[str, object], headers: dict[str, str]) -> None:
        super().__init__(message)
        self.facts = facts
        self.headers = headers


class Draining(RequestError):
    """This adapter is stopping and takes nothing new."""

    code = "draining"


class TooManyStreams(RequestError):
    """This adapter serves as many event streams as it may."""

    code = "too_many_streams"


class TooManyDownloads(RequestError):
    """This adapter serves as many downloads as it may."""

    code = "too_many_downloads"


class Conflict(RunwireError):
    """An append was refused: the task's last event is not the one the writer had read."""

    code = "conflict"


class Undecodable(RunwireError):
    """A message of the bus that is not what its subject promises; the message says why."""

    code = "undecodable"


class Retry(RunwireError):
    """Raised by an action: it did not work this time, try again (within the task's ``retry.attempts``).

    ``after`` is in seconds; None leaves the delay to the task's ``retry.backoff``. ``code`` is what the run ends with
    when this was its last try, and what ``retry.on`` goes by.
    """

    code = "handler_error"

    def __init__(
        self,
        message: str = "The action asked to be tried again.",
        *,
        after: float | None = None,
        code: str = "handler_error",
    ) -> None:
        """Raise ValueError unless ``code`` has 1 to 64 small letters, digits and ``_``."""
        super().__init__(message)
        self.after = after
        self.code = _checked(code)


class Fail(RunwireError):
    """Raised by an action: the run has failed for good. ``code`` is snake_case and stable, callers may rely on it."""

    def __init__(self, code: str, message: str = "") -> None:
        """Raise ValueError unless ``code`` has 1 to 64 small letters, digits and ``_``."""
        super().__init__(message or code)
        self.code = _checked(code)


def _checked(code: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]{1,64}", code):
        msg = f"{code!r} is no error code: 1 to 64 small letters, digits and _"
        raise ValueError(msg)
    return code
