# Copyright: the authors of ovs-hot-upgrade
# SPDX-License-Identifier: Apache-2.0
"""Options and notes that the modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """Found by the name of this file: ovs.hot_upgrade.upgrade."""

    DOCUMENTATION = r"""
options:
  executable:
    description: The C(upgrade) command on the host, by its name or path.
    type: str
    default: upgrade
  config:
    description: Configuration that the command reads; without it C($OVS_UPGRADE_CONFIG), C(/etc/ovs-upgrade/config.toml).
    type: path
requirements:
  - the coordinator on the host (role P(ovs.hot_upgrade.install#role)), whose JSON has C(schema_version) 1
notes:
  - Needs root on the host, but where its configuration describes a simulated one.
  - A run is carried out by the host's own daemon. A connection that is lost leaves it going;
    O(ovs.hot_upgrade.hot_upgrade#module:resume=true) finds it again.
"""
