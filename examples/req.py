"""A complete client without the multitower package: a REQ socket of ZeroMQ and the protocol of docs/protocol.md.

Needs pyzmq alone, and a daemon with the demo's model: `make serve`.
"""

import json
import os
import struct

import zmq

with zmq.Context() as context, context.socket(zmq.REQ) as socket:
    socket.connect(os.environ.get("MULTITOWER_ENDPOINT", "tcp://127.0.0.1:5555"))
    header = {"model_name": "digits", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64]}]}
    socket.send_multipart([b"MT1:infer", b"1", json.dumps(header).encode(), struct.pack("<64f", *[0.5] * 64)])
    kind, id, answer, *outputs = socket.recv_multipart()
    print(kind.decode(), answer.decode(), *(struct.unpack(f"<{len(output) // 4}f", output) for output in outputs))
