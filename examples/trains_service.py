"""A small public-style service that describes itself: GET /openapi.yaml, and what stands in there.

Everything is made up.

python examples/trains_service.py [PORT]
"""

import sys
from pathlib import Path

from aiohttp import web

KEY = "passenger-1234"
TRAINS = [
    {"number": "R17", "from": "Oslo", "to": "Bergen", "departure": "08:25", "price": 59.0},
    {"number": "R21", "from": "Oslo", "to": "Bergen", "departure": "12:03", "price": 45.5},
    {"number": "N3", "from": "Oslo", "to": "Trondheim", "departure": "23:10", "price": 39.0},
]
SEATS = {"R17": {"first": 2, "second": 0}, "R21": {"first": 0, "second": 14}, "N3": {"first": 1, "second": 3}}
RESERVATIONS: list[dict[str, object]] = []


def error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


@web.middleware
async def with_key(request, handler):
    if request.path.startswith("/v1/") and request.headers.get("X-Api-Key") != KEY:
        return error(401, "X-Api-Key is missing or wrong")
    return await handler(request)


async def document(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(Path(__file__).with_name("trains.yaml"))


async def connections(request: web.Request) -> web.Response:
    wanted = request.query
    found = [train for train in TRAINS if (train["from"], train["to"]) == (wanted["from"], wanted["to"])]
    found.sort(key=lambda train: train[wanted.get("sort", "departure")])
    shown = [{key: train[key] for key in ("number", "departure", "price")} for train in found]
    return web.json_response(shown[: int(wanted.get("limit", 5))])


async def seats(request: web.Request) -> web.Response:
    number = request.match_info["number"]
    if number not in SEATS:
        return error(404, f"no train is {number}")
    return web.json_response(
        {name: SEATS[number].get(name, 0) for name in request.query.getall("class", SEATS[number])}
    )


async def reserve(request: web.Request) -> web.Response:
    wanted = await request.json()
    free = SEATS.get(wanted["train"], {})
    if not free.get(wanted["class"]):
        return error(409, f"no seat is left in {wanted['train']}")
    free[wanted["class"]] -= 1
    RESERVATIONS.append({"id": len(RESERVATIONS) + 1, **wanted})
    return web.json_response(RESERVATIONS[-1], status=201)


def main() -> None:
    app = web.Application(middlewares=[with_key])
    app.router.add_get("/openapi.yaml", document)
    app.router.add_get("/v1/connections", connections)
    app.router.add_get("/v1/trains/{number}/seats", seats)
    app.router.add_post("/v1/reservations", reserve)
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8099
    web.run_app(app, host="127.0.0.1", port=port, print=lambda text: print(text.splitlines()[0], flush=True))


if __name__ == "__main__":
    main()
