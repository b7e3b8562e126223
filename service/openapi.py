"""The description of a service's interface (OpenAPI 3.1), made of the same table that reads the requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .requests import FIELDS, UPLOAD
from .videos import VARIANTS

if TYPE_CHECKING:
    from .service import Service

_PATHS: dict[str, dict[str, str]] = {
    "/v1/videos": {"post": "Queue a clip.", "get": "List clips, the newest first (`after`, `limit`, `order`)."},
    "/v1/videos/sync": {"post": "Make a clip and answer with its mp4. A client that leaves cancels it."},
    "/v1/videos/{id}": {"get": "How far a clip is.", "delete": "Cancel a clip, or remove it with its files."},
    "/v1/videos/{id}/content": {"get": f"The finished clip (`variant`: {', '.join(VARIANTS)})."},
    "/v1/videos/{id}/preview": {"get": "A picture of the clip while it is sampled."},
    "/v1/videos/{id}/events": {"get": "Server-sent events: the clip, each time it has changed."},
    "/v1/models": {"get": "The models that are offered."},
    "/v1/models/{id}": {"get": "One model."},
    "/ltxkit/plan": {"get": "The memory that a clip takes (`model`, `size`, `num_frames` or `seconds`, `fps`)."},
    "/healthz": {"get": "Whether jobs are made, and why not: 200 or 503."},
    "/metrics": {"get": "Numbers for Prometheus."},
    "/prompt": {"post": "Queue a graph in ComfyUI's API format."},
    "/history/{id}": {"get": "What a graph has saved."},
    "/view": {"get": "A file that a graph has saved (`filename`, `subfolder`, `type`)."},
    "/queue": {"get": "Graphs that run and wait.", "post": "Take graphs from the queue (`delete`, `clear`)."},
    "/interrupt": {"post": "Stop the graph that runs."},
    "/upload/image": {"post": "Upload a picture or clip for loading nodes."},
}


def document(service: Service) -> dict[str, Any]:
    """The description as JSON values."""
    from ..ltx_core.pipelines.doctor import version

    fields: dict[str, Any] = {name: {**field.schema, "description": field.help} for name, field in FIELDS.items()}
    fields["model"]["enum"] = [*service.catalog.models]
    fields[UPLOAD] = {
        "type": "string",
        "format": "binary",
        "description": "A picture or clip that the clip begins with: a file of a form, or, in JSON, "
        '{"image_url": "data:image/png;base64,..."}.',
    }
    request = {"type": "object", "required": ["prompt"], "properties": fields, "additionalProperties": False}
    body = {
        "required": True,
        "content": {kind: {"schema": request} for kind in ("multipart/form-data", "application/json")},
    }
    paths: dict[str, Any] = {}
    for path, methods in _PATHS.items():
        paths[path] = {}
        for method, summary in methods.items():
            operation: dict[str, Any] = {
                "summary": summary,
                "responses": {"default": {"description": "JSON, or a file."}},
            }
            if "{id}" in path:
                operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
            if method == "post" and path.startswith("/v1/videos"):
                operation["requestBody"] = body
            paths[path][method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "LTXKit", "version": version(), "description": "Clips by LTX-Video."},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}] if service.token else [],
    }
