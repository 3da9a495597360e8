"""A Django project in one file, served by its own development server.  django_app.py PORT."""

import sys
import time

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="zoo", USE_TZ=True, LOGGING_CONFIG=None)


def items(request, item):
    return JsonResponse({"item": item})


def fail(request, _):
    return HttpResponse("failed\n", status=500)


def echo(request, _):
    return HttpResponse(request.body, content_type="application/octet-stream")


def sleep(request, ms, _):
    time.sleep(ms / 1000)
    return HttpResponse("slept\n")


def big(request, size, _):
    return HttpResponse(b"x" * size, content_type="application/octet-stream")


def stream(request, _):
    def pieces():
        for piece in range(5):
            yield f"piece {piece}\n"
            time.sleep(0.001)

    return StreamingHttpResponse(pieces())


urlpatterns = [
    path("items/<path:item>", items),
    path("fail/<path:_>", fail),
    path("echo/<path:_>", echo),
    path("sleep/<int:ms>/<path:_>", sleep),
    path("big/<int:size>/<path:_>", big),
    path("stream/<path:_>", stream),
]

if __name__ == "__main__":
    execute_from_command_line([sys.argv[0], "runserver", "--noreload", f"127.0.0.1:{sys.argv[1]}"])
