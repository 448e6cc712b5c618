"""A slow line: a TCP relay that delivers every byte a fixed time later, in both directions.

``python -m bench.relay LISTEN_PORT TARGET_PORT DELAY_MS`` relays 127.0.0.1 until it is ended. The delay is one way.
"""

from __future__ import annotations

import asyncio
import sys

WINDOW_BYTES = 64 * 1024 * 1024
PIECE_BYTES = 256 * 1024


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Pieces leave in their order, each ``delay_s`` after it came; a full window stops the reading."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WINDOW_BYTES // PIECE_BYTES)

    async def deliver() -> None:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not piece:
                writer.close()
                return
            writer.write(piece)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    try:
        while piece := await reader.read(PIECE_BYTES):
            await pieces.put((loop.time() + delay_s, piece))
        await pieces.put((loop.time() + delay_s, b""))
        await delivery
    except ConnectionError:
        delivery.cancel()
        writer.close()


async def main() -> None:
    listen, target, delay_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(_pump(reader, onward_writer, delay_s), _pump(onward_reader, writer, delay_s))

    server = await asyncio.start_server(relay, "127.0.0.1", listen, limit=4 * 1024 * 1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
