"""`GET /v1/models`, `/health`, `/metrics` and `/openapi.json`, which describe the model and the server's state."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from rorqual.serve.metrics import ServerSnapshot
from rorqual.serve.openapi import openapi_document
from rorqual.serve.service import Service

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """Return the descriptions of the models that the tenant may use."""
    service: Service = request.app.state.service
    return JSONResponse({"object": "list", "data": service.model_cards(request.state.tenant)})


@router.get("/v1/models/{name:path}")  # names may contain a slash, as on the Hugging Face hub
async def model(request: Request, name: str) -> Response:
    """Return the description of a model, or a 404 error if the tenant has no model called `name`."""
    service: Service = request.app.state.service
    return JSONResponse(service.model_card(name, request.state.tenant))


@router.get("/health")
async def health(request: Request) -> Response:
    """Return status 200 if the engine is ready, or 503 while the engine is loading or restarting."""
    alive = all(bridge.alive for bridge in request.app.state.service.bridges)
    return JSONResponse({"status": "ok" if alive else "loading"}, status_code=200 if alive else 503)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """Return the OpenAPI document of this server."""
    return JSONResponse(openapi_document(request.app.state.service))


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return metrics for Prometheus. A tenant gets only the tenant's own metrics; the operator gets the metrics of all
    tenants."""
    service: Service = request.app.state.service
    bridges = service.bridges
    running, waiting = service.active_requests()
    stats = {
        f"{name}{key}": one for name, bridge in zip(("", "teacher_"), bridges) for key, one in bridge.stats.items()
    }
    tenant: str = request.state.tenant
    only = None if tenant == service.operator or len({*service.keys.tenants.values()}) == 1 else tenant
    now = ServerSnapshot(
        alive=all(bridge.alive for bridge in bridges),
        restarts=sum(bridge.restarts for bridge in bridges),
        running=running,
        waiting=waiting,
        stats=stats,
        more=await service.more_metrics(only),
    )
    return PlainTextResponse(service.metrics.prometheus_text(now, only), media_type="text/plain; version=0.0.4")
