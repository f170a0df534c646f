"""A receiver as those of the vendor's customers are: one Flask application, one
address for all events, told apart by events_id. It knows nothing of Billhook.

    /usr/bin/python3 receiver.py PORT FILE

writes what it gets to FILE, one event a line, and answers with it.
"""

import json
import sys
from datetime import datetime

from flask import Flask, jsonify, request

app = Flask(__name__)
balances = {}


def create(client, data):
    balances[client] = data["balance"]


def out_of_money(client, data):
    balances[client] = "none"


def in_money(client, data):
    balances[client] = "some"


events = {
    "clients.create": create,
    "clients.balance_zero": out_of_money,
    "clients.balance_notzero": in_money,
}


@app.route("/api", methods=["GET", "POST"])
def api():
    if request.method == "GET":
        return jsonify(balances)
    body = json.loads(request.data)
    event, data = body["event"], body["data"]
    if set(body) != {"event", "data"} or set(event) != {"dt", "events_id", "object_id"}:
        return "unexpected keys", 400
    if type(event["object_id"]) is not int or type(data) is not dict:
        return "unexpected types", 400
    datetime.strptime(event["dt"], "%Y-%m-%dT%H:%M:%S%z")
    if event["events_id"] in events:
        events[event["events_id"]](event["object_id"], data)
    with open(sys.argv[2], "a") as f:
        f.write(json.dumps([event["events_id"], event["object_id"], data], sort_keys=True) + "\n")
    return jsonify(body)


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(sys.argv[1]))
