"""A Django application behind its ASGI and WSGI handlers: both kinds of views, forms, uploads, streaming, files."""

from __future__ import annotations

from pathlib import Path

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=False,
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests only",
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    DATA_UPLOAD_MAX_MEMORY_SIZE=4_000_000,
)
django.setup()


def sync_view(request):
    return JsonResponse({"method": request.method, "query": request.GET.dict(), "remote": request.META["REMOTE_ADDR"]})


async def async_view(request):
    return HttpResponse("async")


def form(request):
    return JsonResponse(request.POST.dict())


def upload(request):
    sent = request.FILES["file"]
    return JsonResponse({"name": sent.name, "size": sent.size, "sum": sum(b"".join(sent.chunks())) % 65521})


async def stream(request):
    async def numbers():
        for number in range(100):
            yield f"{number}\n"

    return StreamingHttpResponse(numbers(), content_type="text/plain")


def file(request):
    return FileResponse(Path(__file__).open("rb"))


def broken(request):
    raise RuntimeError("broken on purpose")


urlpatterns = [
    path("", sync_view),
    path("async", async_view),
    path("form", form),
    path("upload", upload),
    path("stream", stream),
    path("file", file),
    path("broken", broken),
]

app = get_asgi_application()
wsgi = get_wsgi_application()
