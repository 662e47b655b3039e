"""Is a changed policy shown in the channel with its difference, and do two people's clicks there put it into force?"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from counter import CORA, RITA, SAM
from test_retention import BASE, RETENTION
from test_retention_slack import Office, office

from bot import views
from bot.policy_clicks import control_for
from bot.policy_watch import first
from workflows import policy as rules

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["office"]  # the fixture


def test_a_changed_policy_is_confirmed_in_the_channel(office: Office, tmp_path: Path) -> None:
    """The post has the words, the difference and buttons; the second click puts it into force and takes them away."""
    desk, file = office.desk, tmp_path / "breakglass.yml"
    file.write_bytes((BASE + RETENTION).encode())
    first(desk.database, file, now=datetime.now(UTC))
    text = BASE.replace("custodians: [U0CARL, ", "custodians: [U0OLGA, U0CARL, ") + RETENTION
    new = rules.parse(text + "# <!channel> and a long comment\n" * 200, name="new")
    assert control_for(desk).propose(new, is_new=True, now=datetime.now(UTC))
    card = office.newest()
    assert "⚠️ _less strict_ orders-db: Custodians: added <@U0OLGA>." in card["text"]
    assert "<!channel>" not in card["text"]
    assert [block["type"] for block in card["blocks"]] == ["section", "rich_text", "actions"]
    office.click(RITA, card, views.CONFIRM_POLICY, "by the policy that is in force")
    office.click(RITA, card, views.SHOW_POLICY, "in your direct messages")
    office.click(CORA, card, views.CONFIRM_POLICY, "You confirmed it: 1 of 2.")
    office.click(SAM, card, views.CONFIRM_POLICY, "as the last: it is in force.")
    assert desk.policy.hash == new.hash
    assert office.follower.drain(20)
    after = office.at(card)
    assert not office.driver.as_(SAM.person).has(after, views.CONFIRM_POLICY)
    assert "*Confirmed* by <@U0CORA> and <@U0SAM>: it is in force" in after["text"]
