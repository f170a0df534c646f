#!/usr/bin/env python3
"""Spares clients of the VIP group: later handlers of the event do not run.

  - id: 2
    name: Spare VIP clients
    event: clients.balance_zero
    priority: 1
    script: {path: /usr/local/script/spare-vip.py}

The payload comes on standard input; the answer is the last line of output.
"""
import json
import os
import sys
import time
from decimal import Decimal

payload = json.load(sys.stdin, parse_float=Decimal)  # money is no float
client = payload["data"]

deadline = os.environ.get("BILLHOOK_DEADLINE")
if deadline and float(deadline) - time.time() < 1:
    print("too little time left", file=sys.stderr)
    sys.exit(os.EX_TEMPFAIL)

if "group" not in client:
    print("the payload has no column group: is it mapped?", file=sys.stderr)
    sys.exit(os.EX_CONFIG)

if client["group"] == "vip":
    print(json.dumps({"stop": True, "reason": f"client {client['id']} is a VIP at {client['balance']}"}))
