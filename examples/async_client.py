"""The client for asyncio: many concurrent requests, and a time limit that cancels one.

Needs a daemon with the demo's model: `make serve`.
"""

import asyncio

import numpy as np

from multitower import AsyncClient


async def main() -> None:
    """Classifies one hundred images concurrently, then cancels a request."""
    images = np.random.default_rng(0).random((100, 64), np.float32)
    async with AsyncClient(timeout=10.0) as client:  # MULTITOWER_ENDPOINT, else tcp://127.0.0.1:5555
        await client.wait_until_ready(60.0)
        answers = await asyncio.gather(*(client.infer("digits", {"x": image[None]}) for image in images))
        print("one hundred images:", sum(len(answer["probabilities"]) for answer in answers), "rows")

        # Cancelling the task cancels the request, which then is not run unless a worker has already begun.
        try:
            async with asyncio.timeout(0.0001):
                await client.infer("digits", {"x": images})
        except TimeoutError:
            print("not within 0.1 ms: cancelled")


asyncio.run(main())
