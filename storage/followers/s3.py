"""A copy in an S3 bucket with Object Lock, which nobody can change or delete before its time: what stands in it?

::

    PREFIX entries/000000000012/000000000012345-000000000012399.jsonl    entries 12345 to 12399, one a line
    PREFIX heads/000000000012400-SHA256.note                             a signed head: its size, its note's SHA-256

An object of entries stands in the folder of the thousand in which it begins, so that a few can be listed among many.
A line is an entry's body, byte by byte as it is hashed, or the leaf hash in quotes (hex) of one whose body was pruned
before it was copied. Every object carries the log's name as metadata (``origin``).

Rules
-----
* Each object is locked by itself, in COMPLIANCE mode, until the time of its delivery plus ``retain``: what a bucket
  does by default can be changed. It is put only where nothing stands (``If-None-Match: *``), with its SHA-256, and
  acknowledged after that very version was read back: its bytes, its mode, its date.
* What stands there is compared with what comes again, in whatever batches. A bot killed between putting and noting it
  finds its object, and goes on after it.
* A lock keeps a version, not a name: who may delete can hide it, and who may put can lay another over it. The first
  version is the one that counts; whatever lies over it is said.
* After their time objects may go, the oldest first. What is missing before the first that stands is no fault.
* Credentials are found as boto3 finds them; AWS_ACCESS_KEY_ID and the like in the bot's environment come first.

The tests run against moto's server. It enforces COMPLIANCE on deletion, and If-None-Match. Five refusals it cannot
show, because it allows what S3 refuses: to shorten a COMPLIANCE date, to step down to GOVERNANCE, to suspend
versioning, to put a body that is not that of its checksum, or one that breaks off. Nor does it check rights. The
comparison finds the second; for the others S3 is relied on.
"""

from __future__ import annotations

import base64
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from storage.checkpoint import parse as parse_head
from storage.followers.seam import CopyTrouble, Item, Kind, Place
from storage.followers.wire import check_url, tls
from storage.merkle import leaf_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectVersionsOutputTypeDef

    from storage.followers.seam import SignedNote

_MOST: Final = 500  # entries in an object; so one that holds entry n begins after n - 500
_FOLDER: Final = 1000  # entries may begin in one folder
_NAME: Final = re.compile(r"([0-9]{12})/([0-9]{15})-([0-9]{15})\.jsonl", re.ASCII)
_PRUNED: Final = re.compile(rb'"([0-9a-f]{64})"')
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_PREFIX: Final = re.compile(r"([A-Za-z0-9._-]{1,100}/){0,8}", re.ASCII)
_DAYS: Final = re.compile(r"([1-9][0-9]{0,4})d", re.ASCII)
_MODE: Final = "COMPLIANCE"
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class _Object:
    """One object of entries as it is listed. ``version`` is its first; ``oddity`` says what lies over that."""

    first: int
    last: int
    key: str
    version: str
    oddity: str | None


