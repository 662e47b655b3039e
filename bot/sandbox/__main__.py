"""``python -m bot.sandbox --port N --manifest manifest.yml [--seed FILE.yml]``: run the workspace until told to stop.

It stops on Ctrl-C, on SIGTERM, and when whoever started it is gone, so that nothing keeps listening.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

import yaml

from bot.sandbox.server import APP_TOKEN, BOT_TOKEN, Sandbox, SandboxError
from bot.sandbox.workspace import WorkspaceSeed


def main(argv: list[str] | None = None) -> int:
    """Run the sandbox; 0 after a clean stop, 1 when it cannot run."""
    parser = argparse.ArgumentParser(prog="python -m bot.sandbox", description="A local Slack workspace.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--manifest", type=Path, default=Path("manifest.yml"), help="the app's manifest")
    parser.add_argument("--seed", type=Path, help="people, channels and groups as YAML")
    parser.add_argument("--rate-limits", type=float, default=1.0, help="scale of Slack's rate limits; 0 switches off")
    args = parser.parse_args(argv)
    try:
        manifest = yaml.safe_load(args.manifest.read_text(encoding="utf-8"))
        seed = yaml.safe_load(args.seed.read_text(encoding="utf-8")) if args.seed else {}
        sandbox = Sandbox(
            WorkspaceSeed.from_mapping(seed),
            manifest,
            port=args.port,
            bot_token=os.environ.get("SLACK_BOT_TOKEN", BOT_TOKEN),
            app_token=os.environ.get("SLACK_APP_TOKEN", APP_TOKEN),
            rate_limits=args.rate_limits,
        ).start()
    except (OSError, SandboxError, yaml.YAMLError, TypeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    sys.stdout.write(f"{sandbox.url}\n")
    sys.stdout.flush()
    starter = os.getppid()
    while not stopped.wait(0.5) and os.getppid() == starter:
        pass
    sandbox.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
