"""The OpenAPI document, made of the endpoints: FastAPI collects the models, the rest stands in each Endpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode

from runwire.domain import errors
from runwire.domain.errors import RequestError
from runwire.http.endpoint import Answer, Endpoint
from runwire.http.problems import TABLE, type_of
from runwire.http.schemas import Problem

REFERENCE = "#/components/schemas/{model}"
CHALLENGE = {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "How to authenticate (RFC 6750)."}}
RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait before the next try."}}
RATE_LIMIT = {
    "RateLimit-Policy": {"schema": {"type": "string"}, "description": "The limits: quota `q` in `w` seconds, by name."},
    "RateLimit": {"schema": {"type": "string"}, "description": "What is left (`r`), and for how many seconds (`t`)."},
}
CONTENT_RANGE = {"Content-Range": {"schema": {"type": "string"}, "description": "`bytes */SIZE` (RFC 9110)."}}
PROBLEM_HEADERS = {
    401: CHALLENGE,
    403: CHALLENGE,
    416: CONTENT_RANGE,
    429: RETRY_AFTER | RATE_LIMIT,
    503: RETRY_AFTER,
}
"""Headers of problems by status."""


def build_document(endpoints: Iterable[Endpoint], *, title: str, version: str, summary: str) -> dict[str, Any]:
    """The whole document."""
    known = list(endpoints)
    document = get_openapi(
        title=title, version=version, summary=summary, routes=[_route(endpoint) for endpoint in known]
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    bodies: list[type[BaseModel]] = [Problem]
    for endpoint in known:
        for answer in endpoint.answers.values():  # once more, as FastAPI leaves every null out of examples
            _add_schema(schemas, answer.model, "serialization")
            for data in answer.events:
                _add_schema(schemas, data, "serialization")
        operation = document["paths"][endpoint.path][endpoint.method.lower()]
        operation["responses"] = {
            status: answer
            for status, answer in operation["responses"].items()
            if int(status) in endpoint.answers or status in _problem_answers(endpoint)
        } | _problem_answers(endpoint)
        for status, answer in endpoint.answers.items():
            # FastAPI takes every answer for JSON.
            if answer.model is None and "application/json" not in (answer.content or {}):
                operation["responses"][str(status)].get("content", {}).pop("application/json", None)
        if endpoint.body is not None:
            bodies.append(endpoint.body)
        if endpoint.query is not None:
            operation["parameters"] = [*endpoint.parameters, *_query_parameters(endpoint.query, schemas)]
    for body in bodies:  # last: what a request may leave out wins where both know a model
        _add_schema(schemas, body, "validation")
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    components["securitySchemes"] = {
        "AccessToken": {"type": "http", "scheme": "bearer", "bearerFormat": "ACCESS_TOKEN_ID:ACCESS_TOKEN_SECRET"}
    }
    return document


def _add_schema(schemas: dict[str, Any], model: Any, mode: JsonSchemaMode) -> None:
    """Put the schema of a model, or of a list of one, and of what it refers to into the components."""
    for found in get_args(model) or (model,):
        if found is not None:
            schema = found.model_json_schema(ref_template=REFERENCE, mode=mode)
            schemas.update(schema.pop("$defs", {}))
            schemas[found.__name__] = schema


def _route(endpoint: Endpoint) -> APIRoute:
    """The endpoint as FastAPI documents it; requests never pass through this."""
    extra: dict[str, Any] = {"security": [{"AccessToken": []}] if endpoint.needs_token else []}
    if endpoint.parameters:
        extra["parameters"] = list(endpoint.parameters)
    if endpoint.body is not None:
        content = {kind: {"schema": {"$ref": REFERENCE.format(model=endpoint.body.__name__)}}
                   for kind in endpoint.body_types}  # fmt: skip
        extra["requestBody"] = {"required": endpoint.body_required, "content": content}
    return APIRoute(
        endpoint.path,
        endpoint.handle,
        methods=[endpoint.method],
        status_code=min(endpoint.answers),
        responses={status: _answer(answer) for status, answer in endpoint.answers.items()},
        response_model=None,
        openapi_extra=extra,
        tags=[endpoint.tag],
        summary=(endpoint.handle.__doc__ or "").partition(".")[0],
        operation_id=endpoint.handle.__name__,
    )


def _answer(answer: Answer) -> dict[str, Any]:
    documented: dict[str, Any] = {"description": answer.text, "headers": dict(answer.headers)}
    if answer.model is not None:
        documented["model"] = answer.model
        if answer.example is not None:
            documented["content"] = {answer.media_type: {"example": answer.example}}
    elif answer.content is not None:
        documented["content"] = {kind: dict(media) for kind, media in answer.content.items()}
    elif answer.media_type != "application/json":
        documented["content"] = {answer.media_type: _other_media(answer)}
    return documented


def _other_media(answer: Answer) -> dict[str, Any]:
    """A body that is no JSON. OpenAPI 3.1 has no word for the items of a stream; 3.2 calls it ``itemSchema``."""
    media: dict[str, Any] = {"schema": {"type": "string"}}
    if answer.events:
        schemas = [{"$ref": REFERENCE.format(model=data.__name__)} for data in answer.events]
        content = {"contentMediaType": "application/json",
                   "contentSchema": {"anyOf": schemas} if len(schemas) > 1 else schemas[0]}  # fmt: skip
        media["x-itemSchema"] = {
            "type": "object",
            "required": ["data"],
            "properties": {
                "event": {"type": "string"},
                "id": {"type": "string"},
                "data": {"type": "string", **content},
                "retry": {"type": "integer", "minimum": 0},
            },
        }
    if answer.example is not None:
        media["example"] = answer.example
    return media


def _problem_answers(endpoint: Endpoint) -> dict[str, Any]:
    """What can go wrong, by status; each lists its codes."""
    by_status: dict[int, list[type[RequestError]]] = {}
    for error in endpoint.all_problems:
        by_status.setdefault(TABLE[error][0], []).append(error)
    answers = {str(status): _problem_answer(status, by_status[status]) for status in sorted(by_status)}
    return answers | {"500": answers.get("500", _problem_answer(500, []))}


def _problem_answer(status: int, kinds: list[type[RequestError]]) -> dict[str, Any]:
    codes = [(kind.code, TABLE[kind][1]) for kind in kinds] or [("internal", "Internal error")]
    examples = {
        code: {
            "value": {
                "type": type_of(code), "title": title, "status": status, "detail": f"{title}.",
                "instance": "/tasks/12345", "code": code,
            }
        }
        for code, title in codes
        if code != errors.RunFailed.code  # its members are those of execute's answer
    }  # fmt: skip
    media: dict[str, Any] = {"schema": {"$ref": REFERENCE.format(model="Problem")}}
    if examples:
        media["examples"] = examples
    answer: dict[str, Any] = {
        "description": "; ".join(f"{title} (`{code}`)" for code, title in codes) + ".",
        "content": {"application/problem+json": media},
    }
    if status in PROBLEM_HEADERS:
        answer["headers"] = PROBLEM_HEADERS[status]
    return answer


def _query_parameters(model: type[BaseModel], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """A query model as OpenAPI parameters; the enums it refers to go into the components."""
    schema = model.model_json_schema(ref_template=REFERENCE)
    schemas.update(schema.get("$defs", {}))
    required = schema.get("required", [])
    parameters = []
    for name, field in schema.get("properties", {}).items():
        known = {key: value for key, value in field.items() if key not in {"description", "title"}}
        options = [option for option in known.pop("anyOf", []) if option != {"type": "null"}]
        if len(options) == 1:  # "may be left out" is `required: false` here
            known = {**options[0], **{key: value for key, value in known.items() if key != "default"}}
        parameter = {"name": name, "in": "query", "required": name in required, "schema": known}
        if "description" in field:
            parameter["description"] = field["description"]
        parameters.append(parameter)
    return parameters
