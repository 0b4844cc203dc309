"""Multi-part uploads with the minio client.

The client keeps these calls of the S3 API to itself, though parts that others send by signed URLs
cannot do without them; all use of its private names is here.
"""

import hashlib
from collections.abc import Sequence

from minio import Minio
from minio.datatypes import Part
from minio.error import S3Error


def begin(client: Minio, bucket: str, key: str) -> str:
    """Open an upload and return its id."""
    return client._create_multipart_upload(bucket, key, {})


def put_part(client: Minio, bucket: str, key: str, upload_id: str, number: int, data: bytes) -> str:
    """Store one part and return its ETag."""
    return client._upload_part(bucket, key, data, None, upload_id, number)


def complete(client: Minio, bucket: str, key: str, upload_id: str, etags: Sequence[str]) -> str:
    """Join the parts and return the object's ETag; again after success: the same.

    Raises:
        S3Error: NoSuchUpload, InvalidPart, ...
    """
    etags = [etag.strip('"') for etag in etags]
    parts = [Part(number, etag) for number, etag in enumerate(etags, start=1)]
    try:
        joined = client._complete_multipart_upload(bucket, key, upload_id, parts)
    except S3Error as error:
        if error.code != "NoSuchUpload":
            raise
        etag = _etag_if_joined(client, bucket, key, etags)
        if etag is None:
            raise
        return etag
    return joined.etag or ""


def abort(client: Minio, bucket: str, key: str, upload_id: str) -> None:
    """Drop an upload with its parts; no error when it is gone."""
    try:
        client._abort_multipart_upload(bucket, key, upload_id)
    except S3Error as error:
        if error.code != "NoSuchUpload":
            raise


def _etag_if_joined(client: Minio, bucket: str, key: str, etags: Sequence[str]) -> str | None:
    """Return the ETag of the object if it is what these parts make, by S3's rule for ETags.

    The rule: MD5 of the parts' MD5s, ``-``, number of parts. Where parts have other tags
    (server-side encryption), the number alone tells.
    """
    try:
        etag = client.stat_object(bucket, key).etag or ""
    except S3Error as error:
        if error.code == "NoSuchKey":
            return None
        raise
    try:
        digests = b"".join(bytes.fromhex(part) for part in etags)
    except ValueError:
        return etag if etag.endswith(f"-{len(etags)}") else None
    expected = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"
    return etag if etag == expected else None
