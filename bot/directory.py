"""Who is this Slack user, and who is in that user group?

Rules
-----
* What was learnt is used for at most a minute, and not a moment longer when Slack does not answer: then the answer is
  :class:`Unavailable`, never an old one. Who was deactivated an hour ago must not approve because Slack is slow.
* What Slack does not say about a person is taken as against them: no flag has a default of "no".
* What Slack says has changed (``user_change``, ``subteam_members_changed``) is forgotten at once, and an answer that
  was under way then is not kept.
* Many threads that ask the same question at the same time cost one call, and share its failure too.
* A small workspace is read by one list instead of person by person: the first click after a quiet hour must not take
  as many calls as there are custodians.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from datetime import timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from bot.calls import TroubleError, call, quiet_client
from workflows.errors import Unavailable
from workflows.policy import Person

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import tzinfo

    from slack_bolt import App
    from slack_sdk import WebClient

log = logging.getLogger(__name__)

KEPT: Final = 60.0  # seconds that an answer may be used
_CALL_SECONDS: Final = 2  # a click must be acknowledged within three
_PAGE: Final = 200  # people in one answer of users.list, as Slack recommends
_PAGES: Final = 5  # users.list may be called 20 times a minute; a larger workspace is asked person by person
_EVERYBODY: Final = "everybody"
_GROUPS: Final = "groups"
# A status that says that somebody is not there: Slack's own for it, and what people write.
_AWAY_SIGNS: Final = frozenset({":palm_tree:", ":face_with_thermometer:"})
_AWAY_WORDS: Final = re.compile(
    r"\b(vacation\w*|(on|public) holidays?|out of( the)? office|ooo|(out|off) sick|sick leave|on( \w+)? leave|"
    r"(parental|maternity|paternity) leave|away)\b",
    re.IGNORECASE,
)
_NO_SUCH_USER: Final = frozenset({"user_not_found", "user_not_visible", "users_not_found"})


@dataclass(frozen=True, slots=True)
class _Group:
    id: str
    handle: str
    members: tuple[str, ...] | None  # None: Slack did not list them here


@dataclass(frozen=True, slots=True)
class _Kept:
    value: Any
    at: float


class SlackDirectory:
    """Slack's people and user groups, as ``workflows.policy.Directory``. Safe to share by threads.

    ``team``: the id of the bot's own workspace. ``clock``: seconds that only go forward.
    """

    def __init__(self, client: WebClient, team: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        # A retry that sleeps out a rate limit would sleep through Slack's three seconds.
        self._client = quiet_client(client, _CALL_SECONDS)
        self._team = team
        self._clock = clock
        self._mutex = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._flights: dict[str, Future[Any]] = {}
        self._serial = 0
        self._forgotten: dict[str, int] = {}  # by key, the serial at which it was last forgotten
        self._is_small = False
        self._listed_at = -KEPT

    # ------------------------------------------------------------------------------------ asking

    def person(self, user_id: str) -> Person | None:
        """Return the person; None when Slack knows no such user. Raises :class:`Unavailable`."""
        key = f"person {user_id}"
        found = self._fresh(key)
        if found is None and self._is_small and self._clock() - self._listed_at >= KEPT:
            self._once(_EVERYBODY, self._list_people)
            found = self._fresh(key)
        if found is None:
            return self._once(key, partial(self._ask_person, key, user_id))  # type: ignore[no-any-return]
        return found.value  # type: ignore[no-any-return]

    def members(self, group: str) -> tuple[str, ...] | None:
        """Return the user ids of a group id or ``@handle``; None when there is no such group. Raises Unavailable."""
        found = self._group(group)
        if found is None:
            return None
        if found.members is not None:
            return found.members
        key = f"members {found.id}"
        kept = self._fresh(key)
        if kept is not None:
            return kept.value  # type: ignore[no-any-return]
        return self._once(key, partial(self._ask_members, key, found.id))  # type: ignore[no-any-return]

    def group_id(self, group: str) -> str | None:
        """Return the id of a group (``S…``), for a mention; None when there is no such group. Raises Unavailable."""
        found = self._group(group)
        return None if found is None else found.id

    def prime(self) -> None:
        """Read everybody at the start, so that the first click finds what it needs. Failing is harmless."""
        try:
            self._once(_EVERYBODY, self._list_people)
            self._group("")
        except Unavailable as error:
            log.warning("people are looked up one by one: %s", error.sentence)

    def refresh(self, names: Iterable[str]) -> None:
        """Ask again about these users and groups if half of their minute is over: for a clock. Failing is harmless."""
        try:
            if self._age(_GROUPS) > KEPT / 2:
                self._once(_GROUPS, self._ask_groups)
            people = [m for name in names for m in ((name,) if name[:1] in "UW" else self.members(name) or ())]
            old = [user_id for user_id in dict.fromkeys(people) if self._age(f"person {user_id}") > KEPT / 2]
            if self._is_small and len(old) > 1:
                self._once(_EVERYBODY, self._list_people)
                return
            for user_id in old:
                key = f"person {user_id}"
                self._once(key, partial(self._ask_person, key, user_id))
        except Unavailable as error:
            log.info("people and groups are not refreshed now: %s", error.sentence)

    # ------------------------------------------------------------------------------------ forgetting

    def forget_user(self, user_id: str) -> None:
        """Forget a person: Slack says that something about them changed."""
        self._forget(f"person {user_id}", _EVERYBODY)

    def forget_group(self, group_id: str) -> None:
        """Forget a group (by its id): Slack says that its members changed."""
        self._forget(f"members {group_id}", _GROUPS)

    def register(self, app: App) -> None:
        """Let the app's events forget what they change."""

        def user_changed(event: dict[str, Any]) -> None:
            self.forget_user(str(event.get("user", {}).get("id", "")))

        def members_changed(event: dict[str, Any]) -> None:
            self.forget_group(str(event.get("subteam_id", "")))

        app.event("user_change")(user_changed)
        app.event("subteam_members_changed")(members_changed)

    def _forget(self, key: str, flight: str) -> None:
        with self._mutex:
            self._serial += 1
            for name in (key, flight):
                self._forgotten[name] = self._serial
                # Whoever asks from now on must not get the answer to a question that was asked before the change.
                self._flights.pop(name, None)
            self._kept.pop(key, None)
            if flight == _GROUPS:
                self._kept.pop(_GROUPS, None)

    # ------------------------------------------------------------------------------------ one question at a time

    def _fresh(self, key: str) -> _Kept | None:
        with self._mutex:
            kept = self._kept.get(key)
        return kept if kept is not None and self._clock() - kept.at < KEPT else None

    def _age(self, key: str) -> float:
        with self._mutex:
            kept = self._kept.get(key)
        return self._clock() - kept.at if kept is not None else KEPT

    def _keep(self, values: Mapping[str, Any], *, asked_at: float, serial: int) -> None:
        with self._mutex:
            for key, value in values.items():
                if self._forgotten.get(key, 0) <= serial:
                    self._kept[key] = _Kept(value, asked_at)

    def _once(self, key: str, ask: Callable[[], Any]) -> Any:  # noqa: ANN401 - what ask returns
        with self._mutex:
            flight = self._flights.get(key)
            is_mine = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not is_mine:
            try:
                return flight.result(timeout=_CALL_SECONDS * _PAGES)
            except FutureTimeoutError:
                raise Unavailable("Slack does not answer who people are. Nothing was changed; try again.") from None
        try:
            answer = ask()
        except BaseException as error:
            flight.set_exception(error)
            raise
        else:
            flight.set_result(answer)
            return answer
        finally:
            with self._mutex:
                if self._flights.get(key) is flight:
                    del self._flights[key]

    # ------------------------------------------------------------------------------------ Slack

    def _ask_person(self, key: str, user_id: str) -> Person | None:
        asked_at, serial = self._clock(), self._serial
        person: Person | None = None
        try:
            person = self._person(call(self._client.users_info, user=user_id).get("user", {}))
        except TroubleError as trouble:
            if trouble.reason not in _NO_SUCH_USER:
                raise _unavailable(trouble) from None
        self._keep({key: person}, asked_at=asked_at, serial=serial)
        return person

    def _list_people(self) -> None:
        asked_at, serial = self._clock(), self._serial
        found: dict[str, Person] = {}
        cursor = ""
        for _ in range(_PAGES):
            try:
                answer = call(self._client.users_list, limit=_PAGE, cursor=cursor or None)
            except TroubleError as trouble:
                raise _unavailable(trouble) from None
            for user in answer.get("members", ()):
                person = self._person(user)
                found[f"person {person.id}"] = person
            cursor = (answer.get("response_metadata") or {}).get("next_cursor") or ""
            if not cursor:
                break
        self._is_small = not cursor
        self._listed_at = asked_at
        self._keep(found, asked_at=asked_at, serial=serial)

    def _group(self, group: str) -> _Group | None:
        kept = self._fresh(_GROUPS)
        groups: tuple[_Group, ...] = self._once(_GROUPS, self._ask_groups) if kept is None else kept.value
        handle = group.removeprefix("@") if group.startswith("@") else None
        return next((g for g in groups if (g.handle == handle if handle is not None else g.id == group)), None)

    def _ask_groups(self) -> tuple[_Group, ...]:
        asked_at, serial = self._clock(), self._serial
        try:
            answer = call(self._client.usergroups_list, include_users=True, include_count=True)
        except TroubleError as trouble:
            raise _unavailable(trouble) from None
        groups = []
        for group in answer.get("usergroups", ()):
            if group.get("date_delete"):
                continue  # disabled: its members hold nothing through it
            users = group.get("users")
            # A list that is shorter than the count was cut: then the group is asked by itself.
            is_whole = isinstance(users, list) and len(users) == int(group.get("user_count") or -1)
            groups.append(
                _Group(str(group["id"]), str(group.get("handle", "")), tuple(map(str, users)) if is_whole else None)
            )
        self._keep({_GROUPS: tuple(groups)}, asked_at=asked_at, serial=serial)
        return tuple(groups)

    def _ask_members(self, key: str, group_id: str) -> tuple[str, ...] | None:
        asked_at, serial = self._clock(), self._serial
        members: tuple[str, ...] | None = None
        try:
            members = tuple(call(self._client.usergroups_users_list, usergroup=group_id).get("users", ()))
        except TroubleError as trouble:
            if trouble.reason != "no_such_subteam":
                raise _unavailable(trouble) from None
        self._keep({key: members}, asked_at=asked_at, serial=serial)
        return members

    def _person(self, user: Mapping[str, Any]) -> Person:
        team = str(user.get("team_id") or "")
        profile = user.get("profile") or {}
        return Person(
            team=team,
            id=str(user.get("id") or ""),
            name=str(user.get("real_name") or profile.get("real_name") or user.get("name") or user.get("id") or ""),
            is_bot=bool(user.get("is_bot", True)) or bool(user.get("is_workflow_bot")),
            is_guest=bool(user.get("is_restricted", True)) or bool(user.get("is_ultra_restricted", True)),
            is_deleted=bool(user.get("deleted", True)),
            is_foreign=team != self._team or bool(user.get("is_stranger")),
            is_away=_is_away(profile),
            handles=tuple(str(one) for one in (user.get("name"), profile.get("display_name")) if one),
            zone=_zone(user),
        )


def _zone(user: Mapping[str, Any]) -> tzinfo | None:
    """Return where somebody is: by name, which knows summer time, else by the hours of now. None: Slack does not say.

    A name that this machine does not know must not keep anybody from saying that they are away.
    """
    try:
        return ZoneInfo(str(user["tz"]))
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
        pass
    seconds = user.get("tz_offset")
    if isinstance(seconds, int) and not isinstance(seconds, bool) and abs(seconds) < 86400:
        return timezone(timedelta(seconds=seconds))
    return None


def _is_away(profile: Mapping[str, Any]) -> bool:
    """Say whether somebody is not there, by the status that they set, until it is over. Why is nobody's business."""
    words, sign = str(profile.get("status_text") or ""), str(profile.get("status_emoji") or "")
    until = profile.get("status_expiration")
    if isinstance(until, int) and 0 < until <= time.time():
        return False
    return sign in _AWAY_SIGNS or _AWAY_WORDS.search(words) is not None


def _unavailable(trouble: TroubleError) -> Unavailable:
    log.warning("Slack was asked about people: %s", trouble.reason)
    return Unavailable(f"Slack does not say who people are ({trouble.reason}), so nothing was changed. Try again.")
