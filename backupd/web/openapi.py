"""The OpenAPI 3.1 document, made from the routes and their messages as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from backupd.web import messages
from backupd.web.endpoint import Answer, Api, Call, Operation, Who

__all__ = ["document", "routes"]


def routes(api: Api) -> None:
    """Register the endpoint; it tells of every route that is registered before a request."""

    @api.endpoint("GET", "/openapi.json", says="This document.", who=Who.ANYONE)
    async def openapi(call: Call) -> Answer:
        return Answer(document(api.operations))


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document of these operations."""
    kinds = {messages.Problem} | {
        kind for one in operations for kind in (one.takes, one.gives) if isinstance(kind, type)
    }
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        path = re.sub(r"<(\w+)>", r"{\1}", one.url)
        paths.setdefault(path, {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "backupd", "version": _version()},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "controlToken": {"type": "http", "scheme": "bearer"},
                "peerToken": {"type": "http", "scheme": "bearer"},
            },
        },
    }


_CONTROL: dict[str, list[str]] = {"controlToken": []}
_PEER: dict[str, list[str]] = {"peerToken": []}
_SECURITY: dict[Who, list[dict[str, list[str]]]] = {
    Who.OPERATOR: [_CONTROL],
    Who.DELETER: [_CONTROL, _PEER],
    # Without any in open mode.
    Who.ANYONE: [_CONTROL, _PEER, {}],
    Who.SENDER: [_CONTROL, _PEER, {}],
    Who.RESTORER: [_CONTROL, _PEER, {}],
}


def _operation(one: Operation) -> dict[str, Any]:
    told: dict[str, Any] = {
        "summary": one.says,
        "responses": {
            "2XX": {"description": "Done."} | _content(one.gives),
            "default": {
                "description": "A problem document (RFC 9457).",
                "content": {"application/problem+json": {"schema": _schema(messages.Problem)}},
            },
        },
    }
    names = re.findall(r"<(\w+)>", one.url)
    if names:
        told["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if one.takes is not None:
        told["requestBody"] = {"required": True} | _content(one.takes)
    if one.who in _SECURITY:
        told["security"] = _SECURITY[one.who]
    return told


def _content(kind: type[Any] | str | None) -> dict[str, Any]:
    if kind is None:
        return {}
    if isinstance(kind, str):
        return {"content": {kind: {"schema": {}}}}
    return {"content": {"application/json": {"schema": _schema(kind)}}}


def _schema(kind: type[Any]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _version() -> str:
    try:
        return version("backupd")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0"
