"""A Flask application, for gunicorn: ``flask_app:app``."""

import time

from flask import Flask, Response, request

app = Flask(__name__)


@app.get("/items/<path:item>")
def items(item):
    return {"item": item}


@app.get("/fail/<path:_>")
def fail(_):
    return "failed\n", 500


@app.post("/echo/<path:_>")
def echo(_):
    return Response(request.get_data(), content_type="application/octet-stream")


@app.get("/sleep/<int:ms>/<path:_>")
def sleep(ms, _):
    time.sleep(ms / 1000)
    return "slept\n"


@app.get("/big/<int:size>/<path:_>")
def big(size, _):
    return Response(b"x" * size, content_type="application/octet-stream")


@app.get("/stream/<path:_>")
def stream(_):
    def pieces():
        for piece in range(5):
            yield f"piece {piece}\n"
            time.sleep(0.001)

    return Response(pieces())
