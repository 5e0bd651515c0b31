"""MCRIT's URLs, answers and errors."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from xml.etree import ElementTree as ET

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, QueryDict
from django.urls import URLPattern, path
from django.utils.cache import patch_vary_headers
from django.views.decorators.http import require_http_methods

from project.presets.mcrit_samples import (
    MetadataSerializer,
    ReportSerializer,
    change,
    entry_of,
    find,
    job_id,
    job_of,
    samples,
    store,
)
from tokenauth.client_info import read_client_info
from tokenauth.exceptions import Code
from tokenauth.responses import Refusal

logger = logging.getLogger(__name__)

_SHA256 = re.compile("[0-9a-fA-F]{64}")
_JOB = re.compile("[0-9a-fA-F]{24}")
VERSION = "1.9.0"
"""The version of MCRIT whose API this is."""
_TEXTS = {
    Code.NOT_AUTHENTICATED: (
        "API token required",
        "Please provide an auth token as part of the request.",
    ),
    Code.INVALID_TOKEN: (
        "Authentication required",
        "The provided API token is not valid. Please request a new token and try again.",
    ),
}


def error_format(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Format a refusal as MCRIT does: in JSON, or in XML if the client prefers it."""
    other = (f"{refusal.status} {HTTPStatus(refusal.status).phrase}", refusal.detail)
    title, description = _TEXTS.get(refusal.code, other)
    try:
        chosen = request.get_preferred_type(["application/json", "text/xml", "application/xml"])
    except ValueError:  # Django decodes parameters (RFC 2231) as the client says.
        chosen = None
    if chosen in {None, "application/json"}:
        return {"title": title, "description": description}, "application/json"
    error = ET.Element("error")
    ET.SubElement(error, "title").text = title
    ET.SubElement(error, "description").text = description
    return ET.tostring(error, encoding="utf-8", xml_declaration=True), chosen


