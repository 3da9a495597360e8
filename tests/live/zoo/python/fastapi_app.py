"""A FastAPI application, for uvicorn: ``fastapi_app:app``."""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

app = FastAPI()


@app.get("/items/{item:path}")
async def items(item: str):
    return {"item": item}


@app.get("/fail/{_:path}")
async def fail(_: str):
    return PlainTextResponse("failed\n", status_code=500)


@app.post("/echo/{_:path}")
async def echo(_: str, request: Request):
    return Response(await request.body())


@app.get("/sleep/{ms}/{_:path}")
async def sleep(ms: int, _: str):
    await asyncio.sleep(ms / 1000)
    return PlainTextResponse("slept\n")


@app.get("/big/{size}/{_:path}")
async def big(size: int, _: str):
    return Response(b"x" * size)


@app.get("/stream/{_:path}")
async def stream(_: str):
    async def pieces():
        for piece in range(5):
            yield f"piece {piece}\n"
            await asyncio.sleep(0.001)

    return StreamingResponse(pieces())
