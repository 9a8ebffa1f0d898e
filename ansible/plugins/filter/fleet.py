# Copyright: the authors of ovs-hot-upgrade
# SPDX-License-Identifier: Apache-2.0
"""Filters of the playbooks: records of hosts to a report over the fleet."""

from __future__ import annotations

from ansible_collections.ovs.hot_upgrade.plugins.module_utils import fleet


class FilterModule:
    """By their names in plugins/module_utils/fleet.py."""

    def filters(self):
        """What Ansible asks for."""
        names = ("host_record", "failure", "fleet_report", "fleet_html")
        return {name: getattr(fleet, name) for name in names}