def vary_on_accept(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Any:
    """Add ``Vary: Accept``, because errors are JSON or XML."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        patch_vary_headers(response, ["Accept"])
        return response

    return middleware


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Answer unknown paths."""
    return JsonResponse({"title": "404 Not Found"}, status=404)


def successful(data: Any, status: int = 200) -> JsonResponse:
    """Return ``data`` in MCRIT's envelope."""
    return JsonResponse({"status": "successful", "data": data}, status=status)


def failed(message: str, status: int) -> JsonResponse:
    """Return what went wrong in MCRIT's envelope."""
    return JsonResponse({"status": "failed", "data": {"message": message}}, status=status)


def welcome(request: HttpRequest) -> HttpResponse:
    """Say hello."""
    return successful({"message": "Welcome to MCRIT"})


def status(request: HttpRequest) -> HttpResponse:
    """Return the numbers of samples, families and functions."""
    entries = [entry_of(sample) for sample in samples()]
    report = {
        "db_state": len(entries),
        "db_timestamp": entries[-1]["timestamp"] if entries else None,
        "storage_type": "django",
        "num_samples": len(entries),
        "num_families": len({entry["family_id"] for entry in entries}),
        "num_functions": sum(entry["statistics"].get("num_functions", 0) for entry in entries),
        "num_bands": 0,
        "num_pichashes": 0,
    }
    return successful({"status": report})


def version(request: HttpRequest) -> HttpResponse:
    """Return the version of MCRIT whose API this is."""
    return successful({"version": VERSION})


def recompute_family_stats(request: HttpRequest) -> HttpResponse:
    """Accept a POST without a body; the preset has no statistics to recompute."""
    return successful(job_id(None))


def list_samples(request: HttpRequest) -> HttpResponse:
    """Return the samples from the id ``start`` on, ``limit`` of them; 0: all."""
    found = samples().filter(pk__gte=_number(request, "start"))
    limit = _number(request, "limit")
    chosen = found[:limit] if limit else found
    return successful({sample.pk: entry_of(sample) for sample in chosen})


def add_report(request: HttpRequest) -> HttpResponse:
    """Take in an SMDA report."""
    try:
        serializer = ReportSerializer(data=_json(request))
    except ValueError:
        return failed("Could not process JSON.", 400)
    if not serializer.is_valid():
        return failed("Could not process JSON.", 400)
    report = dict(serializer.validated_data)
    if (known := find(report["sha256"])) is not None:
        return successful({"existed": True, "sample_info": entry_of(known)})
    sha256, metadata = report.pop("sha256"), report.pop("metadata")
    sample = store(sha256, {**report, **metadata}, _client_id(request))
    added = {"existed": False, "sample_info": entry_of(sample), "job_id": job_id(sample)}
    return successful(added)


def add_binary(request: HttpRequest) -> HttpResponse:
    """Store the description of a binary: the raw body of any type, never in memory as a whole."""
    serializer = MetadataSerializer(data=request.GET.dict())
    if not serializer.is_valid():
        return failed("The parameters can't be used.", 400)
    digest, size = hashlib.sha256(), 0
    while chunk := request.read(2**16):
        digest.update(chunk)
        size += len(chunk)
    if not size:
        return failed("POST request without body can't be processed.", 400)
    if (known := find(digest.hexdigest())) is not None:
        return failed(f"Conflict: Binary already exists as sample with ID: {known.pk}.", 409)
    description = {
        "architecture": "",
        "base_addr": 0,
        "binary_size": size,
        "bitness": 64 if request.GET.get("bitness") == "64" else 32,
        "smda_version": "",
        "statistics": {},
        **serializer.validated_data,
    }
    sample = store(digest.hexdigest(), description, _client_id(request))
    return successful(job_id(sample), 202)


def get_sample(request: HttpRequest, sample_id: int) -> HttpResponse:
    """Return a sample; MCRIT's client asks this to know whether there is one."""
    sample = samples().filter(pk=sample_id).first()
    if sample is None:
        return failed("We don't have a sample with that id.", 404)
    return successful(entry_of(sample))


def get_sample_by_hash(request: HttpRequest, sha256: str) -> HttpResponse:
    """Return the sample with this hash."""
    if not _SHA256.fullmatch(sha256):
        return failed("No valid SHA256 provided.", 400)
    sample = find(sha256)
    if sample is None:
        return failed("We don't have a sample with that SHA256.", 404)
    return successful(entry_of(sample))


def put_sample(request: HttpRequest, sample_id: int) -> HttpResponse:
    """Change where a sample is from, as a form or JSON says."""
    sample = samples().filter(pk=sample_id).first()
    changes = _changes(request)
    if sample is None or changes is None:
        return failed("Failed to modify sample.", 400)
    change(sample, changes)
    return successful({"message": "Sample modified."}, 202)


def delete_sample(request: HttpRequest, sample_id: int) -> HttpResponse:
    """Forget a sample."""
    deleted, _ = samples().filter(pk=sample_id).delete()
    if not deleted:
        return failed("Failed to delete sample.", 400)
    return successful(data=True, status=202)


def list_jobs(request: HttpRequest) -> HttpResponse:
    """Return the jobs, newest first."""
    start, limit = _number(request, "start"), _number(request, "limit")
    found = samples().order_by("-pk")[start : start + limit if limit else None]
    return successful([job_of(sample) for sample in found])


def job_stats(request: HttpRequest) -> HttpResponse:
    """Count the jobs."""
    states = dict.fromkeys(("queued", "failed", "in_progress", "terminated"), 0)
    return successful({"addBinarySample": {**states, "finished": samples().count()}})


def get_job(request: HttpRequest, job: str) -> HttpResponse:
    """Return a job, null where there is none."""
    if not _JOB.fullmatch(job):
        return failed("Valid JobIDs are hexstrings with 24 characters.", 400)
    sample = samples().filter(pk=int(job, 16)).first()
    return successful(None if sample is None else job_of(sample))


def _client_id(request: HttpRequest) -> str:
    principal = getattr(request, "tokenauth", None)
    return principal.client_id if principal else "anonymous"


def _number(request: HttpRequest, name: str) -> int:
    """Return a number in the query string; 0 where there is none that makes sense."""
    text = request.GET.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < len("1000000000") else 0


def _json(request: HttpRequest) -> Any:
    """Return the request's JSON; raises ValueError where it is none."""
    try:
        return json.loads(request.body, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("too deep") from None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _changes(request: HttpRequest) -> dict[str, Any] | None:
    """Return the changes of a PUT; None if they are invalid."""
    try:
        is_json = request.content_type == "application/json"
        values = _json(request) if is_json else QueryDict(request.body).dict()
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    if "family_name" in values:
        values["family"] = values.pop("family_name")
    serializer = MetadataSerializer(data=values, partial=True)
    return serializer.validated_data or None if serializer.is_valid() else None


def at(
    route: str, resource: str, suffix: str = "", **handlers: Callable[..., HttpResponse]
) -> list[URLPattern]:
    """Return a route's patterns, with and without a slash at its end, as MCRIT takes both.

    Each method has its handler. Calls are logged as MCRIT does, under its names for them; the
    user in the log is who the client says that it calls for.
    """

    @require_http_methods([method.upper() for method in handlers])
    def view(request: HttpRequest, **kwargs: Any) -> HttpResponse:
        method = str(request.method).lower()
        response = handlers[method](request, **kwargs)
        logger.info(
            "%s - %s.%s - %s.",
            read_client_info(request).claimed_actor or "anonymous",
            resource,
            "_".join(filter(None, ("on", method, suffix))),
            "success" if response.status_code < HTTPStatus.BAD_REQUEST else "failed",
        )
        return response

    name = ".".join(filter(None, (resource, suffix)))
    return [path(place, view, name=name) for place in (route, f"{route}/") if place != "/"]


handler404 = not_found
urlpatterns = [
    *at("", "StatusResource", get=welcome),
    *at("status", "StatusResource", "status", get=status),
    *at("version", "StatusResource", "version", get=version),
    *at(
        "recompute_family_stats",
        "StatusResource",
        "recompute_family_stats",
        post=recompute_family_stats,
    ),
    *at("samples", "SampleResource", "collection", get=list_samples, post=add_report),
    *at("samples/binary", "SampleResource", "submit_binary", post=add_binary),
    *at(
        "samples/<int:sample_id>",
        "SampleResource",
        get=get_sample,
        put=put_sample,
        delete=delete_sample,
    ),
    *at("samples/sha256/<str:sha256>", "SampleResource", "by_sha256", get=get_sample_by_hash),
    *at("jobs", "JobResource", "collection", get=list_jobs),
    *at("jobs/stats", "JobResource", "stats", get=job_stats),
    *at("jobs/<str:job>", "JobResource", get=get_job),
]
