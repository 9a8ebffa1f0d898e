"""An OpenFlow 1.3 controller of os-ken's, as a process: writes flows, asks after each whether it was taken, and says so.

``python -m tests.support.openflow_controller PORT`` prints a line of JSON for each thing that happens: ``connected`` and
``gone`` with a datapath id, ``taken`` with the cookie of a flow whose barrier has been answered.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from os_ken import cfg
from os_ken.base import app_manager
from os_ken.controller import ofp_event
from os_ken.controller.handler import DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from os_ken.ofproto import ofproto_v1_3

TABLE = 20
_PAUSE_S = 0.005


class Writer(app_manager.OSKenApp):
    """Adds a flow, waits for the answer to a barrier, adds the next; on a new connection it goes on."""

    OFP_VERSIONS = [ofproto_v1_3.OFP_VERSION]  # noqa: RUF012 - os-ken's own form

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cookie = 0
        self._answers: dict[int, threading.Event] = {}

    @set_ev_cls(ofp_event.EventOFPStateChange, [MAIN_DISPATCHER, DEAD_DISPATCHER])
    def state(self, event: Any) -> None:
        datapath = event.datapath
        if event.state == MAIN_DISPATCHER:
            say("connected", f"{datapath.id:016x}")
            threading.Thread(target=self._write, args=(datapath,), daemon=True).start()
        elif datapath.id is not None:
            say("gone", f"{datapath.id:016x}")

    @set_ev_cls(ofp_event.EventOFPBarrierReply, MAIN_DISPATCHER)
    def answered(self, event: Any) -> None:
        if waiting := self._answers.get(event.msg.xid):
            waiting.set()

    def _write(self, datapath: Any) -> None:
        parser = datapath.ofproto_parser
        while datapath.is_active:
            self._cookie += 1
            number = self._cookie
            match = parser.OFPMatch(
                eth_type=0x0800, ipv4_dst=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            )
            barrier = parser.OFPBarrierRequest(datapath)
            datapath.set_xid(barrier)
            event = self._answers[barrier.xid] = threading.Event()
            datapath.send_msg(
                parser.OFPFlowMod(datapath, cookie=number, table_id=TABLE, priority=7, match=match, instructions=[])
            )
            datapath.send_msg(barrier)
            if event.wait(5.0):
                say("taken", number)
            del self._answers[barrier.xid]
            time.sleep(_PAUSE_S)


def say(what: str, which: object) -> None:
    """Print one thing that happened."""
    print(json.dumps({"what": what, "which": which, "at": time.monotonic()}), flush=True)


if __name__ == "__main__":
    port = sys.argv[1]
    cfg.CONF(args=["--ofp-tcp-listen-port", port], project="os_ken")
    app_manager.AppManager.run_apps(["os_ken.controller.ofp_handler", "tests.support.openflow_controller"])
