"""A client of OVSDB with python-ovs' IDL, as a process: changes a counter again and again and says when each is in.

``python -m tests.support.ovsdb_client REMOTE`` prints a line of JSON for each thing that happens: ``connected`` with how
many connections there have been, ``committed`` with the number.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ovs.db.idl

KEY = "test-counter"
_PAUSE_S = 0.005


def main(remote: str, schema: Path) -> None:
    """Count up in Open_vSwitch.external_ids until killed; a transaction of unknown fate is looked up and tried again."""
    helper = ovs.db.idl.SchemaHelper(location=str(schema))
    helper.register_table("Open_vSwitch")
    idl = ovs.db.idl.Idl(remote, helper)
    connections, session = 0, None
    number = 0
    while True:
        idl.run()
        rows = list(idl.tables["Open_vSwitch"].rows.values())
        now = idl._session.get_seqno() if idl._session.is_connected() else None
        if now is not None and now != session:
            session, connections = now, connections + 1
            say("connected", connections)
        if not rows or now is None:
            time.sleep(_PAUSE_S)
            continue
        (row,) = rows
        if int(row.external_ids.get(KEY, "0")) <= number:
            txn = ovs.db.idl.Transaction(idl)
            row.setkey("external_ids", KEY, str(number + 1))
            if txn.commit_block() not in (txn.SUCCESS, txn.UNCHANGED):
                continue
        number += 1
        say("committed", number)
        time.sleep(_PAUSE_S)


def say(what: str, which: Any) -> None:
    """Print one thing that happened."""
    print(json.dumps({"what": what, "which": which, "at": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
