"""A copy in a syslog server or SIEM: how is an entry sent there, and what is known of its arrival?

An entry is one RFC 5424 message over TLS, framed by octet counting (RFC 5425)::

    <109>1 AT HOST breakglass - EVENT [breakglass@32473 origin="…" seq="…" leafHash="…" request="…"] BODY

BODY is the entry's body, byte by byte as it is hashed, and so without a byte order mark (MSG-ANY). A pruned entry has
``pruned="true"`` and no body. A signed head has the event ``log:head``, its size, and the note in base64: receivers
escape line feeds. 109 is "log audit, notice"; 32473 is the enterprise number set aside for documents (RFC 5612).

Rules
-----
* Syslog has no acknowledgement. An entry counts as delivered when the receiver's machine has taken every byte of the
  connection (Linux tells), and the connection still stands. What its process had not stored by then, it may lose.
* So the newest messages are kept here, and sent again after every connection that broke, before anything new: a
  receiver that was killed, or restarted, gets them twice rather than not at all. They are lost only if the bot goes
  down too before its next delivery. Who must be certain requires a copy of another kind.
* A receiver whose disk is full may go on taking messages and drop them (rsyslog does). After making room restart it:
  that brings the newest again; what is older comes with “breakglass follower reset”.
* Idempotent at the receiver: an entry is known by ``origin`` and ``seq``, and comes again as the same bytes, whichever
  bot sends it. One that comes with another ``leafHash`` is another log, or a rewritten one.
* The receiver must take messages of 128 kB: one that cuts them (rsyslog does at 8 kB unless told) keeps no evidence.
* What it holds cannot be read back, so that it cannot be compared here.
"""

from __future__ import annotations

import array
import base64
import fcntl
import re
import select
import ssl
import termios
from collections import deque
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from storage.audit import parse
from storage.checkpoint import parse as parse_head
from storage.followers.seam import CopyTrouble, Item, Kind, NotReadable, Place
from storage.followers.wire import SECONDS, Deadline, connect, say, send, tls

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from storage.followers.seam import SignedNote

_PRIORITY: Final = 13 * 8 + 5  # log audit, notice
_ID: Final = "breakglass@32473"
_KEPT_MESSAGES: Final = 1000
_KEPT_FOR: Final = timedelta(minutes=15)  # by then a receiver has stored it; heartbeats show sooner that it was down
_KEPT_BYTES: Final = 8 * 1024 * 1024  # more than the buffers between two machines hold
_MOST_TICKETS: Final = 64  # that are read away at once: one that talks without end does not keep us
_LOOK: Final = 5  # milliseconds between two looks at what is still on its way
_NOT_PRINTABLE: Final = re.compile("[^!-~]")


