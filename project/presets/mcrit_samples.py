"""MCRIT's samples: what is kept of them, how they are described.

They are JSON in rows of ``project.models.Sample``, on every database and for any number of workers.
Nothing is disassembled or matched, and uploaded binaries are not kept.
"""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

from django.db.models import QuerySet
from rest_framework import serializers

from project.models import Sample

OWNER = "mcrit"
"""The owner of all samples, because MCRIT's samples have no owners."""
TIME = "%Y-%m-%dT%H-%M-%S"


class Lenient(serializers.Serializer[dict[str, Any]]):
    """Takes null as left out: so SMDA writes what it couldn't find."""

    def to_internal_value(self, data: Any) -> Any:
        """Check ``data``; raises ValidationError."""
        if isinstance(data, dict):
            data = {name: value for name, value in data.items() if value is not None}
        return super().to_internal_value(data)


class MetadataSerializer(Lenient):
    """Where a sample is from; can be changed later."""

    family = serializers.CharField(default="", allow_blank=True, max_length=64)
    version = serializers.CharField(default="", allow_blank=True, max_length=64)
    component = serializers.CharField(default="", allow_blank=True, max_length=64)
    is_library = serializers.BooleanField(default=False)
    filename = serializers.CharField(default="", allow_blank=True, max_length=500)
    binweight = serializers.FloatField(default=0)


class _Count(serializers.IntegerField):
    """A number that can be summed up and written again; Python's own have no end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(min_value=0, max_value=2**63 - 1, **options)


class ReportSerializer(Lenient):
    """What is kept of an SMDA report."""

    sha256 = serializers.RegexField(r"\A[0-9a-fA-F]{64}\Z")
    architecture = serializers.CharField(default="", allow_blank=True, max_length=64)
    base_addr = serializers.IntegerField(default=0, min_value=0, max_value=2**64 - 1)
    binary_size = _Count(default=0)
    bitness = serializers.IntegerField(default=0, min_value=0, max_value=64)
    smda_version = serializers.CharField(default="", allow_blank=True, max_length=64)
    statistics = serializers.DictField(default=dict, child=_Count())
    metadata = MetadataSerializer()


def samples() -> QuerySet[Sample]:
    """Return all samples."""
    return Sample.objects.filter(owner=OWNER)


def find(sha256: str) -> Sample | None:
    """Return the sample with this hash; the first, where two uploads at once have stored two."""
    return samples().filter(name=sha256.lower()).first()


def store(sha256: str, description: dict[str, Any], client_id: str) -> Sample:
    """Keep a sample; ``client_id`` is whose token brought it in."""
    text = json.dumps(description)
    return Sample.objects.create(name=sha256.lower(), text=text, owner=OWNER, client_id=client_id)


def change(sample: Sample, changes: dict[str, Any]) -> None:
    """Change what is kept of a sample."""
    sample.text = json.dumps({**json.loads(sample.text), **changes})
    sample.save(update_fields=["text"])


def entry_of(sample: Sample) -> dict[str, Any]:
    """Return a sample as MCRIT describes it."""
    kept = json.loads(sample.text)
    return {
        **kept,
        "sample_id": sample.pk,
        # Ids of families follow from their names; 0 is the one without a name.
        "family_id": crc32(kept["family"].encode()),
        "sha256": sample.name,
        "timestamp": sample.created_at.strftime(TIME),
    }


def job_of(sample: Sample) -> dict[str, Any]:
    """Return the job that took a sample in; it is done before anybody can ask."""
    at = sample.created_at.isoformat()
    return {
        "_id": job_id(sample),
        "number": sample.pk,
        "payload": {"method": "addBinarySample", "params": json.dumps({"0": sample.name})},
        "created_at": at,
        "started_at": at,
        "finished_at": at,
        "progress": 1,
        "attempts_left": 1,
        "terminated": False,
        "last_error": None,
        "result": job_id(sample),
        "all_dependencies": [],
    }


def job_id(sample: Sample | None) -> str:
    """Return the id of a sample's job, 24 hexadecimal digits; None: of a job without one."""
    return f"{sample.pk if sample else 0:024x}"
