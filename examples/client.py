"""The client for threads: one request, many pipelined over one connection, and errors.

Needs a daemon with the demo's model: `make serve`.
"""

import numpy as np

from multitower import Client, InvalidRequest, MultitowerError, Overloaded, Unavailable

images = np.random.default_rng(0).random((100, 64), np.float32)

with Client(timeout=10.0) as client:  # MULTITOWER_ENDPOINT, else tcp://127.0.0.1:5555
    client.wait_until_ready(60.0)
    for tensor in client.metadata("digits")["inputs"]:
        print(f"digits takes {tensor['name']}: {tensor['datatype']} {tensor['shape']}")

    # Dimension 0 is the rows: four images in one request.
    answer = client.infer("digits", {"x": images[:4]})
    print("four images:", answer["probabilities"].argmax(axis=1))

    # One request per image, all outstanding at the same time: the router batches them for all devices.
    futures = [client.submit("digits", {"x": image[None]}, outputs=["probabilities"]) for image in images]
    answers = [future.result()["probabilities"] for future in futures]
    print("one hundred images:", len(np.concatenate(answers)), "rows")

    try:
        client.infer("digits", {"x": images.astype(np.float64)})
    except InvalidRequest as error:
        print("refused:", error)
    except (Unavailable, Overloaded) as error:
        print("try again later:", error.details.get("retry_after_ms"), "ms")
    except MultitowerError as error:
        print(error.code, error.reason, error.message)

    for slot in client.status()["slots"]:
        print(f"slot {slot['slot']} on {slot['device']}: {slot['completed']} rows answered")
