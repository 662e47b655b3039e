"""A time stamp authority (RFC 3161): who else says that the head existed at that time?

Rules
-----
* What is stamped is the SHA-256 of the signed note, byte by byte, so that ``openssl ts -verify -data NOTE`` accepts it.
  Only the hash leaves; the answer is signed, so that TLS may be missing.
* The token is checked before it is stored: granted, over this hash, with our nonce (an old answer is no answer), by a
  certificate for time stamping that leads to the authorities in ``ca_file``. Stored is the token alone (DER).
* ``ca_file`` has the authority's root, and its certificates in between if it does not send them. What the web server's
  TLS is checked against is ``tls_ca_file``.
* The library reads DER strictly. An authority that sends several certificates in another order than DER's is asked to
  send none, once its own certificate stands in ``ca_file`` too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from storage.followers.seam import CopyTrouble, Kind, Place
from storage.followers.wire import SECONDS, Web

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from storage.followers.seam import SignedNote

_GRANTED: Final = 0


class Authority:
    """The authority at ``url``, trusted through ``certificates``."""

    kind: Literal["cosignature", "timestamp"] = "timestamp"

    def __init__(
        self,
        name: str,
        url: str,
        certificates: Sequence[x509.Certificate],
        *,
        tls_ca_file: str | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self.name = name
        self._certificates = tuple(certificates)
        self._own = next(filter(_is_stamping, certificates), None)
        self._web = Web("the time stamp authority", name, url, tls_ca_file, True, seconds)

    def anchor(
        self,
        head: SignedNote,
        *,
        before: int,  # noqa: ARG002
        consistency: Callable[[int], Sequence[bytes]],  # noqa: ARG002
        now: datetime,  # noqa: ARG002
    ) -> bytes:
        """Return the token over the head (DER); see :class:`storage.followers.seam.Notary`."""
        library = _library(self.name)
        algorithm = library.HashAlgorithm.SHA256
        request = library.TimestampRequestBuilder(head, algorithm, nonce=True, cert_req=self._own is None).build()
        answer = self._web.post(request.as_bytes(), {"Content-Type": "application/timestamp-query"})
        if answer.status != 200:
            raise self._web.refused(answer)
        if answer.content_type != "application/timestamp-reply":
            raise CopyTrouble(f"{self._what} does not answer with a time stamp: is its address right?")
        try:
            response = library.decode_timestamp_response(answer.body)
        except ValueError as error:
            if "InvalidSetOrdering" in str(error):
                raise CopyTrouble(
                    f"{self._what} sends its certificates in an order that DER does not allow: "
                    "add its own certificate to the CA file, so that it need not send any."
                ) from None
            raise CopyTrouble(f"{self._what} answers with something that is not strict DER.") from None
        if response.status != _GRANTED:
            # What it says goes into a sentence of ours, so that it is kept short and to one line.
            said = " ".join(" ".join(map(str, response.status_string)).split())[:120]
            raise CopyTrouble(
                f"{self._what} refuses to stamp (status {response.status}): {said or 'it does not say why'}."
            )
        self._check(library, request, response, head)
        return bytes(response.time_stamp_token())

    def ask(
        self,
        head: SignedNote | None,
        *,
        is_known: bool,  # noqa: ARG002
        newest: Callable[[], int],  # noqa: ARG002
        now: datetime,
    ) -> str:
        """Have something stamped and throw the token away; see :class:`storage.followers.seam.Notary`."""
        self.anchor(b"breakglass check" if head is None else head, before=0, consistency=lambda _: (), now=now)
        first = min(one.not_valid_after_utc for one in self._certificates)
        return f"It stamps, under the certificates of the CA file, the first of which ends on {first:%Y-%m-%d}."

    @property
    def _what(self) -> str:
        return f"The time stamp authority {self.name}"

    def _check(self, library: Any, request: Any, response: Any, head: SignedNote) -> None:  # noqa: ANN401
        # What the library reads lazily, it may find wrong only now: ValueError, or no attribute at all.
        verifier = library.VerifierBuilder.from_request(request)
        if self._own is not None:
            verifier = verifier.tsa_certificate(self._own)
        for certificate in self._certificates:
            if certificate == self._own:
                continue
            is_root = certificate.issuer == certificate.subject
            add = verifier.add_root_certificate if is_root else verifier.add_intermediate_certificate
            verifier = add(certificate)
        try:
            verifier.build().verify_message(response, head)
        except (library.VerificationError, ValueError, LookupError, AttributeError):
            raise CopyTrouble(
                f"The time stamp of {self.name} does not verify: it is over something else, or its certificate does "
                "not lead to the authorities in the CA file."
            ) from None


def _is_stamping(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return ExtendedKeyUsageOID.TIME_STAMPING in usage


def _library(name: str) -> Any:  # noqa: ANN401 - optional, so that it has no type here
    try:
        import rfc3161_client  # noqa: PLC0415 - optional: who has no time stamps need not install it
    except ImportError:
        raise CopyTrouble(
            f"The time stamp authority {name} needs the package rfc3161-client: run pip install “breakglass[copies]”."
        ) from None
    return rfc3161_client


def build(place: Place) -> Authority:
    """Build the authority that the policy describes."""
    settings = place.settings
    _library(place.name)
    try:
        certificates = x509.load_pem_x509_certificates(Path(settings["ca_file"]).read_bytes())
    except (OSError, ValueError):
        raise CopyTrouble(f"{settings['ca_file']} cannot be read, or holds no certificates (PEM).") from None
    if not any(one.issuer == one.subject for one in certificates):
        raise CopyTrouble(f"{settings['ca_file']} holds no root certificate (one that is its own issuer).")
    return Authority(place.name, settings["url"], certificates, tls_ca_file=settings.get("tls_ca_file"))


KIND: Final = Kind(keys={"url": True, "ca_file": True, "tls_ca_file": False}, build=build, is_notary=True)
