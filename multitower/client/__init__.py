"""The clients: `Client` for threads, `AsyncClient` for asyncio. They need numpy and pyzmq only."""