class S3Copy:
    """The copy in ``bucket`` under ``prefix``. ``session`` are settings for boto3's session. Used by one thread."""

    is_readable = True

    def __init__(
        self,
        name: str,
        bucket: str,
        origin: str,
        *,
        prefix: str = "",
        retain: timedelta,
        endpoint: str | None = None,
        ca_file: str | None = None,
        session: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self._bucket = bucket
        self._origin = origin
        self._prefix = prefix
        self._retain = retain
        self._endpoint = endpoint
        self._ca_file = ca_file
        self._session = session or {}
        self._what = f"the bucket {bucket} of {name}"
        self._made: S3Client | None = None
        self._last: int | None = None  # the last entry that stands there; None: look first

    def __repr__(self) -> str:
        return f"S3Copy({self.name!r})"

    def deliver(self, items: Sequence[Item], head: SignedNote | None, *, now: datetime) -> int:
        """Put what is not there yet, locked; see :class:`storage.followers.seam.Copy`."""
        with self._talking() as s3:
            # 1. What stands there, and is it the same?
            if items and self._last != items[0].seq - 1:
                last = self._compare(s3, items)
            elif self._last is None:
                last = self._find_last(s3)
            else:
                last = self._last
            # 2. The rest.
            new = [item for item in items if item.seq > last]
            for at in range(0, len(new), _MOST):
                self._put_entries(s3, new[at : at + _MOST], now)
            # What stood there may go on beyond these items, and is not known then.
            self._last = new[-1].seq if new else last if not items else None
            last = max(last, items[-1].seq) if items else last
            # 3. The head, once there is an entry under it.
            if head is not None and last >= 0:
                self._put(s3, self._head_key(head), head, "text/plain; charset=utf-8", now)
        return last

    def position(self) -> int | None:
        """Return the last entry that stands there, None when nothing does."""
        with self._talking() as s3:
            last = self._find_last(s3)
        return last if last >= 0 else None

    def read(self, start: int = 0) -> Iterator[Item]:
        """Give the entries as they were first put, from ``start`` on.

        Raises CopyTrouble after the last one for what is missing in between, differs between two objects, or was laid
        over one: so that a comparison sees all that stands there.
        """
        complaint: str | None = None
        expected: int | None = None
        seen: dict[int, bytes] = {}  # leaf hashes of the last two objects' worth
        with self._talking() as s3:
            first = self._folder(max(0, start - _MOST + 1) // _FOLDER)
            folders = [folder for folder in self._folders(s3) if folder >= first]
            for found in (found for folder in folders for found in self._list(s3, folder)):
                complaint = complaint or found.oddity
                for item in self._get_entries(s3, found):
                    if expected is None or item.seq >= expected:
                        if expected is not None and item.seq > expected:
                            complaint = complaint or self._say_gap(expected, item.seq - 1)
                        expected = item.seq + 1
                        seen[item.seq] = item.leaf_hash
                        seen.pop(item.seq - 2 * _MOST, None)
                        if item.seq >= start:
                            yield item
                    elif seen.get(item.seq, item.leaf_hash) != item.leaf_hash:
                        complaint = complaint or self._say_different(item.seq)
        if complaint is not None:
            raise CopyTrouble(complaint)

    def heads(self) -> Iterator[SignedNote]:
        """Give the signed heads as they were first put, by size."""
        with self._talking() as s3:
            for key, version, _ in self._versions(s3, f"{self._prefix}heads/"):
                if version:
                    yield self._get(s3, key, version)

    # ------------------------------------------------------------------------------------ comparing

    def _compare(self, s3: S3Client, items: Sequence[Item]) -> int:
        """Compare the items with what stands there and return the last of them that does, or the one before them."""
        start, end = items[0].seq, items[-1].seq
        last = -1
        standing: dict[int, Item] = {}
        listed: list[_Object] = []
        for folder in range(max(0, start - _MOST + 1) // _FOLDER, end // _FOLDER + 1):
            listed += self._list(s3, self._folder(folder))
        for found in listed:
            if found.first > end or found.last < start - 1:
                continue
            if found.oddity is not None:
                raise CopyTrouble(found.oddity)
            last = max(last, found.last)
            if found.last >= start:
                standing |= {item.seq: item for item in self._get_entries(s3, found)}
        if last < start - 1:
            raise CopyTrouble(self._say_lost(start, self._find_last(s3)))
        for item in items:
            if item.seq > last:
                break
            if item.seq not in standing:
                raise CopyTrouble(self._say_gap(item.seq, item.seq))
            if not standing[item.seq].is_same(item):
                raise CopyTrouble(self._say_different(item.seq))
        return min(last, end)

    def _find_last(self, s3: S3Client) -> int:
        """Return the last entry that stands there, or -1."""
        # Two folders: the last object of the first may reach into the second, and beyond what stands in that.
        newest = self._folders(s3)[-2:]
        return max((found.last for folder in newest for found in self._list(s3, folder)), default=-1)

    # ------------------------------------------------------------------------------------ listing and reading

    def _folder(self, number: int) -> str:
        return f"{self._prefix}entries/{number:012d}/"

    def _folders(self, s3: S3Client) -> list[str]:
        """Return the folders of entries, in order."""
        prefix = f"{self._prefix}entries/"
        folders: list[str] = []
        for page in self._pages(s3, Prefix=prefix, Delimiter="/"):
            folders += [one["Prefix"] for one in page.get("CommonPrefixes", ())]
            for one in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                raise CopyTrouble(self._say_strange(one["Key"]))
        return sorted(set(folders))

    def _list(self, s3: S3Client, folder: str) -> Iterator[_Object]:
        """Give the objects of a folder, by their first entry."""
        for key, version, oddity in self._versions(s3, folder):
            name = _NAME.fullmatch(key.removeprefix(f"{self._prefix}entries/"))
            first, last = (int(name[2]), int(name[3])) if name else (0, -1)
            if name is None or int(name[1]) != first // _FOLDER or not first <= last < first + _MOST:
                raise CopyTrouble(self._say_strange(key))
            yield _Object(first, last, key, version, oddity)

    def _pages(self, s3: S3Client, **what: str) -> Iterator[ListObjectVersionsOutputTypeDef]:
        """List versions, not objects: a name that was deleted is not among the objects, though its version stands."""
        more: dict[str, Any] = dict(what)
        while True:
            page = s3.list_object_versions(Bucket=self._bucket, MaxKeys=_PAGE, **more)
            yield page
            if not page.get("IsTruncated"):
                return
            more["KeyMarker"] = page["NextKeyMarker"]
            more["VersionIdMarker"] = page.get("NextVersionIdMarker")
            if not more["VersionIdMarker"]:
                del more["VersionIdMarker"]

    def _versions(self, s3: S3Client, prefix: str) -> Iterator[tuple[str, str, str | None]]:
        """Give each key with its first version, and the sentence about what lies over it, if any does."""
        pending: dict[str, list[Any]] = {}  # versions by key, the newest first; a delete marker has no ETag
        for page in self._pages(s3, Prefix=prefix):
            for one in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                pending.setdefault(one["Key"], []).append(one)
            # The last key's versions may go on overleaf.
            edge = max(pending, default="")
            for key in sorted(pending):
                if key != edge:
                    yield self._first_version(key, pending.pop(key))
        for key, listed in pending.items():
            yield self._first_version(key, listed)

    def _first_version(self, key: str, listed: Sequence[Any]) -> tuple[str, str, str | None]:
        versions = [one for one in listed if "ETag" in one]
        if not versions:
            return key, "", None  # its time was over, and it was removed
        first = versions[-1]
        oddity = None
        if len(versions) < len(listed):
            oddity = (
                f"Somebody has deleted {key} in {self._what}. The locked version still stands, hidden: find out who "
                "may delete there and take that right away, then remove the delete marker."
            )
        elif any((one["ETag"], one["Size"]) != (first["ETag"], first["Size"]) for one in versions):
            oddity = (
                f"Somebody has put another version over {key} in {self._what}. The first still stands, locked: find "
                f"out who may put there. Compare with “breakglass verify --against {self.name}”."
            )
        return key, first["VersionId"], oddity

    def _get_entries(self, s3: S3Client, found: _Object) -> list[Item]:
        if not found.version:
            return []
        return self._parse(found.key, found.first, found.last, self._get(s3, found.key, found.version))

    def _get(self, s3: S3Client, key: str, version: str, until: datetime | None = None) -> bytes:
        """Read one version. Raises CopyTrouble unless it is ours, and locked, and until then."""
        answer = s3.get_object(Bucket=self._bucket, Key=key, VersionId=version)
        content = answer["Body"].read()
        origin = answer.get("Metadata", {}).get("origin")
        if origin != self._origin:
            raise CopyTrouble(
                f"{key} in {self._what} is of the log {origin or 'that names itself nowhere'}, not of {self._origin}: "
                "give this log a prefix of its own."
            )
        mode, date = answer.get("ObjectLockMode"), answer.get("ObjectLockRetainUntilDate")
        if mode is None or date is None:
            raise CopyTrouble(
                f"{key} in {self._what} shows no lock: the bucket was made without Object Lock, or the bot lacks the "
                f"right s3:GetObjectRetention. “breakglass follower setup {self.name}” prints what is needed."
            )
        if mode != _MODE or (until is not None and date < until):
            raise CopyTrouble(
                f"{key} in {self._what} is locked in {mode} mode until {date:%Y-%m-%d}, which is less than was asked "
                "for: who has changed it?"
            )
        return bytes(content)

    def _parse(self, key: str, first: int, last: int, content: bytes) -> list[Item]:
        lines = content.split(b"\n")
        if len(lines) != last - first + 2 or lines[-1] or not all(lines[:-1]):
            raise CopyTrouble(f"{key} in {self._what} does not hold the entries that its name says.")
        items = []
        for seq, line in enumerate(lines[:-1], first):
            pruned = _PRUNED.fullmatch(line)
            items.append(
                Item(seq, None, bytes.fromhex(pruned[1].decode())) if pruned else Item(seq, line, leaf_hash(line))
            )
        return items

    # ------------------------------------------------------------------------------------ putting

    def _put_entries(self, s3: S3Client, items: Sequence[Item], now: datetime) -> None:
        key = f"{self._folder(items[0].seq // _FOLDER)}{items[0].seq:015d}-{items[-1].seq:015d}.jsonl"
        content = b"".join(self._line(item) + b"\n" for item in items)
        there = self._put(s3, key, content, "application/x-ndjson", now)
        if there == content:
            return
        # Another bot's, which met the same entry before or after it was pruned.
        for ours, theirs in zip(items, self._parse(key, items[0].seq, items[-1].seq, there), strict=True):
            if not theirs.is_same(ours):
                raise CopyTrouble(self._say_different(ours.seq))

    def _line(self, item: Item) -> bytes:
        if item.body is None:
            return b'"%s"' % item.leaf_hash.hex().encode()
        if b"\n" in item.body or not item.body.startswith(b"{"):
            raise CopyTrouble(f"Entry {item.seq} is not written as an entry is, so that it is not copied.")
        return item.body

    def _head_key(self, head: SignedNote) -> str:
        try:
            size = parse_head(head).checkpoint.size
        except ValueError:
            raise CopyTrouble("The newest head is not written as a head is, so that it is not copied.") from None
        return f"{self._prefix}heads/{size:015d}-{sha256(head).hexdigest()}.note"

    def _put(self, s3: S3Client, key: str, content: bytes, content_type: str, now: datetime) -> bytes:
        """Put an object, locked, where nothing stands, and return what stands there now: this, or what did before."""
        from botocore.exceptions import ClientError  # noqa: PLC0415 - optional, see _talking

        until = (now + self._retain).replace(microsecond=0)  # S3 keeps whole seconds
        try:
            answer = s3.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=content,
                IfNoneMatch="*",
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=base64.b64encode(sha256(content).digest()).decode(),
                ObjectLockMode="COMPLIANCE",
                ObjectLockRetainUntilDate=until,
                ContentType=content_type,
                Metadata={"origin": self._origin},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            for found, version, oddity in self._versions(s3, key):
                if oddity is not None:
                    raise CopyTrouble(oddity) from None
                if found == key and version:
                    return self._get(s3, key, version)
            raise CopyTrouble(f"{self._begin} says that {key} stands there, and does not show it.") from None
        version = answer.get("VersionId")
        if not version:
            raise CopyTrouble(
                f"{self._begin} keeps no versions, so that nothing in it is locked: make a bucket with Object Lock. "
                f"“breakglass follower setup {self.name}” prints how."
            )
        if self._get(s3, key, version, until) != content:
            raise CopyTrouble(f"{key} was put into {self._what}, and comes back different: the place is damaged.")
        return content

    # ------------------------------------------------------------------------------------ talking, saying

    @contextmanager
    def _talking(self) -> Iterator[S3Client]:
        """Give the client, and make sentences of what goes wrong; whatever does, it is looked before going on."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - optional; build() asks for it

        try:
            if self._made is None:
                self._made = self._make()
            yield self._made
        except ClientError as error:
            self._last = None
            raise CopyTrouble(self._say_refusal(str(error.response.get("Error", {}).get("Code", "")))) from error
        except BotoCoreError as error:
            self._last = None
            raise CopyTrouble(self._say_silence(error)) from error
        except OSError as error:
            self._last = None
            raise CopyTrouble(f"{self._begin} broke the connection off.") from error
        except CopyTrouble:
            self._last = None
            raise

    def _make(self) -> S3Client:
        import boto3  # noqa: PLC0415 - optional; build() asks for it
        from botocore.config import Config  # noqa: PLC0415

        config = Config(
            connect_timeout=5,
            read_timeout=10,
            retries={"total_max_attempts": 2, "mode": "standard"},
            s3={"addressing_style": "path"} if self._endpoint else {},
        )
        session: dict[str, Any] = dict(self._session)
        return boto3.session.Session(**session).client(
            "s3", endpoint_url=self._endpoint, verify=self._ca_file, config=config
        )

    @property
    def _begin(self) -> str:
        return f"T{self._what[1:]}"

    def _say_refusal(self, code: str) -> str:
        """Say what S3's code means. Its message is not repeated: it may name keys and accounts."""
        setup = f"“breakglass follower setup {self.name}” prints what is needed"
        if code in {"AccessDenied", "AllAccessDisabled", "403", "AccountProblem"}:
            return f"{self._begin} does not let the bot do what it must: {setup}."
        if code in {
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "InvalidToken",
            "TokenRefreshRequired",
        }:
            return f"The bot's credentials for {self._what} are not accepted ({code}): renew them."
        if code in {"NoSuchBucket", "404", "PermanentRedirect", "AuthorizationHeaderMalformed"}:
            return f"{self._begin} is not there, or in another region ({code})."
        if code == "RequestTimeTooSkewed":
            return f"{self._begin} says that this machine's clock is wrong: set it right."
        if code in {"InvalidRequest", "InvalidBucketState", "ObjectLockConfigurationNotFoundError"}:
            return (
                f"{self._begin} does not lock objects: it must be made with Object Lock. {setup[0].upper()}{setup[1:]}."
            )
        if code in {"SlowDown", "ServiceUnavailable", "InternalError", "503", "500", "ConditionalRequestConflict"}:
            return f"{self._begin} is busy or in trouble itself ({code}); it goes on by itself."
        return f"{self._begin} refuses: {re.sub('[^A-Za-z0-9]', '', code)[:60] or 'it does not say why'}."

    def _say_silence(self, error: Exception) -> str:
        kind = type(error).__name__
        if "Credentials" in kind:
            return f"The bot has no credentials for {self._what}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        if kind == "NoRegionError":
            return f"The region of {self._what} is not known: put it down as “region”."
        if kind == "SSLError":
            return f"The certificate of the server of {self._what} is not accepted."
        if "Checksum" in kind:
            return f"{self._begin} sends bytes that are not those of their checksum: it is damaged, or what is between."
        return f"{self._begin} does not answer."

    def _say_different(self, seq: int) -> str:
        return (
            f"A different entry {seq} stands in {self._what}: the log was changed, or this is another log's. "
            f"Compare them with “breakglass verify --against {self.name}”."
        )

    def _say_strange(self, key: str) -> str:
        return (
            f"In {self._what} stands {key}, which is no part of the copy: who has put it there? "
            "Give the copy a prefix of its own."
        )

    def _say_gap(self, first: int, last: int) -> str:
        which = f"entry {first}" if first == last else f"entries {first} to {last}"
        return f"{self._begin} lacks {which}, and has later ones: an object was removed after its time, or never put."

    def _say_lost(self, start: int, last: int) -> str:
        ends = f"ends at entry {last}" if last >= 0 else "is empty"
        return (
            f"{self._begin} {ends}, though entry {start - 1} was acknowledged: it is another bucket or prefix. "
            f"Put the right one down, or fill the new one with “breakglass follower reset {self.name}”."
        )


_SETUP: Final = """\
# Run this as an administrator of the bucket's account:
aws s3api create-bucket --bucket {bucket} --object-lock-enabled-for-bucket{where}
# The bot's role or user gets this policy, and nothing else there. It can neither delete nor shorten a lock.
{policy}
"""
_RIGHTS: Final = ("s3:PutObject", "s3:PutObjectRetention", "s3:GetObjectVersion", "s3:GetObjectRetention")


def setup(place: Place) -> str:
    """Return what an administrator runs: the bucket, and the bot's rights in it."""
    bucket, prefix = place.settings["bucket"], place.settings.get("prefix", "")
    region = place.settings.get("region", "us-east-1")
    where = "" if region == "us-east-1" else f" \\\n    --create-bucket-configuration LocationConstraint={region}"
    arn = f"arn:aws:s3:::{bucket}"
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": list(_RIGHTS), "Resource": f"{arn}/{prefix}*"},
            {"Effect": "Allow", "Action": "s3:ListBucketVersions", "Resource": arn},
        ],
    }
    return _SETUP.format(bucket=bucket, where=where, policy=json.dumps(policy, indent=2))


def build(place: Place) -> S3Copy:
    """Build the copy that the policy describes."""
    try:
        import boto3  # noqa: F401, PLC0415 - optional: who has no S3 copy need not install it
    except ImportError:
        raise CopyTrouble(f"The copy {place.name} needs boto3: run pip install “breakglass[copies]”.") from None
    settings, environment = place.settings, place.environment
    bucket, prefix = settings["bucket"], settings.get("prefix", "")
    days = _DAYS.fullmatch(settings["retain"])
    if days is None or int(days[1]) > 36500:
        raise CopyTrouble(f"How long the copy {place.name} retains must be a number of days, like 400d.")
    if not _BUCKET.fullmatch(bucket):
        raise CopyTrouble(f"The copy {place.name} has no bucket's name: {bucket}.")
    if not _PREFIX.fullmatch(prefix):
        raise CopyTrouble(f"The prefix of the copy {place.name} must end with a slash, like breakglass/.")
    if "endpoint" in settings:
        check_url(f"the copy {place.name}", settings["endpoint"])
    if "ca_file" in settings:
        tls(settings["ca_file"])
    names = {
        "aws_access_key_id": "AWS_ACCESS_KEY_ID",
        "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "aws_session_token": "AWS_SESSION_TOKEN",
    }
    session = {name: environment[variable] for name, variable in names.items() if environment.get(variable)}
    if "region" in settings:
        session["region_name"] = settings["region"]
    return S3Copy(
        place.name,
        bucket,
        place.origin,
        prefix=prefix,
        retain=timedelta(days=int(days[1])),
        endpoint=settings.get("endpoint"),
        ca_file=settings.get("ca_file"),
        session=session,
    )


KIND: Final = Kind(
    keys={"bucket": True, "retain": True, "prefix": False, "region": False, "endpoint": False, "ca_file": False},
    build=build,
    setup=setup,
)
