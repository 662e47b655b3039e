"""How often does a token's child outlive it, when a client goes on making children while the token is revoked?

    python tests/bench_token.py [ROUNDS]

Eight threads make tokens with a token, and with its children, until it is gone and a little longer. Then each child is
tried. A child that still answers lives on by itself: nobody's end takes it along any more, and it can make others. This
is why a level's token that may make tokens is refused (``workflows/engines/token.py``). Against a real OpenBao.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

from bot.demo.parts import OpenBao, PartFailed, call

THREADS = 8
POLICY = (
    'path "auth/token/create" { capabilities = ["update"] }\npath "auth/token/lookup-self" { capabilities = ["read"] }'
)


def _round(bao: OpenBao) -> tuple[int, int]:
    """Revoke one token under attack; return how many children there were, and how many of them live."""
    asked = {"policies": ["maker"], "ttl": "1h", "no_default_policy": True}
    made = bao.call("POST", "auth/token/create-orphan", asked)["auth"]
    children, is_over = [made["client_token"]], threading.Event()

    def attack(*, deeper: bool) -> None:
        own = made["client_token"]
        while not is_over.is_set():
            try:
                child = call(bao.addr, "POST", "auth/token/create", asked, token=own)["auth"]["client_token"]
            except PartFailed:
                own = children[-1] if deeper else own  # perhaps one of the others still lives
                continue
            children.append(child)
            own = child if deeper else own

    threads = [threading.Thread(target=attack, kwargs={"deeper": number % 2 == 0}) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    while len(children) < 50:
        time.sleep(0.01)
    bao.call("POST", "auth/token/revoke-accessor", {"accessor": made["accessor"]})
    while _lives(bao, made["client_token"]):
        time.sleep(0.01)
    time.sleep(0.3)
    is_over.set()
    for thread in threads:
        thread.join()
    return len(children), sum(_lives(bao, child) for child in children)


def _lives(bao: OpenBao, token: str) -> bool:
    try:
        call(bao.addr, "GET", "auth/token/lookup-self", token=token)
    except PartFailed:
        return False
    return True


def main() -> None:
    """Print what came of it."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory() as folder, OpenBao(Path(folder) / "bao") as bao:
        bao.call("PUT", "sys/policies/acl/maker", {"policy": POLICY})
        outcome = [_round(bao) for _ in range(rounds)]
    survived = [living for _, living in outcome if living]
    sys.stdout.write(
        f"{len(survived)} of {rounds} tokens left children behind that live on"
        f" (of {sum(count for count, _ in outcome)} children {sum(survived)}).\n"
    )


if __name__ == "__main__":
    main()
