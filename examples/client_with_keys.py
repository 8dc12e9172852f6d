"""A client with keys, for a daemon with `security`: who it is, which daemon it means, and what a refusal looks like.

Needs files of keys (`multitower keys new`), and a daemon that serves the demo's model and admits them. Run it as:
python examples/client_with_keys.py ana.key_secret server.key tcp://gpus:5555
"""

import sys

import numpy as np

from multitower import Client, Forbidden, InvalidKey, Unauthenticated

key, server_key, endpoint = sys.argv[1:]
try:
    # Without these arguments: MULTITOWER_KEY, MULTITOWER_SERVER_KEY and MULTITOWER_ENDPOINT.
    with Client(endpoint, key=key, server_key=server_key, timeout=10.0) as client:
        # What a key may do depends on its roles: each call may be forbidden by itself.
        try:
            answer = client.infer("digits", {"x": np.zeros((1, 64), np.float32)})
            print("one image:", answer["probabilities"].argmax(axis=1))
        except Forbidden as error:
            print("this key may not infer:", error)
        try:
            client.status()
        except Forbidden as error:
            print("this key may not see the status:", error)
except InvalidKey as error:
    sys.exit(f"the keys cannot be used: {error}")
except Unauthenticated as error:
    sys.exit(f"not let in ({error.details.get('connect_error', 'revoked')}): {error}")
