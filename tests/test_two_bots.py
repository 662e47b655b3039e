"""Two bots issue and wrap on one level at once: a request has one live lease at the most, and each side its sentence.

Each bot has connections and a login at Vault of its own, as two processes have; they share the database, which is a
PostgreSQL, or an SQLite file. Against a real OpenBao and a real PostgreSQL as the target.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from counter import PATIENCE, RITA, TEAM, Counter
from test_delivery import delivered, is_sound

from storage.database import Database
from workflows import sweep
from workflows.delivery import Parcel
from workflows.errors import BreakGlassError, Conflict, Unavailable
from workflows.vault import Vault


@pytest.fixture(params=["modal", "wrapped"])
def bots(request, counter, database_url, real):
    """Two desks that share nothing but the database, the policy, the people and Vault."""
    if request.param == "wrapped":
        delivered(counter, "wrapped")
    made = []
    for _ in range(2):
        bot = Counter(
            Database(database_url), counter.policy, counter.people, real.vault(), team=TEAM, patience=PATIENCE
        )
        bot.people, bot.now = counter.people, counter.now
        made.append(bot)
    yield made
    for bot in made:
        bot.database.close()


def at_once(bots, rows):
    """Have the bots press Reveal on these requests, in turn and in one moment; returns what each was shown or told."""
    start = threading.Barrier(len(rows))
    versions = [bots[0].case(row.id).request.version for row in rows]

    def press(number):
        bot, row = bots[number % 2], rows[number]
        start.wait()
        try:
            return bot.issue(bot.reveal(RITA, row.id, versions[number], now=bot.now), now=bot.now)
        except BreakGlassError as error:
            return error

    with ThreadPoolExecutor(len(rows)) as pool:
        shown = list(pool.map(press, range(len(rows))))
    assert all(one.sentence for one in shown if isinstance(one, BreakGlassError))
    return shown


def opened(shown):
    """Return the lease and the login of what was shown."""
    if isinstance(shown, Parcel):
        secret = Vault(shown.address, token=shown.token).unwrap(shown.token)
        return secret.lease_id, secret.data["username"]
    return shown.lease_id, shown.username


def out(bot, row):
    """Return the lease and the login that are on record as live, of one credential at the most."""
    grants = [grant for grant in bot.case(row.id).grants if grant.ended_at is None]
    assert len(grants) <= 1
    return [(grant.lease_id, grant.identity) for grant in grants]


def live(real):
    """Return the level's leases, by an administrator's eyes."""
    return real.root_vault().leases("database/creds/orders-ro")


def test_one_request_at_two_bots_has_one_lease(bots, real):
    """The same button, pressed at both bots in one moment: one shows a login that works, the other says why not."""
    for _ in range(3):
        row = bots[0].approved()
        shown = at_once(bots, [row, row])
        (good,) = [one for one in shown if not isinstance(one, BreakGlassError)]
        (told,) = [one for one in shown if isinstance(one, BreakGlassError)]
        assert isinstance(told, Conflict)
        lease_id, username = opened(good)
        assert live(real) == {lease_id}
        assert out(bots[1], row) == [(lease_id, username)]
        bots[1].release(RITA, row.id, 0, now=bots[1].now)
        assert bots[0].finish(row.id, now=bots[0].now)
        assert not live(real)
    is_sound(bots[0])


def test_one_level_at_two_bots_mixes_no_leases_up(bots, real):
    """Eight requests at two bots in one moment: each has its own lease on record, or a sentence and soon none."""
    rows = [bots[0].approved() for _ in range(8)]
    shown = at_once(bots, rows)
    leases = set()
    for row, one in zip(rows, shown, strict=True):
        if not isinstance(one, BreakGlassError):
            assert out(bots[0], row) == [opened(one)]
            leases.add(out(bots[0], row)[0][0])
    for bot in bots:
        bot.pass_time(seconds=PATIENCE.total_seconds() + 1)
        sweep.tick(bot, now=bot.now)
    assert live(real) == leases
    is_sound(bots[0])


@pytest.mark.parametrize("bots", ["wrapped"], indirect=True)
def test_two_leases_of_one_moment_are_nobodys_and_both_are_told(bots, real, monkeypatch):
    """Read in the very same moment, neither bot can tell which is its own: both say so, and nothing stays alive."""
    both = threading.Barrier(2)
    moments = []

    def overlapping(vault):
        wrap_as = vault.wrap_as

        def wrap(*words):
            wrapped = wrap_as(*words)
            moments.append(wrapped.made_at)
            both.wait()
            # What Vault's clock says when both had been under way all the while.
            return replace(wrapped, made_at=max(moments), took=wrapped.took + (max(moments) - min(moments)))

        return wrap

    rows = [bots[0].approved() for _ in range(2)]
    with monkeypatch.context() as patch:
        for bot in bots:
            patch.setattr(bot.vault, "wrap_as", overlapping(bot.vault))
        shown = at_once(bots, rows)
    assert [type(one) for one in shown] == [Unavailable, Unavailable]
    assert {one.sentence for one in shown} == {
        "Several credentials were made at the same moment. Press the button again."
    }
    assert real.until(lambda: not live(real))
    for bot, row in zip(bots, rows, strict=True):
        assert out(bot, row) == []
        bot.pass_time(seconds=1)
        lease_id, username = opened(bot.show(row))
        assert out(bot, row) == [(lease_id, username)]
    is_sound(bots[0])
