"""Where are executed commands read? The registry of captures.

A new kind of source is one file and one line in ``CAPTURES``; what it must do is ``seam.py``.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from workflows.captures.cloudtrail import CloudTrail
from workflows.captures.kubernetes_audit import KubernetesAudit
from workflows.captures.mariadb import MariaDB
from workflows.captures.postgres import Postgres
from workflows.captures.sudo import Sudo
from workflows.captures.vault_audit import VaultAudit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workflows.captures.seam import Capture

CAPTURES: Final[Mapping[str, Capture]] = MappingProxyType(
    {
        "cloudtrail": CloudTrail(),
        "kubernetes": KubernetesAudit(),
        "mariadb": MariaDB(),
        "postgres": Postgres(),
        "sudo": Sudo(),
        "vault": VaultAudit(),
    }
)
