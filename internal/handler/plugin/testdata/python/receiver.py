#!/usr/bin/python3
"""A plugin in Python that behaves as a test says.

It needs grpcio, protobuf and cryptography, and plugin_pb2.py, which protoc makes of
plugins/pluginpb/plugin.proto. docs/plugins.md says what the parts are for.
"""

import base64
import concurrent.futures
import datetime
import json
import os
import sys
import threading
import time

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import plugin_pb2 as pb


class Plugin:
    """The four calls of Billhook's."""

    def __init__(self):
        self.config = {}
        self.secret = ""

    def Describe(self, request, context):
        return pb.DescribeResponse(
            name="python",
            version="1.0.0",
            config_schema=json.dumps(
                {
                    "type": "object",
                    "properties": {
                        "dir": {"type": "string"},
                        "token": {"type": "string", "writeOnly": True},
                        "behaviour": {"type": "object", "additionalProperties": True},
                    },
                    "required": ["dir"],
                    "additionalProperties": False,
                }
            ),
        )

    def Configure(self, request, context):
        self.config = json.loads(request.config)
        if not os.path.isdir(self.config["dir"]):
            return pb.ConfigureResponse(problems=[pb.ConfigProblem(field="dir", text="it is no folder")])
        return pb.ConfigureResponse()

    def Handle(self, request, context):
        b = self.config.get("behaviour", {})
        with open(os.path.join(self.config["dir"], "entered"), "a") as f:
            f.write("1\n")
        while b.get("Gate") and not os.path.exists(os.path.join(self.config["dir"], "gate")):
            if not context.is_active():
                return pb.HandleResponse()
            time.sleep(0.001)
        out = b"x" * b.get("Output", 0)
        failure = "no"
        response = pb.HandleResponse(outcome=pb.OUTCOME_SUCCESS, answer=b.get("Answer", "").encode())
        if b.get("Bad"):
            out += b"\xff\xfe\x1b[2J\x00\r\n"
            failure += "\x1b[2J\x00\r\n\u202e"
            os.write(2, b"\xff\xfe\x1b[2J\n")
            print("printed \x1b[2J", flush=True)
        if b.get("Leak"):
            out += self.config["token"].encode()
            failure += self.config["token"]
            print("WARNING:root:" + self.config["token"], file=sys.stderr, flush=True)
        if b.get("Echo"):
            out += request.payload
        if b.get("Report"):
            out += f"id={request.event_id}\nattempt={request.attempt}\nhandler={request.handler_id}\n".encode()
        response.received.body = out
        outcome = b.get("Outcome")
        if outcome == "retry":
            response.outcome, response.error = pb.OUTCOME_RETRY, failure
            response.retry_after_ms = b.get("RetryAfter", 0) // 1_000_000
        elif outcome == "permanent":
            response.outcome, response.error = pb.OUTCOME_PERMANENT, failure
        elif outcome == "crash":
            os._exit(3)
        elif outcome == "hang":
            while b.get("Stubborn") or context.is_active():
                time.sleep(0.005)
        return response


def certificate():
    """A certificate for this life of the plugin, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.utcnow()
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    return cert, key


def serve():
    if os.environ.get("BILLHOOK_PLUGIN") != "6d0d1a4f-handler":
        sys.exit("this is a plugin of Billhook's: name it in handlers.yaml")
    if "1" not in os.environ["PLUGIN_PROTOCOL_VERSIONS"].split(","):
        sys.exit("this plugin speaks version 1 of the protocol")
    cert, key = certificate()
    credentials = grpc.ssl_server_credentials(
        [
            (
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                ),
                cert.public_bytes(serialization.Encoding.PEM),
            )
        ],
        root_certificates=os.environ["PLUGIN_CLIENT_CERT"].encode(),
        require_client_auth=True,
    )
    limit = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(64), options=limit)
    plugin = Plugin()

    def unary(method, request):
        return grpc.unary_unary_rpc_method_handler(method, request.FromString, lambda r: r.SerializeToString())

    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "billhook.plugin.v1.Plugin",
                {
                    "Describe": unary(plugin.Describe, pb.DescribeRequest),
                    "Configure": unary(plugin.Configure, pb.ConfigureRequest),
                    "Handle": unary(plugin.Handle, pb.HandleRequest),
                },
            ),
            # Health: field 1 of the response is 1, SERVING.
            grpc.method_handlers_generic_handler(
                "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(lambda r, c: b"\x08\x01")}
            ),
        ]
    )
    path = os.path.join(os.environ["PLUGIN_UNIX_SOCKET_DIR"], "python.sock")
    server.add_secure_port("unix:" + path, credentials)
    server.start()
    der = base64.b64encode(cert.public_bytes(serialization.Encoding.DER)).decode().rstrip("=")
    print(f"1|1|unix|{path}|grpc|{der}", flush=True)

    def lifeline():  # standard input ends when Billhook does
        while sys.stdin.buffer.read(4096):
            pass
        os._exit(1)

    threading.Thread(target=lifeline, daemon=True).start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve()
