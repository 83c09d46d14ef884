"""`/v1/users`: erasing a person's data, and the certificates of what was erased.

For admins. A key of the tenant `default` reaches every tenant, as everywhere; one of another
tenant only its own. What is erased, and what becomes of adapters, is `ops.erasure`'s.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request

from ops import metrics
from ops.erasure import Erased, certificate
from ops.errors import ErasureError, NotFound, StoreError
from server.auth import DEFAULT_TENANT, Identity
from server.errors import BadRequest, Forbidden, NotFoundError, RecordUnavailable
from server.openapi import errors
from server.state import current

router = APIRouter(prefix="/v1/users", tags=["users"])

Tenant = Annotated[str | None, Query(max_length=64, description="only in this tenant")]


@router.get("/erasures", responses=errors(403, 503))
async def list_erasures(request: Request, tenant: Tenant = None) -> dict[str, Any]:
    """List the certificates of all erasures, newest first; they hold no personal text."""
    state, within = current(request), _within(request.state.identity, tenant)
    try:
        found = await asyncio.to_thread(lambda: state.eraser.certificates(tenant=within))
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error
    return {"object": "list", "data": [certificate(Erased(erasure=one)) for one in found]}


@router.delete("/{user_id:path}/data", responses=errors(400, 403, 404, 503))
async def erase_user(
    request: Request,
    user_id: str,
    tenant: Tenant = None,
    dry_run: Annotated[bool, Query(description="only count")] = False,
) -> dict[str, Any]:
    """Erase all data of a user (the `user` of requests and feedback) and return the certificate.

    `finished_at` is null while a running improvement cycle is waited for: ask again later. Adapters
    that had learned from the data are taken out of service, or kept until retrained, as set.
    """
    state, identity = current(request), request.state.identity
    within = _within(identity, tenant)
    actor = f"key:{identity.name}"
    try:
        erased = await asyncio.to_thread(
            lambda: state.eraser.erase(user_id, actor=actor, tenant=within, dry_run=dry_run)
        )
    except NotFound as error:
        raise NotFoundError(str(error), param="user_id") from error
    except ErasureError as error:
        raise BadRequest(str(error), param="tenant") from error
    except StoreError as error:
        raise RecordUnavailable(str(error)) from error
    if not dry_run and not erased.already:
        metrics.forgotten_total.labels("request").inc(erased.erasure.counts["interactions"])
    return certificate(erased)


def _within(identity: Identity, tenant: str | None) -> str | None:
    """The tenant that a key may look at; None: all of them."""
    if identity.tenant == DEFAULT_TENANT:
        return tenant
    if tenant not in (None, identity.tenant):
        raise Forbidden(f"this key reaches the tenant {identity.tenant!r} only")
    return identity.tenant