class SyslogCopy:
    """The receiver at ``host`` and ``port``. Used by one thread at a time."""

    is_readable = False

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        origin: str,
        *,
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self.name = name
        self._address = (host, port)
        self._origin = origin
        self._files = (ca_file, cert_file, key_file)
        self._seconds = seconds
        self._what = f"the syslog receiver {name} ({host})"
        self._connected: socket.socket | None = None
        self._newest: deque[tuple[datetime, bytes]] = deque()  # frames that were sent, and perhaps not stored
        self._newest_bytes = 0
        tls(*self._files)

    def deliver(self, items: Sequence[Item], head: SignedNote | None, *, now: datetime) -> int:
        """Send them, after what may have been lost before; see :class:`storage.followers.seam.Copy`."""
        frames = [_frame(self._entry(item)) for item in items]
        if head is not None:
            frames.append(_frame(self._head(head)))
        deadline = Deadline(self._seconds)
        try:
            # 1. A connection that the receiver ended may have taken messages down with it.
            if self._connected is not None and self._is_ended(self._connected):
                self.close()
            if self._connected is None:
                self._connected = connect(*self._address, tls(*self._files), deadline)
                send(self._connected, b"".join(frame for _, frame in self._newest), deadline)
            # 2. What is new.
            send(self._connected, b"".join(frames), deadline)
            # 3. Has it arrived?
            self._settle(self._connected, deadline)
        except OSError as error:
            self.close()
            raise CopyTrouble(say(self._what, error)) from error
        except CopyTrouble:
            self.close()
            raise
        self._keep(frames, now)
        return items[-1].seq if items else -1

    def position(self) -> int | None:
        """Raise NotReadable."""
        raise NotReadable(f"The syslog receiver {self.name} cannot be asked what it holds.")

    def read(self, start: int = 0) -> Iterator[Item]:  # noqa: ARG002
        """Raise NotReadable."""
        raise NotReadable(f"The syslog receiver {self.name} cannot be read back.")

    def close(self) -> None:
        """Let go of the connection; the next delivery makes another, and sends the newest messages again."""
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    # ------------------------------------------------------------------------------------ the connection

    def _is_ended(self, connected: socket.socket) -> bool:
        """Whether the receiver has ended the connection. What it sends (session tickets) is read away."""
        connected.settimeout(0)
        try:
            for _ in range(_MOST_TICKETS):
                if not connected.recv(4096):
                    return True
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            return True
        return False

    def _settle(self, connected: socket.socket, deadline: Deadline) -> None:
        """Wait until the receiver's machine has taken every byte. OSError when the connection ends before."""
        waiting = array.array("i", [0])
        looking = select.poll()  # not select(), which takes no file number above 1023
        looking.register(connected, select.POLLIN)
        while True:
            if self._is_ended(connected):
                raise ConnectionResetError
            try:
                fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, waiting)
            except OSError:
                return  # only Linux tells of a socket
            if waiting[0] == 0:
                return
            deadline.left()
            looking.poll(_LOOK)

    def _keep(self, frames: Sequence[bytes], now: datetime) -> None:
        self._newest.extend((now, frame) for frame in frames)
        self._newest_bytes += sum(map(len, frames))
        while self._newest and (
            len(self._newest) > _KEPT_MESSAGES
            or self._newest_bytes > _KEPT_BYTES
            or now - self._newest[0][0] > _KEPT_FOR
        ):
            self._newest_bytes -= len(self._newest.popleft()[1])

    # ------------------------------------------------------------------------------------ the messages

    def _entry(self, item: Item) -> bytes:
        at, event, data = "-", "-", {"origin": self._origin, "seq": str(item.seq), "leafHash": item.leaf_hash.hex()}
        if item.body is None:
            data["pruned"] = "true"
        else:
            try:
                record = parse(item.body)
            except ValueError:
                pass  # sent as it stands: what is wrong with it is the verifier's to say
            else:
                at, event = record.at.isoformat().replace("+00:00", "Z"), record.event
                if record.request_id is not None:
                    data["request"] = record.request_id
        return self._message(at, event, data, item.body or b"")

    def _head(self, note: SignedNote) -> bytes:
        data = {"origin": self._origin}
        with suppress(ValueError):
            data["size"] = str(parse_head(note).checkpoint.size)
        return self._message("-", "log:head", data, base64.b64encode(note))

    def _message(self, at: str, event: str, data: dict[str, str], message: bytes) -> bytes:
        """Compose a message. Nothing of the moment or of this machine is in it, so that it is always the same."""
        host = _NOT_PRINTABLE.sub("", self._origin.partition("/")[0])[:255] or "-"
        told = " ".join([_ID, *(f'{name}="{_escaped(value)}"' for name, value in data.items())])
        line = f"<{_PRIORITY}>1 {at} {host} breakglass - {event[:32]} [{told}]"
        return line.encode() + (b" " + message if message else b"")


def _frame(message: bytes) -> bytes:
    return b"%d %s" % (len(message), message)


def _escaped(value: str) -> str:
    return re.sub(r'(["\\\]])', r"\\\1", value)


_SETUP: Final = """\
# rsyslog, /etc/rsyslog.d/30-breakglass.conf; needs the package rsyslog-gnutls. Put your certificates' paths in.
global(
    maxMessageSize="128k"  # before any input is defined; longer entries would be cut, and prove nothing
    defaultNetstreamDriver="gtls"
    defaultNetstreamDriverCAFile="/etc/rsyslog/ca.pem"
    defaultNetstreamDriverCertFile="/etc/rsyslog/cert.pem"
    defaultNetstreamDriverKeyFile="/etc/rsyslog/key.pem"
)
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon")
template(name="breakglass" type="string" string="%rawmsg%\\n")
ruleset(name="breakglass" queue.type="Direct") {{  # stored before the next message is read
    action(type="omfile" file="/var/log/breakglass.log" fileCreateMode="0600" template="breakglass" sync="on")
}}
input(type="imtcp" port="{port}" ruleset="breakglass")
"""


def setup(place: Place) -> str:
    """Return what the receiver has to be told, for rsyslog."""
    return _SETUP.format(port=place.settings["port"])


def build(place: Place) -> SyslogCopy:
    """Build the copy that the policy describes."""
    settings = place.settings
    try:
        port = int(settings["port"])
    except ValueError:
        port = 0
    if not 0 < port < 65536:
        raise CopyTrouble(f"The port of the copy {place.name} is not a TCP port: {settings['port']}.")
    if "key_file" in settings and "cert_file" not in settings:
        raise CopyTrouble(f"The copy {place.name} has a key_file and no cert_file: both, or none.")
    return SyslogCopy(
        place.name,
        settings["host"],
        port,
        place.origin,
        ca_file=settings.get("ca_file"),
        cert_file=settings.get("cert_file"),
        key_file=settings.get("key_file"),
    )


KIND: Final = Kind(
    keys={"host": True, "port": True, "ca_file": False, "cert_file": False, "key_file": False}, build=build, setup=setup
)
