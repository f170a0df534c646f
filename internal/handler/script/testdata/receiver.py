#!/usr/bin/env python3
"""Plays the receiver of the conformance suite, as receiver.sh does."""
import os
import signal
import sys

folder, steps = sys.argv[1], sys.argv[2:]
out, env = sys.stdout.buffer, os.environ
payload = b""
for step in steps:
    name, _, value = step.partition("=")
    if name == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif name == "read":
        payload = sys.stdin.buffer.read()
    elif name == "enter":
        with open(os.path.join(folder, "entered"), "a") as f:
            f.write("x\n")
    elif name == "gate":
        fd = os.open(os.path.join(folder, "gate"), os.O_RDONLY)
        os.read(fd, 1)
    elif name == "output":
        out.write(b"o" * int(value))
    elif name == "bad":
        out.write(b"\xff\xfe\x00\x1b[2J\r\n\xe2\x80\xae bad \x80\n")
        sys.stderr.buffer.write(b"\xff\xfe\x1b[2J\r bad \x80\n")
    elif name == "leak":
        print("out", env["RECEIVER_TOKEN"], flush=True)
        print("err", env["RECEIVER_TOKEN"], file=sys.stderr)
    elif name == "echo":
        out.write(payload + b"\n")
    elif name == "report":
        print(f"id={env['BILLHOOK_EVENT_ID']}\nattempt={env['BILLHOOK_ATTEMPT']}\nhandler={env['BILLHOOK_HANDLER']}", flush=True)
    elif name == "print":
        out.write(os.fsencode(value) + b"\n")
    elif name in ("retry", "permanent", "succeed"):
        out.flush()
        sys.exit({"retry": 75, "permanent": 65, "succeed": 0}[name])
    elif name == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "hang":
        while True:
            os.read(os.open(os.path.join(folder, "never"), os.O_RDONLY), 1)
    out.flush()
